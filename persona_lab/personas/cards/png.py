"""Cards in PNG files: the chunks ``chara`` (V1, V2) and ``ccv3`` (V3).

The value is base64 of JSON in UTF-8, in a ``tEXt`` chunk; ``zTXt`` and ``iTXt`` are read too. All
other bytes of the file stay as they are, in their order. A chunk ``chara-ext-asset_:PATH`` is a
file that belongs to the card.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from persona_lab.errors import CardError
from persona_lab.personas.cards.model import MAX_PARTS, MAX_TEXT_BYTES, MAX_UNPACKED_BYTES

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ASSET = b"chara-ext-asset_:"
_DRAWN = b"persona_lab:picture"
"""The keyword of a chunk that marks a picture which this module drew."""
_KEYWORD = re.compile(rb"[\x20-\x7e\xa1-\xff]{1,79}")
_SPACE = re.compile(rb"\s+")
_WIDTH, _HEIGHT = 400, 600


@dataclass(slots=True)
class CardImage:
    """The parts of a PNG file.

    Attributes:
        documents: The bytes of the card's JSON by keyword, in the order of the file.
        picture: The file without the card's chunks; None if this module drew the picture.
        members: The files that belong to the card.
    """

    documents: dict[str, bytes] = field(default_factory=dict)
    picture: bytes | None = None
    members: dict[str, bytes] = field(default_factory=dict)


def read_png(data: bytes) -> CardImage:
    """Return the parts of a PNG file.

    Raises:
        CardError: The file is damaged before its card, has no card, or exceeds a bound.
    """
    image = CardImage()
    rest = [SIGNATURE]
    drawn = False
    unpacked = 0
    for kind, body, chunk in _chunks(data):
        keyword, value = _text_of(kind, body)
        if keyword in (b"chara", b"ccv3") and keyword.decode() not in image.documents:
            image.documents[keyword.decode()] = _from_base64(value, keyword.decode())
        elif keyword.startswith(_ASSET):
            path = keyword.removeprefix(_ASSET).decode("latin-1")
            image.members[path] = _from_base64(value, path)
            unpacked += len(image.members[path])
            if unpacked > MAX_UNPACKED_BYTES:
                raise CardError("card_unpacked_size", limit=MAX_UNPACKED_BYTES // 1_000_000)
        elif keyword == _DRAWN:
            drawn = True
        else:
            rest.append(chunk)
    if not image.documents:
        raise CardError("card_picture")
    image.picture = None if drawn else b"".join(rest)
    return image


def write_png(
    documents: dict[str, bytes], picture: bytes | None, members: dict[str, bytes], name: str
) -> bytes:
    """Return a PNG file with cards in it.

    Args:
        documents: JSON by keyword.
        picture: A PNG file; without one, a plain picture is drawn in a colour of ``name``.
        members: Files that belong to the card.
        name: The character's name.
    """
    added = []
    if picture is None:
        picture = _draw(name)
        added.append(_chunk(b"tEXt", _DRAWN + b"\0" + b"drawn"))
    for keyword, document in documents.items():
        added.append(_chunk(b"tEXt", keyword.encode() + b"\0" + base64.b64encode(document)))
    for path, content in members.items():
        keyword_bytes = _ASSET + path.encode("latin-1")
        added.append(_chunk(b"tEXt", keyword_bytes + b"\0" + base64.b64encode(content)))
    parts = [SIGNATURE]
    for kind, _, chunk in _chunks(picture):
        if kind in (b"IEND", b"") and added:
            parts += added
            added = []
        parts.append(chunk)
    return b"".join([*parts, *added])


def fits_png(path: str) -> bool:
    """Return whether a chunk can have ``path`` as its keyword."""
    try:
        keyword = _ASSET + path.encode("latin-1")
    except UnicodeEncodeError:
        return False
    return _KEYWORD.fullmatch(keyword) is not None and path.strip() == path


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield type, body and whole bytes of each chunk; what isn't a chunk has an empty type."""
    at, count = len(SIGNATURE), 0
    ended = False
    while at < len(data):
        count += 1
        if count > MAX_PARTS:
            raise CardError("card_parts", limit=MAX_PARTS)
        length = int.from_bytes(data[at : at + 4]) if at + 12 <= len(data) else len(data)
        end = at + 12 + length
        if ended or end > len(data):
            yield b"", b"", data[at:]  # after the end, or cut off
            return
        kind = data[at + 4 : at + 8]
        yield kind, data[at + 8 : end - 4], data[at:end]
        ended = kind == b"IEND"
        at = end


def _text_of(kind: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Return keyword and value of a text chunk; empty for other chunks."""
    if kind not in (b"tEXt", b"zTXt", b"iTXt"):
        return b"", b""
    keyword, _, value = body.partition(b"\0")
    is_ours = keyword in (b"chara", b"ccv3", _DRAWN) or keyword.startswith(_ASSET)
    if not is_ours or kind == b"tEXt":
        return keyword, value
    if kind == b"zTXt":
        return keyword, _inflate(value[1:], keyword)
    text = value[2:].partition(b"\0")[2].partition(b"\0")[2]  # after language and translation
    return keyword, _inflate(text, keyword) if value[:1] == b"\1" else text


def _inflate(packed: bytes, keyword: bytes) -> bytes:
    limit = MAX_TEXT_BYTES * 2
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(packed, limit)
    except zlib.error:
        raise CardError("card_data", part=keyword.decode("latin-1")) from None
    if inflater.unconsumed_tail:
        raise CardError("card_text_size", limit=limit // 1_000_000)
    return text


def _from_base64(value: bytes, part: str) -> bytes:
    compact = _SPACE.sub(b"", value).translate(bytes.maketrans(b"-_", b"+/"))
    if compact.startswith((b"{", b"[")):
        return value  # JSON as it is
    try:
        return base64.b64decode(compact + b"=" * (-len(compact) % 4), validate=True)
    except binascii.Error:
        raise CardError("card_data", part=part) from None


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _draw(name: str) -> bytes:
    """Return a picture of one colour, which ``name`` decides."""
    red, green, blue = (96 + byte % 128 for byte in zlib.crc32(name.encode()).to_bytes(4)[:3])
    header = struct.pack(">IIBBBBB", _WIDTH, _HEIGHT, 8, 2, 0, 0, 0)
    pixels = (b"\0" + bytes([red, green, blue]) * _WIDTH) * _HEIGHT
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(pixels, 9)), (b"IEND", b"")]
    return SIGNATURE + b"".join(_chunk(kind, body) for kind, body in chunks)
