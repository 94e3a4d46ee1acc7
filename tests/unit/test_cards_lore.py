"""Lorebooks: which entry fires, at which word, and why the others don't."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest

from persona_lab.clients.base import estimate_tokens
from persona_lab.personas.cards import read_card
from persona_lab.personas.lore import Lorebook, Outcome, Scan, read_lorebook, scan
from persona_lab.settings import ROOT
from persona_lab.translations import Translations

TEXTS = Translations(ROOT / "templates" / "cards.yaml")
FAILURES = ROOT / "tests" / "data" / "cards" / "failures"


def book(*entries: dict[str, Any], **fields: Any) -> Lorebook:
    document = {
        "name": "A",
        "first_mes": "x",
        "character_book": {"entries": [{"content": "text", **e} for e in entries], **fields},
    }
    return read_lorebook(read_card(json.dumps(document).encode()).data["character_book"])


def run(lore: Lorebook, *messages: str, **options: Any) -> Scan:
    found = scan(lore, messages, count_tokens=len, **options)
    for outcome in found.outcomes:
        for language in ("ja", "en"):
            assert TEXTS(outcome.key, language, **outcome.details)
    return found


def only(entry: dict[str, Any], *messages: str, **fields: Any) -> Outcome:
    (outcome,) = run(book(entry, **fields), *messages).outcomes
    return outcome


# ── words ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("key", "message", "word"),
    [
        ("cat", "My cat sleeps.", "cat"),
        ("cat", "CAT!", "CAT"),
        ("cat", "the cat's ears", "cat"),
        ("cat", "catが好き", "cat"),
        ("cat", "ｃａｔ", "ｃａｔ"),
        ("warp drive", "the warp\n  drive", "warp\n  drive"),
        ("C++", "C++ is old", "C++"),
        ("R2-D2", "(R2-D2)", "R2-D2"),
        ("café", "cafe\u0301", "cafe\u0301"),
        ("straße", "STRASSE", "STRASSE"),
        ("京都", "京都に行った", "京都"),
        ("京都", "京都駅で会おう", "京都"),
        ("京都", "昨日は、京都。", "京都"),
        ("東京都", "東京都に住む", "東京都"),
        ("サクラ", "さくらが咲いた", "さくら"),
        ("さくら", "サクラちゃん", "サクラ"),
        ("メイド", "ﾒｲﾄﾞさん", "ﾒｲﾄﾞ"),
        ("ガンダム", "ｶﾞﾝﾀﾞﾑだ", "ｶﾞﾝﾀﾞﾑ"),
        ("魔法学校", "魔法学校へ行く", "魔法学校"),
        ("茶", "お茶を飲む", "茶"),
        ("ここね", "ここねは元気？", "ここね"),
        ("ここね", "ここねちゃん", "ここね"),
        ("エルフ", "エルフの森", "エルフ"),
        ("城", "古い城、そして森", "城"),
        ("Aクラス", "Aクラスの生徒", "Aクラス"),
        ("猫", "a猫b", "猫"),
        ("竜", "「竜」だ", "竜"),
        ("京 都", "京　都", "京　都"),
        ("ヴァン", "ゔぁんだ", "ゔぁん"),
    ],
)
def test_key_fires_at_a_word(key: str, message: str, word: str) -> None:
    outcome = only({"keys": ["none", key]}, message)
    assert outcome.fired, outcome
    assert outcome.match is not None
    assert (outcome.match.key, outcome.match.word) == (key, word)
    assert message[outcome.match.start : outcome.match.end].strip() == word


@pytest.mark.parametrize(
    ("key", "message", "longer"),
    [
        ("cat", "category", "category"),
        ("cat", "concat it", "concat"),
        ("cat", "cat_name", "cat_name"),
        ("art", "ｐａｒｔ", "ｐａｒｔ"),
        ("3", "13 days", "13"),
        ("京都", "東京都に行く", "東京都"),
        ("京都", "東京都と東京都", "東京都"),
        ("リン", "プリンを食べる", "プリン"),
        ("りん", "りんごを食べる", "りんご"),
        ("花", "花火を見る", "花火"),
        ("姫", "姫路に行く", "姫路"),
        ("竜", "竜巻が来た", "竜巻"),
        ("アリス", "アリスンが来た", "アリスン"),
        ("あり", "ありがとう", "ありがとう"),
    ],
)
def test_key_does_not_fire_inside_a_word(key: str, message: str, longer: str) -> None:
    outcome = only({"keys": [key]}, message)
    assert (outcome.fired, outcome.key) == (False, "lore.inside_word")
    assert outcome.match is not None
    assert (outcome.match.key, outcome.match.word) == (key, longer)


def test_later_place_fires_after_one_inside_a_word() -> None:
    outcome = only({"keys": ["京都"]}, "東京都から京都へ")
    assert outcome.fired
    assert outcome.match is not None
    assert (outcome.match.start, outcome.match.end) == (5, 7)


def test_entry_can_ask_for_parts_of_words() -> None:
    assert only({"keys": ["京都"], "extensions": {"match_whole_words": False}}, "東京都").fired


# ── conditions ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("entry", "message", "key"),
    [
        ({"keys": ["a"]}, "b", "lore.not_found"),
        ({"keys": []}, "b", "lore.no_keys"),
        ({"keys": [" "]}, "b", "lore.no_keys"),
        ({"keys": ["a"], "enabled": False}, "a", "lore.disabled"),
        ({"keys": ["a"], "content": " "}, "a", "lore.empty"),
        ({"keys": ["Al"], "case_sensitive": True}, "al", "lore.case"),
        ({"keys": ["a"], "selective": True, "secondary_keys": ["b"]}, "a", "lore.secondary"),
        (
            {"keys": ["a"], "selective": True, "secondary_keys": ["京都"]},
            "a 東京都",
            "lore.secondary",
        ),
        (
            {
                "keys": ["a"],
                "selective": True,
                "secondary_keys": ["b", "c"],
                "extensions": {"selectiveLogic": 3},
            },
            "a b",
            "lore.secondary",
        ),
        (
            {
                "keys": ["a"],
                "selective": True,
                "secondary_keys": ["b", "c"],
                "extensions": {"selectiveLogic": 2},
            },
            "a b",
            "lore.secondary_there",
        ),
        ({"keys": ["/(a+)+$/i"]}, "a" * 40 + "!", "lore.regex"),
        ({"keys": ["(a+)+$"], "use_regex": True}, "a" * 40 + "!", "lore.regex"),
        ({"keys": ["a"], "content": "@@dont_activate\ntext"}, "a", "lore.never"),
        ({"keys": ["a"], "content": "@@exclude_keys b\ntext"}, "a b", "lore.excluded"),
        ({"keys": ["a"], "content": "@@additional_keys b,c\ntext"}, "a", "lore.secondary"),
    ],
)
def test_entry_does_not_fire(entry: dict[str, Any], message: str, key: str) -> None:
    outcome = only(entry, message)
    assert (outcome.fired, outcome.key) == (False, key)


@pytest.mark.parametrize(
    ("entry", "message", "key"),
    [
        ({"keys": [], "constant": True}, "b", "lore.constant"),
        ({"keys": ["al"], "case_sensitive": False}, "AL", "lore.fired"),
        ({"keys": ["Al"], "case_sensitive": True}, "al Al", "lore.fired"),
        ({"keys": ["a"], "selective": False, "secondary_keys": ["b"]}, "a", "lore.fired"),
        ({"keys": ["a"], "selective": True, "secondary_keys": ["c", "b"]}, "a b", "lore.fired"),
        ({"keys": ["a"], "selective": True, "secondary_keys": []}, "a", "lore.fired"),
        ({"keys": ["a.b"], "use_regex": True}, "a.b", "lore.fired"),
        ({"keys": ["a"], "content": "@@activate\ntext"}, "b", "lore.always"),
        ({"keys": ["a"], "content": "@@additional_keys b,c\ntext"}, "a c", "lore.fired"),
    ],
)
def test_entry_fires(entry: dict[str, Any], message: str, key: str) -> None:
    outcome = only(entry, message)
    assert (outcome.fired, outcome.key) == (True, key)


def test_depth_counts_the_newest_messages() -> None:
    entry = {"keys": ["a"]}
    assert only(entry, "a", "b", "c", scan_depth=2).key == "lore.too_far"
    assert only(entry, "b", "a", "c", scan_depth=2).fired
    assert only(entry, "a", "b", "c").fired
    assert only({**entry, "content": "@@scan_depth 1\nx"}, "a", "b", scan_depth=9).key == (
        "lore.too_far"
    )
    outcome = only(entry, "b", "a", "c", scan_depth=2)
    assert outcome.match is not None
    assert outcome.match.message == 1


def test_decorators_are_no_part_of_the_content() -> None:
    lore = book({"keys": ["a"], "content": "@@unknown 4\n@@@scan_depth 1\n@@depth 3\n\nLore.\n@@x"})
    (entry,) = run(lore, "a").used
    assert (entry.content, entry.depth) == ("Lore.\n@@x", 1)


def test_used_entries_stand_in_their_order_and_once() -> None:
    lore = book(
        {"keys": ["a", "b"], "content": "third", "insertion_order": 30},
        {"keys": ["b"], "content": "first", "insertion_order": "10"},
        {"keys": ["a"], "content": "second", "insertion_order": 20},
        {"keys": ["b"], "content": "first", "insertion_order": 5},
    )
    found = run(lore, "a b a b")
    assert [entry.content for entry in found.used] == ["first", "second", "third"]
    assert found.outcomes[3].key == "lore.equal"
    assert found.outcomes[3].details == {"first": 2}


def test_same_entry_under_two_keys_is_used_once() -> None:
    data = read_card(FAILURES / "same_entry_two_keys.json").data
    found = run(read_lorebook(data["character_book"]), "森の薬草")
    assert len(found.used) == 1
    assert [outcome.key for outcome in found.outcomes].count("lore.equal") == 2


def test_budget_keeps_the_most_important() -> None:
    lore = book(
        {"keys": ["a"], "content": "x" * 40, "priority": 1},
        {"keys": ["a"], "content": "y" * 40, "priority": 9},
        {"keys": ["zz"], "content": "z" * 30, "constant": True, "priority": 0},
        token_budget="80",
    )
    found = run(lore, "a")
    assert [outcome.key for outcome in found.outcomes] == [
        "lore.budget",
        "lore.fired",
        "lore.constant",
    ]
    assert found.tokens == 70
    assert run(lore, "a", budget=1000).tokens == 110


def test_entries_wake_others_only_in_a_recursive_book() -> None:
    entries = (
        {"keys": ["竜"], "content": "竜は北の城に住む。"},
        {"keys": ["城"], "content": "城は古い。"},
        {"keys": ["古い"], "content": "No.", "extensions": {"exclude_recursion": True}},
    )
    assert [o.fired for o in run(book(*entries), "竜だ").outcomes] == [True, False, False]
    woken = run(book(*entries, recursive_scanning=True), "竜だ")
    assert [o.fired for o in woken.outcomes] == [True, True, False]
    assert woken.outcomes[1].key == "lore.fired_by_lore"


def test_macros_are_filled_in_keys_and_contents() -> None:
    lore = book({"keys": ["{{char}}"], "content": "{{char}} is tall."})
    assert run(lore, "Hi, Nova", fill=lambda text: text.replace("{{char}}", "Nova")).used


def test_empty_book_and_conversation() -> None:
    assert run(read_lorebook(None)).outcomes == ()
    assert not run(book({"keys": ["a"]})).used
    assert not run(book({"keys": ["a"]}), "").used


def test_estimate_counts_tokens_of_a_book() -> None:
    lore = book({"keys": ["a"], "content": "あ" * 10})
    assert scan(lore, ["a"], count_tokens=estimate_tokens).tokens == 6


def test_large_book_is_scanned_in_bounded_time() -> None:
    rng = random.Random(1)
    letters = "東京都大学魔法城森竜アイウエオかきくけこabc "
    entries = [
        {"keys": ["".join(rng.choices(letters, k=3)) for _ in range(3)], "content": str(n)}
        for n in range(5_000)
    ]
    messages = ["".join(rng.choices(letters, k=2_000)) for _ in range(20)]
    lore = book(*entries, recursive_scanning=True)
    start = time.process_time()
    run(lore, *messages)
    assert time.process_time() - start < 10
