"""Damaged files give a card or a clear error, in bounded time and memory."""

from __future__ import annotations

import json
import random
import time
import tracemalloc
from collections import Counter

import pytest
from support.card_files import CARDS, OWN_CASES

from persona_lab.errors import CardError
from persona_lab.personas.cards import map_card, read_card, read_sheet, write_card

FILES = 2_000
MAX_SECONDS = 0.5
"""Of one file, on the processor."""
HOSTILE_SECONDS = 5.0
MAX_MEMORY = 100_000_000
SEED = 15
VALUES = [
    None, True, 0, -1, 1.5, 10**400, "", "x", "9" * 50, [], {}, [[]], [None], {"a": None}, "\ud800",
    "\x00", "https://example.com/", ["x", 1, None, {}],
]  # fmt: skip
LENGTHS = [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"]
MARKS = [b"[", b"{", b'"', b"\n", b"&a *a ", b"{{char}}", b"\xe3"]
EXCHANGES = "<START>\n{{user}}: a\n{{char}}: b\n" * 100_000
BASES = [
    *OWN_CASES.values(),
    *(path.read_bytes() for path in sorted(CARDS.glob("**/*.json"))),
    (CARDS / "test_character.png").read_bytes()[-4_000:],
]


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 3, 20])):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(5):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del changed[at : at + rng.choice([1, 4, 100])]
            case 2:
                changed[at:at] = changed[at : at + rng.choice([1, 8, 200])]
            case 3:
                changed[at : at + 4] = rng.choice(
                    [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"]
                )
            case 4:
                changed[at:at] = rng.choice(
                    [b"[", b"{", b'"', b"\n", b"&a *a ", b"{{char}}", b"\xe3"]
                )
    return bytes(changed)


def mutate_value(value: object, rng: random.Random) -> object:
    """Replace one value somewhere inside by one of another type."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        return {**value, key: mutate_value(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], mutate_value(value[at], rng), *value[at + 1 :]]
    return rng.choice(VALUES)


def mutated(rng: random.Random) -> bytes:
    data = rng.choice(BASES)
    if rng.random() < 0.4:
        try:
            document = json.loads(data)
        except ValueError:
            return mutate_bytes(data, rng)
        for _ in range(rng.choice([1, 2, 6])):
            document = mutate_value(document, rng)
        return json.dumps(document).encode()
    return mutate_bytes(data, rng)


def test_mutated_files_give_a_card_or_a_clear_error() -> None:
    rng = random.Random(SEED)
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    for number in range(FILES):
        data = mutated(rng)
        start = time.process_time()
        try:
            card = read_card(data)
        except CardError as wrong:
            outcomes[wrong.details["why"]] += 1
            card = None
        slowest = max(slowest, time.process_time() - start)
        if card is not None:
            outcomes["card"] += 1
            map_card(card)
            if number % 4 == 0:
                for format_ in ("v2-json", "v3-png", "charx", "yaml"):
                    assert read_card(write_card(card, format_)).data == card.data  # type: ignore[arg-type]
    assert slowest < MAX_SECONDS
    assert outcomes["card"] > FILES / 4
    assert len(outcomes) > 8


def test_mutated_sheets_give_a_plan_or_a_clear_error() -> None:
    rng = random.Random(SEED)
    sheet = (
        OWN_CASES["sheet"]
        + '\n会話例：\nユーザー：はい\n[Character("A") {Age("1" + "2")}]'.encode()
    )
    for _ in range(300):
        text = mutate_bytes(sheet, rng).decode("utf-8", "replace")
        try:
            read_sheet(text)
        except CardError as wrong:
            assert wrong.details["why"]


@pytest.mark.parametrize(
    "data",
    [
        b'{"name": "a", "x": [' + b"[],{}," * 160_000 + b"1]}",
        b"[" * 5_000_000,
        b"name: a\n" * 400_000,
        b"\x89PNG\r\n\x1a\n" + b"\0\0\0\0teST\0\0\0\0" * 4_000_000,
        b"PK\3\4" + b"PK\1\2" + b"\0" * 1_000_000 + b"PK\5\6" + b"\xff" * 12 + b"\0" * 6,
        ("名前：" + "あ" * 150_000).encode(),
        ("Name: " + " " * 150_000 + "x").encode(),
        (" -" * 90_000 + "\nName: a").encode(),
        ('[Character("' + '"+"' * 60_000).encode(),
        ((" ," * 245 + "\n") * 400 + "Name: a").encode(),
        ("Name(" * 40_000).encode(),
        ("性格：a\n\n" + "- b\n\n" * 30_000).encode(),
        ("a" + ": b" * 60_000 + "\nName: a").encode(),
        ("【" * 60_000 + "\nName: a").encode(),
        ("**" * 60_000 + "\nName: a").encode(),
        ("名前：あ\n会話例：\n" + "ユーザー：\n" * 30_000).encode(),
        json.dumps({"name": "a", "mes_example": EXCHANGES}).encode(),
        json.dumps({"name": "a", "mes_example": "{{user}}: a\n" * 100_000}).encode(),
        json.dumps({"name": "a", "personality": "a, " * 1_000_000}).encode(),
        json.dumps({"name": "a", "first_mes": "{{" + " " * 1_000_000}).encode(),
        json.dumps({"name": "a" + "\u0301" * 1_000_000, "first_mes": "x"}).encode(),
        b'{"name": "a", ' + b'"k": 1, "k": 2, ' * 100_000 + b'"first_mes": "x"}',
        b'{"name": "a", "first_mes": ' + b"9" * 1_000_000 + b"}",
    ],
    ids=range(23),
)
def test_hostile_file_is_read_in_bounded_time(data: bytes) -> None:
    start = time.process_time()
    try:
        map_card(read_card(data))
    except CardError as wrong:
        assert wrong.details["why"]
    assert time.process_time() - start < HOSTILE_SECONDS


@pytest.mark.parametrize(
    "data",
    [
        b'{"name": "a", "x": [' + b"[]," * 60_000 + b"1]}",
        json.dumps({"name": "a" * 3_000_000, "first_mes": "{{char}}" * 50_000}).encode(),
        b"PK\3\4" + b"PK\1\2" + b"\0" * 1_000_000 + b"PK\5\6" + b"\xff" * 12 + b"\0" * 6,
    ],
    ids=["values", "macros", "directory"],
)
def test_hostile_file_is_read_in_bounded_memory(data: bytes) -> None:
    tracemalloc.start()
    try:
        map_card(read_card(data))
    except CardError as wrong:
        assert wrong.details["why"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MAX_MEMORY
