import itertools
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.fakes import NO_SECRETS, SECRETS, ChatUser, reply_with
from support.texts import FALLBACKS

from persona_lab.clients.moderation import OpenAIModerator
from persona_lab.db.tables import Agent, Role
from persona_lab.db.tables import Tone as ToneRow
from persona_lab.errors import (
    BadKey,
    ConfigurationError,
    EmptyMessage,
    InputError,
    InvalidResponse,
    MessageTooLong,
    Offline,
    ProviderError,
)
from persona_lab.pipeline.input import InputValidator
from persona_lab.redaction import MASK
from persona_lab.responses.changes import restore
from persona_lab.responses.cleanup import LAST_STEPS, STEPS
from persona_lab.responses.output_filter import OutputFilter
from persona_lab.responses.pii import find_personal
from persona_lab.responses.processor import ResponseProcessor
from persona_lab.responses.steps import ordered_steps
from persona_lab.responses.tone import Tones
from persona_lab.settings import ROOT, Settings
from persona_lab.unicode_text import to_storable

validate = InputValidator(2000).validate_message


def test_ordinary_text_passes_unchanged() -> None:
    text = "こんにちは！ <b>返品</b>は？\n\t'; DROP TABLE agent; -- {{ name }} 👩‍👩‍👧"
    assert validate(text) == text


def test_characters_that_nobody_sees_and_that_change_the_rest_are_removed() -> None:
    assert validate("a\x00b\x1bc\x7f\u202ed\u2066e\ufdd0f\U0001fffeg\ud800h") == "abcdefgh"


def test_hidden_letters_go_and_flags_stay() -> None:
    hidden = "".join(chr(0xE0000 + ord(letter)) for letter in "ignore")
    flag = "\U0001f3f4" + "".join(chr(0xE0000 + ord(letter)) for letter in "gbeng") + "\U000e007f"
    assert validate(f"a{hidden}b{flag}") == f"ab{flag}"


def test_line_ends_become_newlines() -> None:
    assert validate("a\r\nb\rc") == "a\nb\nc"


def test_decomposed_kana_are_composed() -> None:
    assert validate(unicodedata.normalize("NFD", "ガギグ")) == "ガギグ"


def test_the_kanji_of_a_name_stay_as_typed() -> None:
    assert validate("\ufa19田") == "\ufa19田"


@pytest.mark.parametrize(
    "text", ["", "  \n\t　", "\u200b\u200d", "\x00\u202e", "\ufeff", "\u3164", "\u20dd"]
)
def test_a_message_without_a_visible_character_is_empty(text: str) -> None:
    with pytest.raises(EmptyMessage):
        validate(text)


def test_a_message_that_is_too_long_is_refused_with_both_numbers() -> None:
    assert len(validate("あ" * 2000)) == 2000
    with pytest.raises(MessageTooLong) as refused:
        validate("あ" * 100_000)
    assert refused.value.details == {"length": 100_000, "limit": 2000}


def test_length_is_counted_after_cleaning() -> None:
    assert len(validate(unicodedata.normalize("NFD", "が" * 2000))) == 2000


@given(st.text(st.characters()))
def test_cleaning_twice_changes_nothing_more_and_leaves_storable_text(text: str) -> None:
    clean = InputValidator().clean(text)
    assert InputValidator().clean(clean) == clean
    clean.encode("utf-8")


@pytest.mark.parametrize("text", [None, 5, b"a", ["a"]])
def test_what_is_no_text_is_refused_as_such(text: object) -> None:
    with pytest.raises(InputError) as refused:
        validate(text)  # type: ignore[arg-type]
    assert refused.value.code == "invalid_input"


# ── personal data ─────────────────────────────────────────────────────────────────────────

PERSONAL = """
email | taro@example.com
email | ＴＡＲＯ＠ＥＸＡＭＰＬＥ．ＣＯＭ
email | メールはfoo.bar+x@mail.example.co.jpです
phone | 電話は03-1234-5678です
phone | ０９０－１２３４－５６７８
phone | 090 1234 5678
phone | 09012345678
phone | 0120-444-444
phone | 0120444444
phone | 050-1234-5678
phone | (03)1234-5678
phone | 03(1234)5678
phone | 0467-22-1234
phone | 電話0312345678
phone | +81-90-1234-5678
phone | +819012345678
phone | +81 3 1234 5678
phone | +1 (415) 555-2671
phone | +1-415-555-2671
phone | (415) 555-2671
phone | 415-555-2671
phone | 415.555.2671
phone | +44 20 7946 0958
phone | 020 7946 0958
phone | 01 23 45 67 89
phone | 080ー1234ー5678
address | 〒100-0001 東京都千代田区千代田1-1
address | 東京都千代田区丸の内1-2-3
address | 大阪府大阪市北区梅田三丁目1番3号
address | 神奈川県横浜市西区みなとみらい2-2-1
address | 北海道札幌市中央区北1条西2丁目
address | 渋谷区神南1-19-11
address | 埼玉県さいたま市大宮区桜木町1丁目7番地5
address | 京都府京都市下京区烏丸通塩小路下る東塩小路町901番地
address | 〒150-0041
address | 東京都港区芝公園4丁目2-8 タワーマンション301号室
address | 東京都新宿区西新宿２－８－１
address | 愛知県名古屋市中区三の丸三丁目1番2号
address | 千葉県浦安市舞浜１番地１
address | 長野県松本市大字里山辺1234
address | 京都府京都市下京区東塩小路町901
address | 北海道虻田郡倶知安町字山田204
address | 神奈川県横浜市中区本町１２３４
card | 4111 1111 1111 1111
card | 4111-1111-1111-1111
card | 5555555555554444
card | 378282246310005
card | ６０１１１１１１１１１１１１１７
card | 4222222222222
my_number | 123456789018
my_number | 1234-5678-9018
my_number | マイナンバーは1234 5678 9018です
my_number | 品番でなく個人番号1234 5678 9018
card | 会員番号とカード番号は4111 1111 1111 1111
card | Jane card 4111 1111 1111 1111
card | カード4111 1111 1111 1111 12/28
card | 4111 1111 1111 1111 123
card | 1 4111 1111 1111 1111
card | No.4111111111111111
phone | 0120-000-100
phone | 090-1000-2000
phone | 0120 100 200
phone | 受付番号 12、090-1234-5678
phone | TEL.03-1234-5678
phone | Tel.090-1234-5678
phone | 07700 900123
phone | Janet: 415-555-2671
phone | 555 123 4567
phone | 212 555 0123
phone | 555-123-4567
phone | 212 555-0123
phone | ２１２　５５５　０１２３
phone | +1 212 555 0199
phone | 1-800-555-0199
phone | 1 800 555 0199
phone | (800) 555-0199
phone | 電話番号：555 123 4567
phone | tel. 212 555 0123
phone | +49 30 901820
phone | +33 1 42 68 53 00
phone | +86 138 0013 8000
phone | +44 (0)20 7946 0958
phone | 0044 20 7946 0958
phone | +6561234567
phone | +4721234567
phone | +15551234567
phone | +1-555-123-4567
phone | +81-90-0000-0000
phone | 090-0000-0000
phone | 0120-000-000
address | 札幌市中央区北1条西2丁目
address | 神南1丁目19番11号渋谷区神南1丁目19番11号
"""
HARMLESS = """
注文番号は1234567890123456です
注文番号: 4111111111111111
2024-01-15
2026年11月24日
15:30
ISBN 978-4-10-101010-1
ISBN4-10-101010-1
9784101010106
¥1,234,567
1,000,000円
v1.2.3
バージョン10.15.7
192.168.1.10
3.14159265358979
送り状番号1234-5678-9018
契約番号0123-45-6789
横浜市一番の人気店
城下町一番の味
国内市場規模3-4倍
渋谷区で2-3日過ごす
千代田区が3-1で勝つ
東京都の人口は1400万人
新宿区内の2-3店舗
JAN 4901234567894
4901234567894
123456789012
受付番号 090-1234-5678
100-0001
第3章 1-2-3
1+1=2
+10000000
前年比+4521345600円
差は+98765432100です
+1234567890123
12345678
20241124041500
task-management-system-2024-plan
sk-learn
order 415-555-2671
2-3人
東京都庁は1991年にできた
横浜市の2つの区
人口は3-4万
2020-2021-2022
1990-1995
5-7-5の俳句
市販の1-2枚
午前10-12時
10 Best Ways to
I have 3 Good Friends on the Way
10.1000/182
0.1234567890
03:15-04:20
in 1984 3 people
chapters 100 200 3000
chapters 212 345 6789
第3章は212 555 0123ページ
pages 300 415 2671
555 items
2026 11 26
2026-11-26T10:45:40+09:00
2026-11-26 10:45:40.123456
10.0.0.1 and 255.255.255.0
2001:0db8:85a3:0000:0000:8a2e:0370:7334
ports 443 808 9000
256 512 1024
640 480 1024
128 256 512 1024 2048
200 300 4000
400 500 6000 people
212 555 0123 456
$555 123 4567
登録者は555 123 4567人です
2 000 000 people
150 000 000 km
001 002 003 004 005
001-002-003-004
00 44 20 79 46 09 58
AB-123-456-7890
型番 415-555-2671
order 415 555 2671
ISBN 978 4 10 101010 1
Windows 11 Google Drive
In 1969 Neil Armstrong, Houston, Texas
In 2024 Apple, Google and Microsoft
3 Good Reasons to Stay
The 1929 Wall Street crash
a 10 Minute Drive
Level 5 Food Court
In 1969 Abbey Road
The 2013 Silk Road
The 2019 High Court decision
In 2022 Supreme Court
the 1994 Mulholland Drive
2 Sesame Street books
4 Wall Street banks
5 Rules Of The Road
part number 4111111111111111
part no. 4111111111111111
Tracking number: 4111111111111111
Your tracking number is: 4111111111111111
お客様番号 090-1234-5678
ロット番号：03-1234-5678
図面番号03-1234-5678
案件番号03-1234-5678
棚番 03-1234-5678
confirmation code 415-555-2671
model 415-555-2671
IMEI: 490154203237518
IMEI 49-015420-323751-8
Ratio 300-400-5000
section 200.300.4000
01 02 03 04 05
注文番号は4111-1111-1111-1111ではなく、250-1234567-1234567です
京都府京都市下京区東塩小路町901人
長野県松本市本町立第2小学校
愛知県知多郡東浦町2024年
愛知県知多郡東浦町にはおよそ900軒
東京都千代田区丸の内2024
Fifth Avenue
"""


def rows(table: str) -> list[str]:
    return table.strip().splitlines()


@pytest.mark.parametrize("row", rows(PERSONAL))
def test_personal_data_is_found_whole(row: str) -> None:
    kind, _, text = row.partition(" | ")
    found = find_personal(text)
    assert [one.kind for one in found] == [kind]
    assert found[0].end - found[0].start >= 0.6 * len(text)  # words around it may stay


FRAMES = [
    "連絡先は{}です。", "会社は{}にあります", "お電話は、{} まで！", "Write to {} today.", "**{}**",
    "- {}\n-", "（{}）", "「{}」と言った。", "| {} | x |", "`{}`", "担当の田中が{}で承ります。",
]  # fmt: skip


@pytest.mark.parametrize("frame", FRAMES)
def test_personal_data_is_masked_in_any_sentence(frame: str) -> None:
    for row in rows(PERSONAL):
        text = row.partition(" | ")[2]
        data = find_personal(text)[0]
        item = text[data.start : data.end]
        if item == "0312345678" and "電話" not in frame and "連絡先" not in frame:
            continue  # ten digits without a gap are a phone number where they are called so
        content, applied = final(frame.format(item))
        assert applied == (f"mask:{data.kind}",)
        assert content[: frame.index("{")] == frame[: frame.index("{")]
        assert content.endswith(frame[frame.index("}") + 1 :])


@pytest.mark.parametrize("key", SECRETS, ids=lambda key: key[:8])
def test_a_key_is_found_whole(key: str) -> None:
    assert find_personal(f"鍵は{key}") == [(2, 2 + len(key), "key")]


@pytest.mark.parametrize("text", NO_SECRETS)
def test_a_word_that_begins_like_a_key_is_none(text: str) -> None:
    assert find_personal(f"これは{text}です") == []


@pytest.mark.parametrize("text", rows(HARMLESS))
def test_numbers_that_are_nobodys_stay(text: str) -> None:
    assert find_personal(text) == []


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("call {} now", "800 300 4000"),
        ("電話は{}です", "800 300 4000"),
        ("Call 24/7 {}", "555 123 4567"),
        ("the phone in room {}", "212 345 6789"),
        ("電話 {}", "01 02 03 04 05"),
        ("call 24/7 {}", "800-300-4000"),
        ("In order to reach me: {}", "415-555-2671"),
    ],
)
def test_three_numbers_in_a_row_are_a_phone_number_where_they_are_called_so(
    text: str, number: str
) -> None:
    at = text.index("{")
    assert find_personal(text.format(number)) == [(at, at + len(number), "phone")]


@pytest.mark.parametrize("digits", ["4111111111111112", "123456789012", "0000000000000000"])
def test_a_wrong_check_digit_makes_it_no_card_and_no_my_number(digits: str) -> None:
    assert find_personal(digits) == []


@pytest.mark.parametrize(
    "text",
    [
        "県市" * 300,
        "1-" * 600,
        "12 " + "Aa " * 300,
        "a." * 500 + "@",
        "東京都港区" + "ヶ" * 60,
        *("東京都港区" + each * 60 for each in ("の亜", "が", "つヶ", "り", "ー", "1条", "一の")),
        "1 " * 2000,
        "212 555 " * 400,
        "+1 " + "1." * 900,
        "12 " + "Aa " * 300 + "St",
        "12 Aa St" + ", Aa" + " Bb" * 900,
        "1 " + "Aa of the " * 300,
        "1 Aa, Bb " * 200,
        "1" + " " * 2000,
        "東京都港区" + "町" * 60,
        "東京都港区" + "の字" * 60 + "1",
        "415-555-2671 " * 300,
        "注文番号 " + "1 " * 900 + "ではなく",
    ],
)
def test_no_text_makes_the_search_slow(text: str) -> None:
    began = time.process_time()
    find_personal(text)
    assert time.process_time() - began < 1


# ── answers ───────────────────────────────────────────────────────────────────────────────


def output_filter(**switches: bool) -> OutputFilter:
    path = ROOT / "templates" / "guards.yaml"
    return OutputFilter(path, lambda agent, reason: f"<{agent.name}:{reason}>", **switches)


def persona(*roles: str, tones: tuple[str, ...] = (), **fields: object) -> Agent:
    agent = Agent(name="みさき", **fields)
    agent.roles = [Role(name=role) for role in roles]
    agent.tones = [ToneRow(name=tone) for tone in tones]
    return agent


SUPPORT = persona("カスタマーサポート", greeting="窓口は0120-444-444です。")
TONES = Tones(ROOT / "templates" / "tones.yaml")
ALL = ResponseProcessor(ordered_steps(output_filter().step, TONES))


def final(text: str, agent: Agent | None = None) -> tuple[str, tuple[str, ...]]:
    done = ALL.process(text, agent or persona())
    return done.content, done.applied


@pytest.mark.parametrize(
    ("text", "masked", "applied"),
    [
        ("メールはtaro@example.comへ。", "メールは［メールアドレス］へ。", ("mask:email",)),
        ("TEL ０３（１２３４）５６７８！", "TEL ［電話番号］！", ("mask:phone",)),
        ("090･1234･5678 か 090/1234/5678", "［電話番号］ か ［電話番号］", ("mask:phone",)),
        ("03/12/2026、1/2/2026、10/10/2026 です", "03/12/2026、1/2/2026、10/10/2026 です", ()),
        ("カードは4111-1111-1111-1111。", "カードは［カード番号］。", ("mask:card",)),
        ("番号は123456789018です", "番号は［個人番号］です", ("mask:my_number",)),
        ("東京都港区芝公園4丁目2-8です", "［住所］です", ("mask:address",)),
        (f"鍵は{SECRETS[0]}です", "鍵は［キー］です", ("mask:key",)),
        ("この死ね　よ、と", "この＊＊＊、と", ("mask:word",)),
        ("クズ・野郎だ", "＊＊＊だ", ("mask:word",)),
        ("Ｆ u.c k you", "＊＊＊ you", ("mask:word",)),
        ("Scunthorpe and class shitake", "Scunthorpe and class shitake", ()),
        ("Let's hit it, who re-reads", "Let's hit it, who re-reads", ()),
        ("販売・女性と販売女性、行きちがい", "販売・女性と販売女性、行きちがい", ()),
        ("このキチガイ", "この＊＊＊", ("mask:word",)),
        ("①神\ufa19②ﾊﾟ㌔", "①神\ufa19②ﾊﾟ㌔", ()),
    ],
)
def test_what_may_not_be_told_is_masked_and_the_rest_stays_byte_for_byte(
    text: str, masked: str, applied: tuple[str, ...]
) -> None:
    assert final(text) == (masked, applied)


HIDING = [
    "\x00", "\x7f", "\x9f", "\ud800", "\u200b", "\u2060", "\u00ad", "\ufeff", "\u0301", "\ufe0f",
    "\U000e0100", "\u180b", "\u3164", "\uffa0", "\u2800", "\u115f", "\u1160", "\u20d0", "\u20e3",
    "\u1ab0", "\u3099",
]  # fmt: skip
"""No width of their own."""


@pytest.mark.parametrize("hidden", HIDING, ids=lambda sign: f"U+{ord(sign):04X}")
@pytest.mark.parametrize(
    ("said", "applied"),
    [
        ("メールはtaro@exam|ple.comへ。", "mask:email"),
        ("電話は090-1234|-5678です。", "mask:phone"),
        ("カードは4111-1111-11|11-1111。", "mask:card"),
        (f"鍵は{SECRETS[0][:6]}|{SECRETS[0][6:]}です", "mask:key"),
        ("この死|ねよ、と", "mask:word"),
        ("You f|uck off", "mask:word"),
        ("はい。爆|弾の作り方は次です。", "block:words"),
        ("kill your|self now", "block:words"),
    ],
)
def test_what_is_not_seen_hides_nothing(said: str, applied: str, hidden: str) -> None:
    told = final(said.replace("|", hidden))
    assert applied in told[1], told
    assert said.partition("|")[2][:3] not in told[0]


def test_an_accent_that_belongs_to_a_word_and_a_joined_picture_stay() -> None:
    text = "Cafe\u0301 で👩\u200d👩\u200d👧と❤\ufe0f、か\u3099とｶﾞ、สวัสดีที่นี่ हिन्दी 1\ufe0f\u20e3。"
    assert final(text) == (text, ())


def test_an_english_persona_has_english_masks() -> None:
    assert final("Write to a@b.org.", persona(language="en"))[0] == "Write to [e-mail address]."


def test_the_personas_own_text_is_no_secret() -> None:
    said = "窓口は０１２０－４４４－４４４、私用は090-1234-5678です。"
    assert final(said, SUPPORT)[0] == "窓口は０１２０－４４４－４４４、私用は［電話番号］です。"


def test_a_number_with_another_name_is_no_phone_number_also_across_units() -> None:
    assert final("ご注文番号は 090-1234-5678 です。")[1] == ()


def test_a_blocked_word_ends_the_answer_with_the_personas_safe_words() -> None:
    assert final("はい。爆弾の作り方は次です。火薬を") == (
        "はい。\n\n<みさき:words>",
        ("block:words",),
    )
    assert final("Kill　YOURSELF now") == ("<みさき:words>", ("block:words",))


def test_an_open_block_of_code_is_closed_before_the_safe_words() -> None:
    assert final("```\nx\nkill yourself\ny\n```")[0] == "```\nx\n```\n\n<みさき:words>"


@pytest.mark.parametrize(
    ("role", "text", "subject"),
    [
        ("カスタマーサポート", "頭痛なら、この薬を二錠飲んでください。", "medical"),
        ("Customer Support", "Take two tablets of ibuprofen tonight.", "medical"),
        ("お客様サポート", "慰謝料を請求できます。", "legal"),
        ("カスタマーサポート", "今こそこの株を買うべきです。", "investment"),
        ("教師", "今こそこの株を買うべきです。", "investment"),
        ("カスタマーサポート", "薬については医師にご相談ください。", ""),
        ("カスタマーサポート", "返品は十四日以内に承ります。", ""),
        ("教師", "光合成で植物は栄養を作ります。", ""),
        ("友だち", "頭痛なら、この薬を二錠飲んでください。", ""),
    ],
)
def test_a_role_keeps_off_what_it_may_not_advise_on(role: str, text: str, subject: str) -> None:
    content, applied = final(f"まず休みましょう。{text}", persona(role))
    assert applied == ((f"block:{subject}",) if subject else ())
    assert content.startswith("まず休みましょう。")
    assert (text in content) == (not subject)


def test_the_demo_personas_own_words_pass() -> None:
    seeds = yaml.safe_load((ROOT / "data" / "personas.yaml").read_text("utf-8"))["personas"]
    assert seeds
    for seed in seeds:
        agent = persona(*seed["roles"], language=seed["language"])
        for said in [seed["greeting"], *(each["ai"] for each in seed["examples"])]:
            assert final(said, agent)[1] == (), said


PIECES = [
    "さくら", "みさき：", "taro@", "example.com", "０９０", "-", "1234", "-5678", " ", "　", "。",
    "4111 1111", " 1111 1111", "東京都", "港区", "芝公園4丁目2-8", "sk-proj-abcdefgh", "12345678",
    "死", "ね", "よ", "爆弾の", "作り方", "kill ", "yourself", "fu", "ck", "、", "です", "だ",
    "-----BEGIN RSA ", "PRIVATE KEY-----", "\nMIIa\n", "-----END RSA PRIVATE KEY-----", "行く",
    "薬", "二錠", "飲んでください", "医師", "Mr. ", "A. ", "ユーザー：", "\n\n\n", "「", "」", "\n",
    "😊", "？", "```", "212 555", " 0123", "(212) ", "+44 20", " 7946 0958", "1-800-", "555-0199",
    "20500", "chapters ",
]  # fmt: skip
texts = st.one_of(st.lists(st.sampled_from(PIECES), max_size=25).map("".join), st.text(max_size=60))
PERSONAS = [
    persona("カスタマーサポート", tones=("敬語",), greeting="090-1234-5678"),
    persona("友だち", tones=("関西弁",)),
    persona(),
    persona("Teacher", tones=("Casual",), language="en"),
]


@settings(deadline=None)  # the first text opens SudachiPy's dictionary
@given(texts, st.lists(st.integers(0, 200), max_size=14), st.sampled_from(PERSONAS))
@example("電話は０９０-1234-5678だ。爆弾の作り方", [1, 5, 9, 12, 20], PERSONAS[0])
def test_all_steps_together_give_the_same_for_every_cut(
    text: str, cuts: list[int], agent: Agent
) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    stream = ALL.open_stream(agent)
    streamed = "".join(stream.feed(text[a:b]) for a, b in itertools.pairwise(edges))
    rest, applied = stream.finish()
    whole = ALL.process(text, agent)
    assert (streamed + rest, applied) == (whole.content, whole.applied)


@settings(deadline=None)
@given(texts, st.lists(st.integers(0, 200), max_size=14), st.sampled_from(PERSONAS))
@example("電話は０９０-1234-5678だ。爆弾の作り方", [1, 5, 9, 12, 20], PERSONAS[0])
def test_changes_of_all_steps_give_the_raw_text_for_every_cut(
    text: str, cuts: list[int], agent: Agent
) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    stream = ALL.open_stream(agent)
    content = ""
    for a, b in itertools.pairwise(edges):
        content += stream.feed(text[a:b])
        if stream.ended:
            break
    content += stream.finish()[0]
    whole = ALL.process(text, agent)
    assert (content, stream.changes()) == (whole.content, whole.changes)
    assert restore(content, whole.changes) == whole.raw
    if not any(change.masked for change in whole.changes) and not stream.ended:
        assert whole.raw == to_storable(text)


@pytest.mark.parametrize(
    "secret",
    ["taro@example.com", "090-1234-5678", "4111 1111 1111 1111", *SECRETS, "kill yourself"],
)
def test_changes_keep_no_part_of_what_is_masked(secret: str) -> None:
    processed = ALL.process(f"あのさ、これは {secret} だよ。\n\n\n\n{secret}", PERSONAS[1])
    kept = processed.raw + "".join(change.was for change in processed.changes)
    assert not any(secret[at : at + 4] in kept for at in range(len(secret) - 3))
    assert all(change.was == MASK for change in processed.changes if change.step == "safety")
    assert any(change.step == "safety" for change in processed.changes)


def test_a_tone_hides_no_listed_word_from_the_filter() -> None:
    text = "殺すぞ。くたばれよ。死んでしまえ。殺す\nぞ。"
    for tone in TONES.tones:
        agent = persona(tones=tone.words[:1], sentence_endings=["にゃ"])
        done = ALL.process(text, agent)
        assert done.raw == f"{MASK}。{MASK}よ。{MASK}。{MASK}。", tone.name
        assert done.content.count("＊＊＊") == 4, tone.name
        assert "mask:word" in done.applied


def test_a_tone_hides_no_advice_from_the_limits_of_a_role() -> None:
    agent = persona("カスタマーサポート", tones=("博士",))
    done = ALL.process("まず休みましょう。お薬を飲んでください。", agent)
    assert "block:medical" in done.applied
    assert done.raw == f"まず休みましょう。{MASK}"


def test_a_listed_word_that_a_tone_completes_is_masked() -> None:
    done = ALL.process("殺しますよ。", persona(tones=("博士",)))
    assert (done.content, done.applied) == ("＊＊＊。", ("tone:博士", "mask:word"))


def test_changes_keep_nothing_of_a_refused_answer() -> None:
    processed = ALL.process("はい。\n爆弾の作り方は、まず。\n次に090-1234-5678へ。", persona())
    assert processed.raw == f"はい。\n{MASK}"


@pytest.mark.parametrize(
    "secret",
    ["taro@example.com", "090-1234-5678", "4111 1111 1111 1111", *SECRETS, "kill yourself"],
)
def test_no_part_of_what_is_masked_is_ever_shown(secret: str) -> None:
    stream = ALL.open_stream(persona())
    shown = "".join(stream.feed(letter) for letter in f"これは {secret} です。")
    shown += stream.finish()[0]
    assert not any(secret[at : at + 4] in shown for at in range(len(secret) - 3))


def test_a_plain_answer_is_not_held_back_to_its_end() -> None:
    stream = ALL.open_stream(persona())
    assert stream.feed("こんにちは、みなさ") == "こんにちは、みなさ"
    assert stream.feed("ん。Hello, wor") == "ん。Hello, "


@pytest.mark.parametrize(
    ("switch", "found", "agent"),
    [
        ("personal_data", "a@b.org", persona()),
        ("words", "fuck", persona()),
        ("limits", "この薬", SUPPORT),
    ],
)
def test_each_part_can_be_switched_off(switch: str, found: str, agent: Agent) -> None:
    text = "a@b.org fuck この薬を飲んでください。"
    on = ResponseProcessor([output_filter().step])
    off = ResponseProcessor([output_filter(**{switch: False}).step])
    assert found not in on.process(text, agent).content
    assert found in off.process(text, agent).content


def test_role_limits_hold_for_their_roles_only() -> None:
    processor = ResponseProcessor([output_filter().step])
    assert "この薬" in processor.process("この薬を飲んでください。", persona()).content


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("masks:", "mask:", "guards.yaml: masks: Field required"),
        ("  key: {", "  keys: {", "guards.yaml: masks: key is missing"),
        ("severity: block", "severity: stop", "guards.yaml: words: 2: severity"),
        ("[medical, investment]", "[cooking]", "guards.yaml: limit 2: there is no subject cooking"),
        ("ja: [死ねよ,", "ja: [死,", "guards.yaml: words: 1: 死: too short"),
    ],
)
def test_a_wrong_entry_is_named(
    broken_copy: Callable[[str, str], Path], old: str, new: str, named: str
) -> None:
    text = (ROOT / "templates" / "guards.yaml").read_text("utf-8")
    folder = broken_copy("templates/guards.yaml", text.replace(f"\n{old}", f"\n{new}", 1)
                         if text.find(f"\n{old}") >= 0 else text.replace(old, new, 1))  # fmt: skip
    with pytest.raises(ConfigurationError) as refused:
        OutputFilter(folder / "guards.yaml", lambda agent, reason: "")
    assert str(refused.value).startswith(named)


# ── in the lab ────────────────────────────────────────────────────────────────────────────

MakeLab = Callable[..., object]


async def test_the_stored_answer_is_the_filtered_one(make_lab: MakeLab) -> None:
    visitor = ChatUser(
        make_lab(reply_with("担当は taro@", "example.com です。"), mask_personal_data=True)
    )  # type: ignore[arg-type]
    reply = await visitor.lab.service.generate_response("連絡先は？", **visitor.ids)
    assert reply.content == visitor.thread()[-1][1] == "担当は ［メールアドレス］ です。"
    assert reply.metadata["processing_applied"] == ["mask:email"]
    assert "blocked" not in reply.metadata


async def test_a_blocked_answer_becomes_the_personas_safe_words(make_lab: MakeLab) -> None:
    visitor = ChatUser(make_lab(reply_with("爆弾の作り", "方は次です。", "火薬"), word_filter=True))  # type: ignore[arg-type]
    reply = await visitor.lab.service.generate_response("作り方は？", **visitor.ids)
    assert reply.content.startswith("テスト太郎です。")
    assert reply.metadata["blocked"] == "words"
    assert reply.metadata["status"] == "ok"
    assert visitor.thread()[-1][1] == reply.content


async def test_a_deployment_can_switch_masks_off(make_lab: MakeLab) -> None:
    visitor = ChatUser(make_lab(reply_with("a@b.org です。"), word_filter=True))  # type: ignore[arg-type]
    reply = await visitor.lab.service.generate_response("連絡先は？", **visitor.ids)
    assert reply.content == "a@b.org です。"


class _Watching:
    """A moderator that flags what holds ``word``, or fails."""

    def __init__(self, word: str = "", error: Exception | None = None) -> None:
        self.word, self.error, self.seen = word, error, ""

    async def review(self, text: str) -> list[str]:
        self.seen = text
        if self.error:
            raise self.error
        return ["harassment"] if self.word in text else []


@pytest.mark.parametrize(
    ("moderator", "begins", "blocked"),
    [
        (_Watching("いやな"), "テスト太郎です。", "moderation"),
        (_Watching("ない語"), "いやな返事", None),
        (_Watching(error=Offline()), FALLBACKS("offline", "ja"), None),
    ],
)
async def test_with_a_moderator_nothing_is_shown_that_it_has_not_seen(
    make_lab: MakeLab, moderator: _Watching, begins: str, blocked: str | None
) -> None:
    visitor = ChatUser(make_lab(reply_with("いやな", "返事")))  # type: ignore[arg-type]
    visitor.lab.service.output_filter.moderator = moderator
    events = [
        event async for event in visitor.lab.service.generate_streaming("はい", **visitor.ids)
    ]
    shown = "".join(event.content for event in events if event.type == "delta")
    assert moderator.seen == "いやな返事"
    assert shown == events[-1].content == visitor.thread()[-1][1]
    assert shown.startswith(begins)
    assert events[-1].metadata.get("blocked") == blocked


def _endpoint(
    status: int, body: object, *, busy: int = 0
) -> tuple[OpenAIModerator, SimpleNamespace]:
    """``busy``: requests that it turns away first."""
    asked = SimpleNamespace(path="", body=b"", times=0)

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.path, asked.body = request.url.path, request.content
        asked.times += 1
        if asked.times <= busy:
            return httpx2.Response(503, headers={"retry-after-ms": "1"})
        return httpx2.Response(status, json=body)

    client = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
    settings = Settings(openai_api_key="sk-test-0123456789", moderation="openai")
    return OpenAIModerator(lambda: settings, http_client=client), asked


async def test_openais_endpoint_is_asked_for_its_categories() -> None:
    found = {
        "flagged": True,
        "categories": {"self-harm": True, "hate": False},
        "category_scores": {},
    }
    moderator, asked = _endpoint(200, {"id": "m", "model": "x", "results": [found]})
    assert await moderator.review("いやな返事") == ["self-harm"]
    assert asked.path == "/v1/moderations"
    assert "いやな返事" in asked.body.decode()
    fine, _ = _endpoint(200, {"id": "m", "model": "x", "results": [{**found, "flagged": False}]})
    assert await fine.review("はい") == []


async def test_a_busy_endpoint_is_asked_again_and_costs_no_answer() -> None:
    fine = {"flagged": False, "categories": {}, "category_scores": {}}
    moderator, asked = _endpoint(200, {"id": "m", "model": "x", "results": [fine]}, busy=2)
    assert await moderator.review("はい") == []
    assert asked.times == 3
    moderator, _ = _endpoint(200, {}, busy=9)
    with pytest.raises(ProviderError):
        await moderator.review("はい")


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [(401, {}, BadKey), (500, {}, ProviderError), (200, {"results": []}, InvalidResponse)],
)
async def test_an_endpoint_that_does_not_answer_is_our_error(
    status: int, body: object, error: type[ProviderError]
) -> None:
    moderator, _ = _endpoint(status, body)
    with pytest.raises(error):
        await moderator.review("はい")


@pytest.mark.parametrize(
    ("language", "answer"),
    [
        ("en", "You can report the issue here, and I'd be happy to refund you."),
        ("en", "You should buy it now while it is still in stock."),
        ("en", "Take the pillow back, and take your tablet to our repair desk."),
        ("en", "It is the flute you ordered."),
        ("en", "Every return is guaranteed within 30 days."),
        ("en", "We take back old phones and tablets."),
        ("ja", "4月から値上がりしますので、必ずご確認ください。"),
        ("ja", "為替によりお買い上げ価格が変わりますので、ご了承ください。"),
        ("ja", "専用カプセルで、お飲みものを抽出します。"),
        ("ja", "違法コピーは対象外です。"),
        ("ja", "インフルエンザの症状は、高い熱とせきです。"),
        ("ja", "熱心にがんばっていらっしゃるのですね。"),
        ("ja", "株式会社ことり文具の売り場では、こちらがおすすめです。"),
        ("ja", "薬局の隣ですので、お茶を飲んでお待ちください。"),
    ],
)
def test_what_any_shop_or_teacher_says_is_no_advice(language: str, answer: str) -> None:
    guards = OutputFilter(ROOT / "templates" / "guards.yaml", lambda agent, reason: reason)
    processor = ResponseProcessor([*STEPS, guards.step, *LAST_STEPS])
    role = "カスタマーサポート" if language == "ja" else "Customer Support"
    agent = Agent(name="みさき", language=language, roles=[Role(name=role)])
    assert processor.process(answer, agent).content == answer


def test_a_heap_of_marks_is_cut_before_it_is_composed() -> None:
    heap = "a" + "\u0301" * 500 + "\u0327" * 500
    assert len(validate(heap)) <= 31
    assert validate("か\u3099") == "が"
    with pytest.raises(MessageTooLong):
        validate(heap * 1000)
