"""Character cards for tests: builders of files, and a file of each kind."""

from __future__ import annotations

import base64
import io
import json
import struct
import zipfile
import zlib
from typing import Any

from persona_lab.settings import ROOT

CARDS = ROOT / "tests" / "data" / "cards"
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def v3(**fields: Any) -> dict[str, Any]:
    return {"spec": "chara_card_v3", "spec_version": "3.0", "data": {"name": "リン", **fields}}


def dump(document: Any) -> bytes:
    return json.dumps(document).encode()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def picture(*chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0\1\2\3"))
    return b"".join([SIGNATURE, chunk(b"IHDR", header), *chunks, pixels, chunk(b"IEND", b"")])


def text_chunk(keyword: bytes, document: Any) -> bytes:
    return chunk(b"tEXt", keyword + b"\0" + base64.b64encode(dump(document)))


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for path, content in members.items():
            archive.writestr(path, content)
    return target.getvalue()


V1 = {
    "name": "Old",
    "description": "An old card.",
    "personality": "grumpy, kind",
    "scenario": "",
    "first_mes": "Well?",
    "mes_example": "<START>\n{{user}}: Hi\n{{char}}: Hm.",
    "create_date": "2023-04-01",
    "avatar": "none",
}
RICH = v3(
    description="図書館の司書。\n{{user}}の相談に乗る。",
    personality="静か、几帳面",
    first_mes="こんにちは、{{user}}さん。",
    assets=[{"type": "icon", "uri": "ccdefault:", "name": "main", "ext": "png", "extra": 1}],
    new_field={"deep": [1, 2.5, None, True]},
    extensions={"risuai": {"bias": [["a", 1]]}, "persona": "text"},
    nickname="リンちゃん",
) | {"beside": {"x": 1}}
OWN_CASES = {
    "v1": dump(V1),
    "v3 with unknown fields": dump(RICH),
    "png with a foreign chunk": picture(
        chunk(b"tEXt", b"Comment\0hello"), chunk(b"prVt", b"\1\2"), text_chunk(b"chara", V1)
    ),
    "png with two cards": picture(text_chunk(b"chara", V1), text_chunk(b"ccv3", RICH)),
    "png with zTXt": picture(
        chunk(b"zTXt", b"ccv3\0\0" + zlib.compress(base64.b64encode(dump(RICH))))
    ),
    "png with iTXt": picture(chunk(b"iTXt", b"chara\0\0\0\0\0" + base64.b64encode(dump(V1)))),
    "png with packed iTXt": picture(
        chunk(b"iTXt", b"chara\0\1\0ja\0x\0" + zlib.compress(base64.b64encode(dump(V1))))
    ),
    "png with plain json": picture(chunk(b"tEXt", b"chara\0" + dump(V1))),
    "png with an asset": picture(
        text_chunk(b"ccv3", RICH), chunk(b"tEXt", b"chara-ext-asset_:a/b.png\0AAEC")
    ),
    "png after its end": picture(text_chunk(b"chara", V1)) + b"trailing",
    "charx": zipped(
        {"card.json": dump(RICH), "assets/icon/images/a.png": picture(), "module.risum": b"\0\1"}
    ),
    "charx behind a jpeg": b"\xff\xd8\xff\xe0jpeg" + zipped({"card.json": dump(RICH), "a": b"1"}),
    "yaml": "name: ノ\ndescription: |\n  一行目\n  二行目\nfirst_mes: No\ntags: [a, b]\n".encode(),
    "yaml of an older program": b"name: Bo\ncontext: A pirate.\ngreeting: Arr, {{user}}!\n",
    "pygmalion": dump({"char_name": "Py", "char_persona": "A snake.", "char_greeting": "Sss."}),
    "persona": dump({"name": "ミナ", "personalities": ["明るい"], "first_person": "あたし"}),
    "sheet": "名前：ミナ\n性格：明るい\n年齢：17".encode(),
    "utf-16": json.dumps(V1).encode("utf-16"),
    "mark": b"\xef\xbb\xbf" + dump(V1),
    "shift_jis": "名前：ミナ\n性格：明るい".encode("cp932"),
}
