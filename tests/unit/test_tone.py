"""Tones: the rules of ``templates/tones.yaml``, and what a stream of sentences becomes."""

import csv
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.fakes import ChatUser, reply_with
from support.negations import count_negations
from support.roleplay import read_answers

from persona_lab.db.tables import Agent
from persona_lab.db.tables import Tone as ToneRow
from persona_lab.errors import TemplateError
from persona_lab.japanese import to_casual, to_plain, to_polite
from persona_lab.japanese.morphology import sentences
from persona_lab.responses.cleanup import LAST_STEPS, STEPS
from persona_lab.responses.processor import ResponseProcessor
from persona_lab.responses.tone import Tone, ToneFilter, Tones
from persona_lab.settings import ROOT

TONES = Tones(ROOT / "templates" / "tones.yaml")
EXAMPLES = [(tone, said, wanted) for tone in TONES.tones for said, wanted in tone.examples.items()]
processor = ResponseProcessor([*STEPS, TONES.step, *LAST_STEPS])


def speaking(*tones: str, language: str = "ja", **fields: object) -> Agent:
    agent = Agent(name="さくら", language=language, **fields)
    agent.tones = [ToneRow(name=tone) for tone in tones]
    return agent


def final(text: str, *tones: str, **fields: object) -> str:
    return processor.process(text, speaking(*tones, **fields)).content


@pytest.mark.parametrize(("tone", "said", "wanted"), EXAMPLES, ids=lambda x: getattr(x, "name", x))
def test_each_tone_does_what_its_examples_say(tone: object, said: str, wanted: str) -> None:
    assert tone.apply(said) == wanted  # type: ignore[attr-defined]


@pytest.mark.parametrize("tone", TONES.tones, ids=lambda tone: tone.name)
def test_a_tone_applied_twice_is_applied_once(tone: object) -> None:
    with (ROOT / "tests" / "data" / "conversions.csv").open(encoding="utf-8", newline="") as file:
        said = [each for row in csv.DictReader(file) for each in sentences(row["from"])]
    assert said
    for sentence in said:
        once = tone.apply(sentence, endings=["にゃ"])  # type: ignore[attr-defined]
        assert tone.apply(once, endings=["にゃ"]) == once  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("tone", "text"),
    [
        ("敬語", "はい、明日も開いております。お待ちしております！"),
        ("カジュアル", "うわ、それはへこむよね。何があったの？"),
        ("関西弁", "そら、うちのたこ焼きやろ。外はかりっと、中はとろっとやで。"),
        ("お嬢様言葉", "十円であの素朴な甘さ、たまりませんわ！"),
        ("武士言葉", "拙者は三毛之介。断じて飼い猫ではござらぬ。"),
        ("博士", "その通りじゃよ。"),
    ],
)
def test_what_is_in_the_tone_already_stays_byte_for_byte(tone: str, text: str) -> None:
    done = processor.process(text, speaking(tone))
    assert (done.content, done.applied) == (text, ())


def test_a_changed_answer_names_the_tone() -> None:
    done = processor.process("明日は雨だ。", speaking("Formal"))
    assert (done.content, done.applied) == ("明日は雨です。", ("tone:敬語",))


def test_the_first_of_the_personas_tones_that_is_known_counts() -> None:
    assert final("明日は雨だよ。", "簡潔", "敬語", "関西弁") == "明日は雨ですよ。"
    assert final("明日は雨です。", "関西弁", "敬語") == "明日は雨やで。"
    assert final("明日は雨だ。", "簡潔") == "明日は雨だ。"


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("行くのよ。", "行くのにゃ。"),
        ("もう思い出せないの。", "もう思い出せないのにゃ。"),
        ("何が来るの？", "何が来るのにゃ？"),
        ("一緒に行くよね？", "一緒に行くにゃ？"),
        ("それは嬉しいわね。", "それは嬉しいにゃ。"),
        ("待ってください。", "待ってくださいにゃ。"),
        ("話を聞かせてくれ。", "話を聞かせてくれにゃ。"),
        ("もちろんさ！", "もちろんにゃ！"),
        ("一人では危険よ。", "一人では危険にゃ。"),
        ("押すなよ！", "押すなにゃ！"),
    ],
)
def test_an_ending_takes_the_place_of_the_particles(said: str, wanted: str) -> None:
    assert final(said, "語尾", sentence_endings=["にゃ"]) == wanted


@pytest.mark.parametrize(
    "said",
    [
        *("行くな！", "ここを開けるな。", "よく見えるな。"),
        *("何か…", "誰か！", "夢のような…", "どこかで見たような…"),
        *("聞け、冒険者たちよ。", "ようこそ、レインよ。", "力を見せてみよ。"),
        *("なかなかの根性や。", "面白いやないか。", "よう来たのじゃ。"),
    ],
)
def test_an_ending_leaves_what_it_would_turn_round(said: str) -> None:
    assert final(said, "語尾", sentence_endings=["にゃ"]) == said


def test_the_personas_own_endings_stand_at_its_sentences() -> None:
    said = final("魚です。食べたいよ！どこ？", "語尾", sentence_endings=["にゃ", "にゃん"])
    assert said == "魚ですにゃ。食べたいにゃ！どこ？"
    assert final("魚だにゃん。", "語尾", sentence_endings=["にゃ", "にゃん"]) == "魚だにゃん。"
    assert final("魚です。", "語尾") == "魚です。"


KEPT = """「行く。」と『待て。来い。』
`だ。` と https://example.com/だ を見る
| 列だ。 | 値だ。 |
# 見出しだ。
> 引用だ。
- 材料を切る
```py
x = "だ。"
```
"""


def test_quotes_code_tables_headings_and_list_items_stay() -> None:
    assert final(KEPT + "終わりだ。", "敬語") == KEPT.replace("見る", "見ます") + "終わりです。"


def test_the_personas_name_and_catchphrases_stay() -> None:
    agent = speaking("敬語", catchphrases=["まあ、なんとかなる"])
    agent.name = "行くぞう"
    said = processor.process("行くぞうだ。まあ、なんとかなる。", agent).content
    assert said == "行くぞうです。まあ、なんとかなる。"


@pytest.mark.parametrize("language", ["ja", "en"])
@pytest.mark.parametrize("tone", ["Polite", "Casual", "Samurai", "関西弁"])
def test_an_english_answer_stays(language: str, tone: str) -> None:
    text = "I'll go. You do that, e.g. now! It's `だ` 3.14…"
    assert final(text, tone, language=language) == text


def test_japanese_of_an_english_persona_stays() -> None:
    assert final("It says: 明日は雨だ。", "Polite", language="en") == "It says: 明日は雨だ。"


class Unchanged(Tone):
    """A tone that changes nothing."""

    def apply(self, sentence: str, **_: object) -> str:
        """Return the sentence."""
        return sentence


PIECES = [
    "明日は雨だ。", "行くよ", "？", "！", "…", "\n", "\n\n", "「行く。", "」", "『", "』", "`",
    "（笑）", "```", "~~~", "| a だ。|", "# だ", "> だ。", "- 切る", "です。", "Hello. ", '"', "😊",
    "さくら", "：", "ユーザー：", " ", "。", "待って", "“", "”",
]  # fmt: skip
texts = st.lists(st.sampled_from(PIECES), max_size=25).map("".join)


@settings(deadline=None)  # the first text opens SudachiPy's dictionary
@given(texts, st.lists(st.integers(0, 120), max_size=12), st.sampled_from(TONES.tones))
@example("「行く。来る。」と言う。（笑）", [1, 4, 8], TONES.tones[0])
def test_a_tones_final_text_does_not_depend_on_the_cuts(
    text: str, cuts: list[int], tone: object
) -> None:
    agent = speaking(tone.name, sentence_endings=["にゃ"])  # type: ignore[attr-defined]
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    stream = processor.open_stream(agent)
    streamed = "".join(stream.feed(text[a:b]) for a, b in itertools.pairwise(edges))
    rest, applied = stream.finish()
    whole = processor.process(text, agent)
    assert (streamed + rest, applied) == (whole.content, whole.applied)


def test_a_stream_holds_back_the_unfinished_sentence_and_no_more() -> None:
    stream = processor.open_stream(speaking("敬語"))
    given_out = [stream.feed(piece) for piece in ("雨だ", "。傘", "を買う", "よ。\n", "`x` だ")]
    assert given_out == ["", "雨です。", "", "", "傘を買いますよ。\n"]
    assert stream.finish()[0] == "`x` です"


def test_the_unfinished_sentence_is_pending_as_the_model_wrote_it() -> None:
    stream = processor.open_stream(speaking("敬語"))
    seen = [
        (stream.feed(piece), stream.pending) for piece in ("雨だ", "。傘", "を買う", "よ。\n次")
    ]
    assert seen == [
        ("", "雨だ"),
        ("雨です。", "傘"),
        ("", "傘を買う"),
        ("傘を買いますよ。\n", "次"),
    ]
    stream.finish()


@given(texts, st.sampled_from(TONES.tones))
def test_finished_and_pending_text_are_the_whole_text(text: str, tone: object) -> None:
    """Where the tone changes nothing, a reader sees all of it, in order, at every moment."""
    agent = speaking(tone.name)  # type: ignore[attr-defined]
    filter_ = ToneFilter(Unchanged(name="-", words=("-",), base="plain"), agent)
    finished = ""
    for read, character in enumerate(text, 1):
        finished += filter_.feed(character)
        assert finished + filter_.pending == text[:read]


def test_english_needs_no_sudachipy() -> None:
    code = (
        "import sys; from persona_lab.settings import ROOT; from persona_lab.models import *\n"
        "from persona_lab.responses.tone import Tones\n"
        "from persona_lab.responses.cleanup import STEPS\n"
        "from persona_lab.responses.processor import ResponseProcessor\n"
        "agent = Agent(name='A', language='ja'); agent.tones = [Tone(name='Polite')]\n"
        "tones = Tones(ROOT / 'templates' / 'tones.yaml')\n"
        "ResponseProcessor([*STEPS, tones.step]).process('Hello. Is it fine?', agent)\n"
        "sys.exit('sudachipy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("tones: [{name: a, words: [a]}]", "tone 1: has neither"),
        ("tones: [{name: a, words: [a], base: x}]", "tone 1: base"),
        ("tones: [{name: a, words: [a], base: plain, colour: x}]", "tone 1: colour"),
        ("tones: [{name: a, words: [a], rules: [{pattern: [だ]}]}]", "tone 1: rule 1: replacement"),
        (
            "tones: [{name: a, words: [a], rules: [{pattern: [だ], replacement: '{2}'}]}]",
            "tone 1: rule 1: replacement: {2}",
        ),
        (
            "tones: [{name: a, words: [a], rules: [{pattern: [だ], replacement: '{1.x}'}]}]",
            "tone 1: rule 1: replacement: {1.x}",
        ),
        (
            "tones: [{name: a, words: [a], rules: [{pattern: [だ], replacement: '{x}'}]}]",
            "tone 1: rule 1: replacement: there is no {x}",
        ),
        (
            "tones: [{name: a, words: [a], rules: [{pattern: [{kin: 動詞}], replacement: x}]}]",
            "tone 1: rule 1: pattern 1: kin",
        ),
        (
            "tones: [{name: a, words: [a], rules: [{words: [だ], replacement: や}]}]",
            'tone 1: rule 1: "words" is now "pattern"',
        ),
        (
            "tones: [{name: a, words: [a], rules: [{pattern: [だ], becomes: や}]}]",
            'tone 1: rule 1: "becomes" is now "replacement"',
        ),
        (
            "tones: [{name: a, words: [a], base: plain, settled: [や]}]",
            'tone 1: "settled" is now "already_matches"',
        ),
        ("tones: [", "line 2"),
    ],
)
def test_a_wrong_rule_is_named(
    broken_copy: Callable[[str, str], Path], text: str, named: str
) -> None:
    folder = broken_copy("templates/tones.yaml", text)
    with pytest.raises(TemplateError) as refused:
        Tones(folder / "tones.yaml")
    assert str(refused.value).startswith(f"tones.yaml: {named}")


@pytest.mark.parametrize(("on", "kept"), [(True, "明日は雨です。"), (False, "明日は雨だ。")])
async def test_a_deployment_can_switch_tones_off(
    make_lab: Callable[..., object], on: bool, kept: str
) -> None:
    visitor = ChatUser(make_lab(reply_with("明日は", "雨だ。"), tone_adjustment=on))  # type: ignore[arg-type]
    reply = await visitor.lab.service.generate_response("天気は？", **visitor.ids)
    assert reply.content == kept
    assert reply.metadata["processing_applied"] == (["tone:敬語"] if on else [])
    assert visitor.thread()[-1][1] == kept


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("（扉に向かって歩き出す）\nそうだね。", "（扉に向かって歩き出す）\nそうですね。"),
        ("（決意を込めて）行くよ。", "（決意を込めて）行きますよ。"),
        ("*微笑む* そうだね。", "*微笑む* そうですね。"),
        ("今日は（日曜だ）休みだ。", "今日は（日曜だ）休みです。"),
        ("彼は頷く。\n「うん、そうだ」\n空を見る。", "彼は頷く。\n「はい、そうです」\n空を見る。"),
        ("さくら「行くよ」", "さくら「行きますよ」"),
        ("景色がよく見えるな。", "景色がよく見えるな。"),
        ("そんなこと言うな。", "そんなこと言うな。"),
        ("そこにあるな。気になるな。そう思うな。", "そこにあるな。気になるな。そう思うな。"),
        ("動くな、みんな。", "動くな、みんな。"),
        ("落としてしまって…。", "落としてしまって…。"),
        ("消えて…いく。", "消えて…いきます。"),
        ("心を込めて。", "心を込めて。"),
        ("ちょっと待って！", "ちょっと待ってください！"),
        ("大丈夫かい、山田君？", "大丈夫かい、山田君？"),
        ("君を信じよう。", "君を信じましょう。"),
        ("生者ではありませんの。", "生者ではありませんの。"),
        ("意味があるのかな。", "意味があるんでしょうか。"),
        ("何が起きているのかしら。", "何が起きているんでしょうか。"),
        ("こんにちは、冒険者たちよ。", "こんにちは、冒険者たちよ。"),
        ("それは私の本よ。もう大丈夫よ。", "それは私の本ですよ。もう大丈夫ですよ。"),
        ("1. 水を入れる。\n2. 火をつける。", "1. 水を入れる。\n2. 火をつける。"),
    ],
)  # fmt: skip
def test_only_what_is_said_becomes_polite(text: str, expected: str) -> None:
    assert final(text, "敬語") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ご支持いただき、感謝します。", "支持してもらい、感謝する。"),
        ("ご覧いただけます。", "見てもらえる。"),
        ("ぜひ伺いたく存じます。", "ぜひ伺いたいと思う。"),
        ("どうするんでしょうか。", "どうするんだろう。"),
        ("お待ちいただければ幸いです。", "待ってもらえれば幸いだよ。"),
        ("（頷きます）行きます。", "（頷きます）行く。"),
    ],
)
def test_only_what_is_said_becomes_casual(text: str, expected: str) -> None:
    assert final(text, "カジュアル") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("最適なはずよ。それは危険よ。", "最適なはずやで。それは危険よ。"),
        ("冒険者たちよ、行くよ。", "冒険者たちよ、行くで。"),
        ("当然だよ、みんな。重要です…。", "当然やで、みんな。重要や…。"),
        ("それで困ってるんだよねー。", "それで困ってるんやんな。"),
        ("思い出せないのよ。そうなのよ。", "思い出せへんねん。そうなんやで。"),
        ("ついに勝ったのよ。", "ついに勝ったんやで。"),
        ("私にも分からないんです。", "私にも分からへんねん。"),
        ("覚えていないのですが、行きます。", "覚えてへんのやけど、行く。"),
        ("バスは来ないんじゃないか。", "バスはけえへんのやないか。"),
        ("注意しなきゃいけないんだ。", "注意せなあかんねん。"),
        ("見たのだから本当だ。いるのでしょう。", "見たんやからほんまや。いるんやろ。"),
        ("心配はいりません。誰もいません。", "心配はいらへん。誰もおらへん。"),
        ("誰もいなかったよ。", "誰もおらへんかったで。"),
        ("まだ見ていなかったよ。", "まだ見てへんかったで。"),
        ("まだ特定されていないよ。", "まだ特定されてへんで。"),
        ("心配しないで。忘れないでね。", "心配せんといて。忘れんといてな。"),
        ("触れないでください。", "触れんといて。"),
        ("何も言わないで出て行ったよ。", "何も言わんで出て行ったで。"),
        ("見てないで手伝ってください。", "見てんと手伝って。"),
        ("忘れてはいけません。飲んではいけないよ。", "忘れたらあかん。飲んだらあかんで。"),
        ("ここで立ち止まってはなりません。", "ここで立ち止まったらあかん。"),
        ("そういった悩みですね。移動といった点です。", "そういった悩みやな。移動といった点やで。"),
        ("そう言ったよ。", "そう言うたで。"),
        ("そう言ってしまいました。たまに言っちゃうよ。", "そう言うてもうた。たまに言うてまうで。"),
        ("どうだい？何をするつもりなんだい？", "どうや？何をするつもりなんや？"),
        ("なんだか気分が悪いです。何だか変だ。", "なんや気分が悪い。なんや変や。"),
        ("だって、電気が必要です。", "だって、電気が必要やで。"),
        ("それだって大事だ。", "それだって大事や。"),
        ("癒す力だって言われました。", "癒す力やって言われた。"),
        ("飽きられてしまうことがあります。", "飽きられてまうことがある。"),
        ("もう読んでしまって、暇です。", "もう読んでもうて、暇やで。"),
        ("それとは違うことだ。", "それとはちゃうことや。"),
        ("詳しく説明しますね。お茶を淹れますね。", "詳しく説明するね。お茶を淹れるね。"),
        ("役立ちますね。今日は暑いですね。", "役立つな。今日は暑いな。"),
        ("待っていてくださいね。", "待っててな。"),
        ("確認しないとね。早く逃げないと…。", "確認せんとね。早く逃げんと…。"),
        ("それが来ないと困るよ。", "それが来んと困るで。"),
        ("何があるのでしょうか。誰もいないのでしょうか。", "何があるんかな。誰もおらへんのかな。"),
        ("準備はいいですか、先生？", "準備はええ、先生？"),
        ("君を信じているよ。今、向かっているんだ。", "君を信じてるで。今、向かってるねん。"),
    ],
)  # fmt: skip
def test_osaka_speech_is_as_a_native_would_say_it(text: str, expected: str) -> None:
    assert final(text, "関西弁") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("変化が見られます。", "変化が見られるのだ。"),
        ("状況を安定させますよ。", "状況を安定させるのだ。"),
        ("もう覚えてるよ。", "もう覚えてるのだ。"),
        ("光栄です、佐藤様。", "光栄なのだ、佐藤様。"),
        ("そうですね、先輩。", "そうだね、先輩。"),
        ("次の話題に移りましょう。", "次の話題に移ろう。"),
        ("実現を目指して参ります。", "実現を目指していくのだ。"),
        ("歩んでまいりましょう。", "歩んでいこう。"),
        ("先生がいらっしゃいます。", "先生がいるのだ。"),
        ("誰かいらっしゃいますか？", "誰かいるか？"),
        ("嘘なんじゃない。", "嘘なんじゃない。"),
        ("来ないんじゃない？", "来ないんじゃない？"),
        ("とてもいいじゃない？", "とてもいいじゃない？"),
        ("猫じゃない。", "猫じゃないのだ。"),
    ],
)
def test_noda_speech_is_as_its_speakers_say_it(text: str, expected: str) -> None:
    assert final(text, "のだ") == expected


def test_a_sentence_that_may_be_narration_waits_for_the_next_line() -> None:
    stream = processor.open_stream(speaking("敬語"))
    assert stream.feed("彼は静かに頷いた。") == ""
    assert stream.feed("\n「行く」") == ""
    assert stream.feed("\n空") == "彼は静かに頷いた。\n「行きます」\n"
    stream = processor.open_stream(speaking("敬語"))
    assert (
        stream.feed("彼は静かに頷いた。私も頷いたよ。そ")
        == "彼は静かに頷きました。私も頷きましたよ。"
    )


@pytest.mark.parametrize("convert", [to_polite, to_plain, to_casual])
def test_no_conversion_of_a_real_sentence_adds_or_removes_a_negation(
    convert: Callable[[str], str],
) -> None:
    checked = 0
    for answer in read_answers():
        for sentence in sentences(answer):
            said = convert(sentence)
            if said != sentence:
                checked += 1
                assert count_negations(said) == count_negations(sentence), (sentence, said)
    assert checked > 200
