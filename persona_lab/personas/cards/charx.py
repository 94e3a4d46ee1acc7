"""Cards in CHARX files: a zip file with ``card.json`` and the card's files.

Members are never unpacked to the disk, so their paths can't lead anywhere.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

from persona_lab.errors import CardError
from persona_lab.personas.cards.model import MAX_PARTS, MAX_TEXT_BYTES, MAX_UNPACKED_BYTES

DOCUMENT = "card.json"
_DATE = (1980, 1, 1, 0, 0, 0)
"""The date of each member: equal cards make equal files."""
_MAX_DIRECTORY = 128 * MAX_PARTS
"""Bytes of the list of members."""
_DAMAGED = (
    zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, IndexError, OverflowError,
    NotImplementedError, struct.error,
)  # fmt: skip


def read_zip(data: bytes, max_bytes: int = MAX_UNPACKED_BYTES) -> tuple[dict[str, bytes], bytes]:
    """Return the members of a zip file by path, and the bytes before the zip file.

    Args:
        data: The file.
        max_bytes: The size that the members may have together.

    Raises:
        CardError: It is damaged or encrypted, or exceeds a bound.
    """
    _check_directory(data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = _read_members(archive, max_bytes)
            start = min((info.header_offset for info in archive.infolist()), default=0)
    except _DAMAGED:
        raise CardError("card_zip") from None
    return members, data[:start]


def write_zip(members: dict[str, bytes], prefix: bytes = b"") -> bytes:
    """Return a zip file with ``members``, after ``prefix``."""
    target = io.BytesIO()
    target.write(prefix)
    with zipfile.ZipFile(target, "a" if prefix else "w") as archive:
        for path, content in members.items():
            info = zipfile.ZipInfo(path, _DATE)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, content)
    return target.getvalue()


def _check_directory(data: bytes) -> None:
    """Refuse a list of members that would fill the memory, before it is read."""
    size = 0
    end = data.rfind(b"PK\x05\x06", -65_557 - 22)
    if end >= 0:
        size = int.from_bytes(data[end + 12 : end + 16], "little")
    large = data.rfind(b"PK\x06\x06", -65_557 - 22 - 20 - 56)
    if large >= 0 and size == 0xFFFFFFFF:
        size = int.from_bytes(data[large + 40 : large + 48], "little")
    if size > _MAX_DIRECTORY:
        raise CardError("card_parts", limit=MAX_PARTS)


def _read_members(archive: zipfile.ZipFile, max_bytes: int) -> dict[str, bytes]:
    infos = archive.infolist()
    if len(infos) > MAX_PARTS:
        raise CardError("card_parts", limit=MAX_PARTS)
    if any(info.flag_bits & 1 for info in infos):
        raise CardError("card_encrypted")
    members: dict[str, bytes] = {}
    left = max_bytes
    for info in infos:
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise CardError("card_zip")
        limit = min(left, MAX_TEXT_BYTES) if info.filename == DOCUMENT else left
        with archive.open(info) as member:
            content = member.read(limit + 1)
        if len(content) > limit and limit < left:
            raise CardError("card_text_size", limit=MAX_TEXT_BYTES // 1_000_000)
        if len(content) > limit:
            raise CardError("card_unpacked_size", limit=max_bytes // 1_000_000)
        left -= len(content)
        members[_free_path(info.filename, members)] = content
    return members


def _free_path(path: str, members: dict[str, bytes]) -> str:
    """Return ``path``, with a number where another member has it already."""
    free, number = path, 1
    while free in members:
        number += 1
        free = f"{path}#{number}"
    return free
