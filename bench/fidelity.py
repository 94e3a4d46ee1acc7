"""How often the marks are wrong: ``python -m bench.fidelity COMMAND …``.

``sample CONVERSATIONS [RULE …]``
    Draw up to 100 marks of each rule from answers of models, and write them to
    ``tests/data/fidelity/<rule>.jsonl``. Verdicts of marks that are drawn again are kept. At most
    three marks come from one conversation.
``show RULE``
    Print the marks of a rule that have no verdict, with the text around them.
``judge RULE [NUMBER …]``
    Write the verdicts of a reader: all marks without a verdict are right but
    those with these numbers.
``recall CONVERSATIONS``
    Put faults into answers, and write to ``tests/data/fidelity/seeded.json`` how many get a mark.
``publish``
    Write ``error_rates.csv`` and the table of ``docs/fidelity.md`` from these files.

CONVERSATIONS is a file of Aratako/Japanese-RP-Bench: lines of ``model``, ``id`` and ``turns``,
which alternate between user and character. A model wrote the user's turns, too: rules that need no
persona are measured on both.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from persona_lab.japanese import to_plain, to_polite
from persona_lab.japanese.morphology import Word, conjugate, words_of
from persona_lab.personas.fidelity.answer import Answer, Token
from persona_lab.personas.fidelity.error_rates import COLUMNS, PATH
from persona_lab.personas.fidelity.mark import CannotMeasure, ErrorRate, Mark, RuleName
from persona_lab.personas.fidelity.register import expected_register, register_of
from persona_lab.personas.fidelity.rules import apply_rule
from persona_lab.personas.persona import Persona
from persona_lab.settings import ROOT

FOLDER = ROOT / "tests" / "data" / "fidelity"
DOCS = ROOT / "docs" / "fidelity.md"
TABLE_START, TABLE_END = "<!-- table: python -m bench.fidelity publish -->", "<!-- end of table -->"
SAMPLE_SIZE = 100
SEEDS = 100
PER_CONVERSATION = 3
SEED = 13
CONTEXT = 60
NEUTRAL_RULES = ("author_note", "instructions", "foreign_text", "broken_conjugation")
"""Rules that need no persona: they are also measured on the user's turns."""
EXAMPLE_MODEL = "gpt-4o-2024-08-06"
"""The model whose first answers are the personas' examples."""
RULE_NAMES: tuple[RuleName, ...] = get_args(RuleName)


@dataclass(frozen=True)
class Reply:
    """An answer of a model, with the place that it comes from."""

    source: str
    answer: Answer


def personas() -> dict[int, Persona]:
    lines = (FOLDER / "personas.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["id"]: Persona.validate(row["persona"]) for row in map(json.loads, lines)}


def replies(path: Path, *, users: bool = False) -> Iterator[Reply]:
    """Read the answers of a file of conversations; with ``users`` the user's turns."""
    known = personas()
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for row in rows:
        turns = row["turns"]
        for at in range(0 if users else 1, len(turns), 2):
            if not users and row["model"] == EXAMPLE_MODEL and at < 10:
                continue
            history = [
                {"role": "assistant" if n % 2 else "user", "content": turn}
                for n, turn in enumerate(turns[:at])
            ]
            persona = Persona(name="", description="") if users else known[row["id"]]
            source = f"{row['model']}/{row['id']}/{at}"
            yield Reply(source, Answer(turns[at], persona, [] if users else history))


def marks_of(rule: RuleName, reply: Reply) -> list[Mark]:
    try:
        return apply_rule(rule, reply.answer, even_unreliable=True)
    except CannotMeasure:
        return []


# ── precision ──


def sample(path: Path, rules: list[RuleName]) -> None:
    own, users = list(replies(path)), list(replies(path, users=True))
    for rule in rules or RULE_NAMES:
        pool = [*own, *users] if rule in NEUTRAL_RULES else own
        found = [_row(reply, mark) for reply in pool for mark in marks_of(rule, reply)]
        old = {_key(row): row for row in rows_of(rule) if row["right"] is not None}
        drawn: list[dict[str, Any]] = []
        per_conversation: Counter[str] = Counter()
        for row in sorted(found, key=lambda row: (_key(row) not in old, _lot(row))):
            conversation = row["source"].rpartition("/")[0]
            if per_conversation[conversation] < PER_CONVERSATION and len(drawn) < SAMPLE_SIZE:
                per_conversation[conversation] += 1
                drawn.append(old.get(_key(row), row))
        write(rule, drawn)
        unread = sum(row["right"] is None for row in drawn)
        print(f"{rule}: {len(found)} marks in {len(pool)} answers, {unread} of {len(drawn)} unread")


def _lot(row: dict[str, Any]) -> bytes:
    """Return a number that is drawn for a mark: the same whenever marks are drawn."""
    return hashlib.sha256(repr(_key(row)).encode()).digest()


def _row(reply: Reply, mark: Mark) -> dict[str, Any]:
    text = reply.answer.text
    return {
        "source": reply.source,
        "start": mark.start,
        "end": mark.end,
        "before": text[max(0, mark.start - CONTEXT) : mark.start],
        "quote": mark.quote[:200],
        "after": text[mark.end : mark.end + CONTEXT],
        "field": mark.field,
        "expected": mark.expected,
        "right": None,
    }


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["source"], row["start"], row["end"]


def rows_of(rule: str) -> list[dict[str, Any]]:
    path = FOLDER / f"{rule}.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(rule: str, rows: list[dict[str, Any]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (FOLDER / f"{rule}.jsonl").write_text("".join(lines), encoding="utf-8")


def show(rule: str) -> None:
    for number, row in enumerate(rows_of(rule)):
        if row["right"] is None:
            text = f"{row['before'][-45:]}⟦{row['quote'][:90]}⟧{row['after'][:40]}"
            print(
                number, f"[{row['source'].split('/')[-2]}|{row['expected'][:12]}]", repr(text)[1:-1]
            )


def judge(rule: str, wrong: list[int]) -> None:
    rows = rows_of(rule)
    for number, row in enumerate(rows):
        if row["right"] is None:
            row["right"] = number not in wrong
    write(rule, rows)


# ── recall ──

Seeded = tuple[str, int, int]
"""A text, and where its fault is."""


def recall(path: Path) -> None:
    pool = list(replies(path))
    notes = _notes_of_users(path)
    counts: dict[str, dict[str, int]] = {}
    for rule in RULE_NAMES:
        chance = random.Random(SEED)
        order = chance.sample(pool, len(pool))
        seeded = found = 0
        for reply in order:
            if seeded == SEEDS:
                break
            if marks_of(rule, reply):
                continue
            fault = SEEDERS[rule](reply.answer, chance, notes)
            if fault is None:
                continue
            text, start, end = fault
            seeded += 1
            answer = Answer(text, reply.answer.persona, _history(reply.answer))
            marks = marks_of(rule, Reply(reply.source, answer))
            found += any(mark.start < end and mark.end > start for mark in marks)
        counts[rule] = {"seeded": seeded, "found": found}
        print(f"{rule}: {found} of {seeded}")
    text = json.dumps(counts, indent=1) + "\n"
    (FOLDER / "seeded.json").write_text(text, encoding="utf-8")


def _history(answer: Answer) -> list[dict[str, str]]:
    own = [{"role": "assistant", "content": turn} for turn in answer.own_turns]
    return [{"role": "user", "content": turn} for turn in answer.user_turns] + own


def _notes_of_users(path: Path) -> list[str]:
    """Brackets in which the simulated user writes as the author."""
    found = [
        line.strip()
        for reply in replies(path, users=True)
        for line in reply.answer.text.splitlines()
        if line.strip().startswith(("(ここで", "（ここで", "(この", "（この", "(場面", "（場面"))
        and line.strip().endswith((")", "）"))
    ]
    return sorted(set(found))


def _replaced(text: str, token: Token, new: str) -> Seeded:
    return text[: token.start] + new + text[token.end :], token.start, token.start + len(new)


def _inserted(answer: Answer, chance: random.Random, sentence: str) -> Seeded | None:
    """Insert a sentence after a sentence of speech."""
    if not answer.speech:
        return None
    part = chance.choice(answer.speech)
    at = part.span[1]
    return answer.text[:at] + sentence + answer.text[at:], at, at + len(sentence)


def _other_word(words: tuple[str, ...], others: tuple[str, ...]) -> Callable[..., Seeded | None]:
    def seed(answer: Answer, chance: random.Random, _notes: list[str]) -> Seeded | None:
        tokens = [t for p in answer.speech for t in p.said if t.word.surface in words]
        if not tokens:
            return None
        token = chance.choice(tokens)
        return _replaced(
            answer.text,
            token,
            chance.choice([o for o in others if o[-1] != token.word.surface[-1]]),
        )

    return seed


def _other_register(answer: Answer, chance: random.Random, _notes: list[str]) -> Seeded | None:
    try:
        expected, _ = expected_register(answer.persona)
    except CannotMeasure:
        return None
    parts = [part for part in answer.speech if register_of(part) == expected]
    rewrite = to_plain if expected == "polite" else to_polite
    chance.shuffle(parts)
    for part in parts:
        new = rewrite(part.text)
        if new != part.text:
            text = answer.text[: part.start] + new + answer.text[part.start + len(part.text) :]
            return text, part.start, part.start + len(new)
    return None


_ROLE_ENDS = (
    ("です。", "ですわ。"),
    ("ます。", "ますのよ。"),
    ("です。", "でござる。"),
    ("ました。", "ましたわ。"),
    ("だ。", "じゃ。"),
    ("だよ。", "だぜ。"),
    ("よ。", "ぞ。"),
    ("です。", "やで。"),
    ("だね。", "だのう。"),
    ("ない。", "へん。"),
    ("だろう。", "やろ。"),
    ("う。", "うぜ。"),
    ("です。", "だにゃ。"),
    ("ね。", "かしら。"),
)


def _other_variety(answer: Answer, chance: random.Random, _notes: list[str]) -> Seeded | None:
    for part in chance.sample(answer.speech, len(answer.speech)):
        fitting = [pair for pair in _ROLE_ENDS if part.text.strip().endswith(pair[0])]
        if fitting:
            old, new = chance.choice(fitting)
            end = part.span[1]
            text = answer.text[: end - len(old)] + new + answer.text[end:]
            return text, part.start, end - len(old) + len(new)
    return None


def _without_ending(answer: Answer, _chance: random.Random, _notes: list[str]) -> Seeded | None:
    text = answer.text
    for ending in answer.persona.sentence_endings:
        text = text.replace(ending, "")
    return None if text == answer.text or len(text) < 60 else (text, 0, len(text))


def _with_forbidden(answer: Answer, chance: random.Random, _notes: list[str]) -> Seeded | None:
    forms = ("past", "te", "negative", "if", "plain")
    for word in chance.sample(answer.persona.forbidden_words, len(answer.persona.forbidden_words)):
        (last, *_) = reversed(words_of(word))
        if last.is_verb():
            new = word[: -len(last.surface)] + conjugate(
                last.lemma, last.type, chance.choice(forms)
            )
        elif last.is_adjective():
            new = word[:-1] + chance.choice(("い", "くて", "かった", "くない", "ければ"))
        else:
            new = word
        return _inserted(answer, chance, f"それで{new}、と思いました。")
    return None


_ADMISSIONS = (
    "申し訳ありませんが、私はAIなので実際に行くことはできません。",
    "AIアシスタントとして、中立の立場でお答えします。",
    "私は大規模言語モデルです。",
    "実際には私は人工知能であり、感情はありません。",
    "ただのプログラムですので、味はわかりません。",
    "AIである私には経験がありません。",
    "私はOpenAIが開発したモデルです。",
    "私のようなAIには夢がありません。",
    "私は人間ではなく、AIです。",
    "AIなので、食事はしません。",
    "私には感情がないんです、AIだから。",
    "AIとしては、判断できません。",
)
_QUOTED_INSTRUCTIONS = (
    "システムプロンプトに従い、このように話しています。",
    "以下の設定に基づいて会話します。",
    "【キャラクター設定】",
    "このキャラクター設定では怒りません。",
    "ロールプレイを続けましょう。",
    "与えられた指示に従って答えています。",
    "\n口調：丁寧\n",
    "私の設定では、そういう性格です。",
    "プロンプトにはそう書いてあります。",
    "このキャラクターを演じています。",
)
_FOREIGN_WORDS = (
    "问题",
    "时间",
    "认真",
    "谢谢",
    "没有关系",
    "我们",
    "什么",
    "现在",
    "非常感谢",
    "经验",
    "但是",
    "因为",
    "情况",
    "发现",
    "pero",
    "entonces",
    "gracias",
    "también",
    "siempre",
    "actually",
    "however",
    "interesting",
    "important",
    "together",
    "situation",
    "можно",
    "привет",
    "конечно",
    "그리고",
    "정말",
    "감사",
    "ความ",
    "schön",
    "vraiment",
    "perhaps",
)


def _with_one_of(*sentences: str) -> Callable[..., Seeded | None]:
    def seed(answer: Answer, chance: random.Random, _notes: list[str]) -> Seeded | None:
        return _inserted(answer, chance, chance.choice(sentences))

    return seed


def _with_admission(answer: Answer, chance: random.Random, _notes: list[str]) -> Seeded | None:
    from persona_lab.personas.fidelity.character import is_machine

    if is_machine(answer.persona):
        return None
    return _inserted(answer, chance, chance.choice(_ADMISSIONS))


def _with_user_turn(answer: Answer, chance: random.Random, _notes: list[str]) -> Seeded | None:
    turn = answer.user_turns[-1].strip().splitlines()[0]
    if "「" not in turn or turn.startswith(("「", "（", "(")):
        turn = chance.choice(("ユーザー：", "User: ", "**ユーザー**: ")) + turn
    text = answer.text.rstrip()
    return f"{text}\n{turn}", len(text) + 1, len(text) + 1 + len(turn)


def _with_note(answer: Answer, chance: random.Random, notes: list[str]) -> Seeded | None:
    note = chance.choice(notes)
    text = answer.text.rstrip()
    return f"{text}\n\n{note}", len(text) + 2, len(text) + 2 + len(note)


def _with_foreign(answer: Answer, chance: random.Random, _notes: list[str]) -> Seeded | None:
    tokens = [
        token
        for part in answer.speech
        for token in part.said
        if token.word.pos.startswith("名詞-普通名詞") and len(token.word.surface) > 1
    ]
    return (
        _replaced(answer.text, chance.choice(tokens), chance.choice(_FOREIGN_WORDS))
        if tokens
        else None
    )


def _broken(answer: Answer, chance: random.Random, _notes: list[str]) -> Seeded | None:
    """Put a dictionary form where another form belongs: 来るました, 楽しいでした, 行くて."""
    places: list[tuple[Token, str]] = []
    for part in answer.speech:
        tokens = part.said
        for token, after in pairwise(tokens):
            word, next_ = token.word, after.word
            if not _is_plain_verb(word) or token.end != after.start:
                continue
            if next_.type == "助動詞-マス" or next_.surface in ("て", "た"):
                places.append((token, word.lemma))
    if not places:
        return None
    token, new = chance.choice(places)
    text, start, end = _replaced(answer.text, token, new)
    return text, start, end + 1


def _is_plain_verb(word: Word) -> bool:
    return (
        word.pos.startswith("動詞")
        and word.form.startswith("連用形")
        and word.surface != word.lemma
    )


def _too_long(answer: Answer, chance: random.Random, _notes: list[str]) -> Seeded | None:
    if chance.random() < 0.5:
        return "はい。", 0, 3
    text = " ".join([answer.text, *answer.own_turns[-6:]]) * 2
    return text, 0, len(text)


def _said_twice(answer: Answer, chance: random.Random, _notes: list[str]) -> Seeded | None:
    parts = [part for part in answer.speech if len(part.text.strip()) > 16]
    if not parts:
        return None
    sentence = chance.choice(parts).text.strip()
    text = answer.text.rstrip()
    return text + sentence, len(text), len(text) + len(sentence)


def _said_before(answer: Answer, chance: random.Random, _notes: list[str]) -> Seeded | None:
    earlier = [Answer(turn, answer.persona) for turn in answer.own_turns]
    parts = [part for each in earlier for part in each.speech if len(part.text.strip()) > 20]
    if not parts:
        return None
    return _inserted(answer, chance, chance.choice(parts).text.strip())


def _missing_phrase(answer: Answer, _chance: random.Random, _notes: list[str]) -> Seeded | None:
    phrases = answer.persona.catchphrases
    lines = [example.ai for example in answer.persona.examples]
    often = sum(any(phrase in line for phrase in phrases) for line in lines) >= len(lines) / 3
    if len(answer.own_turns) < 5 or not phrases or not often:
        return None
    for phrase in answer.persona.catchphrases:
        answer.own_turns = [turn.replace(phrase[:-1], "") for turn in answer.own_turns]
    text = answer.text
    for phrase in answer.persona.catchphrases:
        text = text.replace(phrase[:-1], "")
    return text, 0, len(text)


def _worn_phrase(answer: Answer, chance: random.Random, _notes: list[str]) -> Seeded | None:
    if not answer.persona.catchphrases:
        return None
    phrase = answer.persona.catchphrases[0]
    text = f"{phrase}。{answer.text} {phrase}。"
    return text, 0, len(text)


SEEDERS: dict[RuleName, Callable[[Answer, random.Random, list[str]], Seeded | None]] = {
    "politeness": _other_register,
    "first_person": _other_word(
        ("私", "僕", "俺", "わし", "わらわ", "ボク", "オレ"),
        ("俺", "僕", "私", "わし", "あたし", "拙者"),
    ),
    "second_person": _other_word(
        ("あなた", "君", "お前", "貴方", "汝", "貴殿"), ("お前", "あんた", "貴様", "君", "てめえ")
    ),
    "role_language": _other_variety,
    "sentence_ending": _without_ending,
    "catchphrase_missing": _missing_phrase,
    "catchphrase_worn": _worn_phrase,
    "forbidden_word": _with_forbidden,
    "ai_admission": _with_admission,
    "instructions": _with_one_of(*_QUOTED_INSTRUCTIONS),
    "speaks_for_user": _with_user_turn,
    "author_note": _with_note,
    "foreign_text": _with_foreign,
    "broken_conjugation": _broken,
    "length": _too_long,
    "repetition": _said_twice,
    "repetition_over_turns": _said_before,
}


# ── publication ──


def rates() -> dict[RuleName, ErrorRate]:
    """Count the verdicts and the seeded faults."""
    seeded = json.loads((FOLDER / "seeded.json").read_text(encoding="utf-8"))
    counted = {}
    for rule in RULE_NAMES:
        verdicts = [row["right"] for row in rows_of(rule) if row["right"] is not None]
        counts = seeded[rule]
        counted[rule] = ErrorRate(
            len(verdicts), verdicts.count(False), counts["seeded"], counts["found"]
        )
    return counted


def interval(right: int, total: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share."""
    z = 1.96
    share, spread = right / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * (share * (1 - share) / total + spread / (4 * total)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def table() -> str:
    """Return the table of the rules' error rates in Markdown."""
    lines = [
        "| rule | marks read | wrong | precision (95 %) | seeded faults | found |",
        "|---|---:|---:|---|---:|---:|",
    ]
    for rule, rate in rates().items():
        if rate.precision is None:
            precision = "not measured"
        else:
            low, high = interval(rate.judged - rate.wrong, rate.judged)
            precision = f"{rate.precision:.2f} ({low:.2f}–{high:.2f})"
        recall = "—" if rate.recall is None else f"{rate.recall:.2f}"
        lines.append(
            f"| `{rule}` | {rate.judged} | {rate.wrong} | {precision} | {rate.seeded} | {recall} |"
        )
    return "\n".join(lines)


def publish() -> None:
    with PATH.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        for rule, rate in rates().items():
            rows.writerow([rule, rate.judged, rate.wrong, rate.seeded, rate.found])
    text = DOCS.read_text(encoding="utf-8")
    before, _, rest = text.partition(TABLE_START)
    after = rest.partition(TABLE_END)[2]
    DOCS.write_text(f"{before}{TABLE_START}\n{table()}\n{TABLE_END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    sampling = commands.add_parser("sample")
    sampling.add_argument("conversations", type=Path)
    sampling.add_argument("rules", nargs="*")
    commands.add_parser("recall").add_argument("conversations", type=Path)
    commands.add_parser("show").add_argument("rule", choices=RULE_NAMES)
    judging = commands.add_parser("judge")
    judging.add_argument("rule", choices=RULE_NAMES)
    judging.add_argument("wrong", type=int, nargs="*")
    commands.add_parser("publish")
    arguments = parser.parse_args()
    match arguments.command:
        case "sample":
            sample(arguments.conversations, arguments.rules)
        case "show":
            show(arguments.rule)
        case "judge":
            judge(arguments.rule, arguments.wrong)
        case "recall":
            recall(arguments.conversations)
        case "publish":
            publish()


if __name__ == "__main__":
    main()
