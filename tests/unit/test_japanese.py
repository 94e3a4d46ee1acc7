"""Conversions and levels. ``data/conversions.csv`` was written apart from the rules."""

import csv
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.politeness import read, scores
from persona_lab.japanese import is_polite, politeness_level, to_casual, to_plain, to_polite
from persona_lab.japanese.morphology import words_of
from persona_lab.settings import ROOT

PLAIN = """
お答えいたしかねます。 → 答えかねる。
対応致しかねます → 対応しかねる
よろしければ → よければ
いくらですか → いくらだ
いただきます。 → いただきます。
本をいただきます。 → 本をもらう。
存じません → 知らない
結構と存じます → 結構と思う
いってらっしゃいませ → いってらっしゃい
左様でございますか → 左様か
問いました → 問うた
ご覧ください → 見てくれ
ご安心ください → 安心してくれ
\ud800行きます → \ud800行く
行きます → 行く
食べませんでした → 食べなかった
静かですね → 静かだね
静かではありません → 静かではない
学生でした → 学生だった
美味しいです → 美味しい
美味しかったです → 美味しかった
美味しくありません → 美味しくない
美味しくなかったです → 美味しくなかった
美味しいでしょう → 美味しいだろう
行きましょうか → 行こうか
何をしているんですか？ → 何をしているのか？
ありがとうございます。 → ありがとう。
ありがとうございました → ありがとう
おはようございます！ → おはよう！
お待ちしております。 → 待っている。
よろしくお願いします。 → よろしく。
よろしくお願いいたします。 → よろしく。
待ってください。 → 待ってくれ。
お気をつけください。 → 気をつけてくれ。
何でございますか。 → 何だ。
何か問題ですか。 → 何か問題か。
誰の車ですか。 → 誰の車だ。
来てくださってうれしいです → 来てくれてうれしい
お待ちください → 待ってくれ
ご確認ください。 → 確認してくれ。
お茶をください。 → お茶をくれ。
申し訳ございません。 → 申し訳ない。
申し訳ありません → 申し訳ない
かもしれません → かもしれない
行かなければなりません → 行かなければならない
学生ですので行きません → 学生なので行かない
来ます → 来る
来ません → 来ない
きます → くる
来ました → 来た
来ましょう → 来よう
勉強しました → 勉強した
いいですよ → いいよ
本当ですか？ → 本当か？
これは何ですか。 → これは何だ。
「行きます」と言いました。 → 「行きます」と言った。
すみません → すまない
分かりました → 分かった
書きまして、 → 書いて、
泳ぎました → 泳いだ
飲みましたら → 飲んだら
行きました → 行った
ですが、違います → だが、違う
でも、好きですから → でも、好きだから
食べられませんでした → 食べられなかった
起きています → 起きている
お疲れ様です → お疲れ様
行くんです → 行くんだ
知らないんですよ → 知らないんだよ
書いてくださいました → 書いてくれた
教えていただけますか → 教えてもらえるか
あります → ある
ありませんでした → なかった
ではありませんでした → ではなかった
話しませんか → 話さないか
行きたいです → 行きたい
行きたくありません → 行きたくない
待ちましょう → 待とう
買いました → 買った
死にました → 死んだ
ございません → ない
日本の首都は東京でございます → 日本の首都は東京だ
`print("です")` と書きます。 → `print("です")` と書く。
いかがですか → どうだ
いかがでしょうか。 → どうだろうか。
どういたしまして。 → どういたしまして。
どういたしましたか。 → どうしたか。
なさいます → なさる
いらっしゃいません → いらっしゃらない
違いますよ → 違うよ
しますので → するので
待ってくださいね → 待ってね
見ないでください → 見ないでくれ
大丈夫でしょうか → 大丈夫だろうか
行きませんでしょうか → 行かないだろうか
なんですか、これは。 → 何だ、これは。
学生なんですか？ → 学生なのか？
ごちそうさまでした。 → ごちそうさま。
お疲れ様でした。 → お疲れ様。
何をお探しですか → 何を探している？
何をお探しですか。 → 何を探している？
鍵をお探しでした。 → 鍵を探していた。
教えてくださり、ありがとうございます。 → 教えてくれて、ありがとう。
"""
POLITE = """
雨かも。 → 雨かもしれません。
おやすみ。 → おやすみなさい。
お茶、ちょうだい。 → お茶、ください。
来るよね？ → 来ますよね？
飲んでなかった。 → 飲んでいませんでした。
もったいない。 → もったいないです。
くだらなかったよ → くだらなかったですよ
教えておくれ。 → 教えてください。
お疲れになったようね。 → お疲れになったようですね。
楽しかった（笑） → 楽しかったです（笑）
行かなきゃ。 → 行かなきゃ。
それは違うと思うけど。 → それは違うと思いますけど。
まだ早いんだけど… → まだ早いんですけど…
どうして？ → どうしてですか？
こうして → こうして
行かなくて → 行かなくて
くれ → ください
言うな → 言うな
いいじゃん → いいじゃないですか
行くのか？ → 行くんですか？
いいや → いいです
行ったら？ → 行ったら？
赤いのね → 赤いんですね
本を読むのが好きだ → 本を読むのが好きです
行く。 → 行きます。
食べなかった → 食べませんでした
静かだ。 → 静かです。
静かじゃない → 静かじゃありません
学生だった → 学生でした
美味しい！ → 美味しいです！
美味しかった → 美味しかったです
美味しくない → 美味しくありません
美味しくなかった → 美味しくありませんでした
明日は雨だろう → 明日は雨でしょう
行こう → 行きましょう
行こうか？ → 行きましょうか？
何してるの？ → 何してるんですか？
ありがとう。 → ありがとうございます。
うん、行くよ。 → はい、行きますよ。
待って。 → 待ってください。
待ってね → 待ってくださいね
待ってくれ → 待ってください
早くしろよ → 早くしてください
行くな！ → 行かないでください！
食べなさい → 食べてください
時間がない → 時間がありません
行きたい → 行きたいです
行きたくない → 行きたくありません
雨だけど、行く → 雨ですけど、行きます
寒いから行かない → 寒いから行きません
行くんだ → 行くんです
そうだね → そうですね
本当？ → 本当ですか？
本当だよ → 本当ですよ
行く？ → 行きますか？
行かない？ → 行きませんか？
行くかな → 行くでしょうか
もう食べちゃった → もう食べてしまいました
寝てる → 寝ています
してない → していません
来た → 来ました
くる → きます
する → します
した → しました
「行く」と言った。 → 「行く」と言いました。
読んでいた → 読んでいました
行きます。 → 行きます。
美味しいです → 美味しいです
いいなあ → いいですね
勉強しよう → 勉強しましょう
知ってる？ → 知っていますか？
ある → あります
大丈夫？ → 大丈夫ですか？
嬉しいよ → 嬉しいですよ
行くぜ → 行きますよ
それは違うが、いい考えだ。 → それは違いますが、いい考えです。
食べられる → 食べられます
泳がない → 泳ぎません
行かなければならない → 行かなければなりません
かもしれない → かもしれません
好きだ → 好きです
あそこが駅だ → あそこが駅です
どうしたの？ → どうしたんですか？
なぜ泣くの → なぜ泣くんです
今日はいい天気。 → 今日はいい天気。
分からないよ → 分かりませんよ
飲んだ → 飲みました
行ってらっしゃい → 行ってらっしゃい
ごめんね → ごめんなさい
何してんの？ → 何してるんですか？
飲んでんの？ → 飲んでるんですか？
もう食べてんの？ → もう食べてるんですか？
知らねえよ。 → 知りませんよ。
知らねえの？ → 知らないんですか？
学生じゃねえよ。 → 学生じゃありませんよ。
うまくねえな。 → うまくないですね。
学生かい？ → 学生ですか？
元気かい？ → 元気ですか？
行くかい？ → 行きますか？
何だい？ → 何ですか？
そうだろう？ → そうでしょう？
嘘だろ？ → 嘘でしょう？
行くだろ？ → 行くでしょう？
いらっしゃい。 → いらっしゃい。
じゃあね、また明日。 → じゃあね、また明日。
じゃあね。 → じゃあね。
じゃあ、行くよ。 → では、行きますよ。
すまない、遅れた。 → すみません、遅れました。
すまん、遅れた。 → すみません、遅れました。
すまん。 → すみません。
知らん。 → 知りません。
知らんよ。 → 知りませんよ。
知らんの？ → 知らないんですか？
行かなくちゃ。 → 行かなくちゃ。
もう無理。 → もう無理です。
知らないよ、そんなこと。 → 知りませんよ、そんなこと。
いいよ、別に。 → いいですよ、別に。
行くよ、と言った。 → 行くよ、と言いました。
待てよ、変だ。 → 待てよ、変です。
昨日ね、会った。 → 昨日ね、会いました。
お疲れ。 → お疲れ様です。
何だよ、それ。 → 何だよ、それ。
ごちそうさま。 → ごちそうさまでした。
それが何を意味するのか。 → それが何を意味するのでしょうか。
誰が来るのか。 → 誰が来るのでしょうか。
そうだったのか。 → そうだったんですか。
何を着ていこうか。 → 何を着ていきましょうか。
これで収まるといいなー。 → これで収まるといいですねー。
見える、見えるよ。 → 見える、見えますよ。
"""
CASUAL = """
お待たせしました。 → お待たせ。
どこでも好きです。 → どこでも好きだよ。
いかがでしょうか。 → どうかな。
どういたしまして。 → どういたしまして。
行ってまいります。 → 行ってくる。
行ってまいりました。 → 行ってきた。
申し訳ございませんが、休みです。 → 悪いけど、休みだよ。
誰も知らないのではないでしょうか。 → 誰も知らないんじゃないかな。
誰が犯人ですか。 → 誰が犯人？
お水を一杯ください。 → お水を一杯ちょうだい。
何を食べますか。 → 何を食べる？
行きましょうか。 → 行こうか？
席を取っておきました。 → 席を取っといた。
行かなければなりません。 → 行かなきゃいけない。
勉強しなくてはいけません。 → 勉強しなくちゃいけない。
触ってはいけません。 → 触っちゃいけない。
はい、分かりました。 → うん、分かった。
いいえ、違います。 → ううん、違う。
先生がいらっしゃいました。 → 先生が来た。
先生は部屋にいらっしゃいます。 → 先生は部屋にいる。
本を読んでいらっしゃいました。 → 本を読んでた。
学生でいらっしゃいますか。 → 学生？
お読みになりましたか。 → 読んだ？
社長がくださった本です。 → 社長がくれた本だよ。
こちらこそありがとうございます。 → こちらこそありがとう。
行くか。 → 行くか。
もう遅い。帰るか。 → もう遅い。帰るか。
今、何をしていますか？ → 今、何をしてる？
静かです。 → 静かだよ。
食べてしまいました。 → 食べちゃった。
飲んでしまいます。 → 飲んじゃう。
それは本当ではありません。 → それは本当じゃない。
待ってください。 → 待って。
お茶をください。 → お茶をちょうだい。
大丈夫でしょうか？ → 大丈夫かな？
行きましょうか？ → 行こうか？
これは何ですか？ → これは何？
すみません、遅れました。 → ごめん、遅れた。
忙しいのですが、行きます。 → 忙しいんだけど、行く。
どうしたのですか？ → どうしたの？
学生ですか？ → 学生？
知りませんけれども、調べます → 知らないけど、調べる
なんですか、これは。 → 何、これは？
ごちそうさまでした。 → ごちそうさま。
お疲れ様でした。 → お疲れ様。
何をお探しですか？ → 何を探してる？
どちら様ですか。 → どちら様？
どちらへいらっしゃいますか。 → どこへ行く？
こちらへいらっしゃいました。 → こっちへ来た。
京都にいらっしゃったことはありますか？ → 京都に行ったことはある？
明日、そちらに参ります。 → 明日、そっちに行く。
まもなく電車が参ります。 → まもなく電車が来る。
東京から参りました。 → 東京から来た。
私が参ります。 → 私が行く。
何ですか、知りません。 → 何だ、知らない。
参りました。 → 参った。
暑さに参ったよ。 → 暑さに参ったよ。
田中と申します。 → 田中と言う。
父が申しました。 → 父が言った。
教えてくださり、ありがとうございます。 → 教えてくれて、ありがとう。
"""


def pairs(table: str) -> list[tuple[str, str]]:
    return [tuple(line.split(" → ")) for line in table.strip().splitlines()]  # type: ignore[misc]


@pytest.mark.parametrize(("polite", "plain"), pairs(PLAIN))
def test_polite_becomes_plain(polite: str, plain: str) -> None:
    assert to_plain(polite) == plain


@pytest.mark.parametrize(("plain", "polite"), pairs(POLITE))
def test_plain_becomes_polite(plain: str, polite: str) -> None:
    assert to_polite(plain) == polite


@pytest.mark.parametrize(("polite", "casual"), pairs(CASUAL))
def test_polite_becomes_casual(polite: str, casual: str) -> None:
    assert to_casual(polite) == casual


@pytest.mark.parametrize(
    ("way", "convert"), [("plain", to_plain), ("polite", to_polite), ("casual", to_casual)]
)
@pytest.mark.parametrize("part", ["first", "second", "third", "fourth"])
def test_most_of_what_the_rules_were_not_written_for_is_right(
    part: str, way: str, convert: object
) -> None:
    with (ROOT / "tests" / "data" / "conversions.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["set"], row["way"]) == (part, way)]
    if (part, way) == ("first", "casual"):
        assert not rows
        return
    assert len(rows) > 40
    wrong = [(row["from"], convert(row["from"]), row["to"]) for row in rows]  # type: ignore[operator]
    wrong = [(said, got, wanted) for said, got, wanted in wrong if got != wanted]
    assert len(wrong) / len(rows) <= 0.05, wrong


KEPT = [
    "「行きます。」",
    "『そうです』",
    "`a です`",
    "\n````md\n```\nコードです。\n```\n次です。\n````\n",
    "\n~~~\nコードです。\n~~~\n",
    "https://example.com/です?x=ます",
    "です@example.com",
    "デスさん",
]


@pytest.mark.parametrize("convert", [to_plain, to_polite, to_casual])
@pytest.mark.parametrize("kept", KEPT)
def test_quotations_code_addresses_and_names_stay(convert: object, kept: str) -> None:
    text = f"彼は {kept} と書きました。私は{kept} を読んだ。"
    assert convert(text, keep=["デスさん"]).count(kept) == 2  # type: ignore[operator]


@given(
    st.text(
        st.sampled_from("行きますでした静か。「」`、ねよか？！ \n食べないんだんですのabc😀"),
        max_size=40,
    )
)
def test_no_text_breaks_a_conversion(text: str) -> None:
    assert "".join(word.surface for word in words_of(text)) == text
    for convert in (to_plain, to_polite, to_casual):
        assert isinstance(convert(text), str)
    assert politeness_level(text) in (1, 2, 3, 4)


IN_DOUBT = {
    "an adnominal form": ["どこかで見たような…", "懐かしいような…", "まるで夢のような…"],
    "a word and no predicate": [
        "そんな！",
        "こんな…",
        "ご心配なく。",
        "お気遣いなく。",
        "遠慮なく！",
    ],
    "an indefinite word": ["何か…", "何かよ。", "誰か！", "いつか。"],
    "a thought": [
        "恐れているのか…",
        "敵か、味方か…",
        "どうしたものか。",
        "どこまで続くか。",
        "行くべきか。",
    ],
    "a command with が": [
        "試練に挑むがよい。",
        "行くがよかろう。",
        "好きにするがいい。",
        "行くがよい、冒険者たちよ。",
    ],
    "an old form": [
        "報告を申せ。",
        "お越しいたせ。",
        "そのようなことも起こりうる。",
        "誰にでもなりうる。",
    ],
    "a greeting": ["ようこそお帰りなさい。", "ゆっくりお休みなさい。", "お待ちなさい！"],
    "a dialect": [
        *("期待しとるで。", "もうええねん。", "面白いやないか！", "よう頑張るのう。", "運命じゃ。"),
        *("俺も待ってるで", "笑ってるで！"),
    ],
    "a slurred negation": [
        "そんな安物じゃ生み出せんぞ。",
        "抜け出せんぞ。",
        "見逃せんよ。",
    ],
    "a quotation after a verb": ["君が言う「均衡を保つ力」。", "皆が呼ぶ『賢者の石』。"],
    "a final plain clause": [
        "勢いは著しいが、それが運命じゃ。",
        "盗み聞きはよくないが、期待しとるで。",
    ],
    "a te-form that goes on": ["なんて言っちゃってさ。", "笑って見てさ。"],
}
"""Sentences that stay as they are in polite speech, by what makes them doubtful."""


@pytest.mark.parametrize("text", [text for texts in IN_DOUBT.values() for text in texts])
def test_to_polite_leaves_a_sentence_that_is_in_doubt(text: str) -> None:
    assert to_polite(text) == text


def test_what_is_plain_or_polite_already_stays() -> None:
    for _, plain in pairs(PLAIN):
        assert to_plain(plain) == plain
    for _, polite in pairs(POLITE):
        assert to_polite(polite) == polite


def test_a_long_text_is_converted_whole() -> None:
    assert to_plain("行きます。" * 20_000) == "行く。" * 20_000


def test_a_long_text_takes_as_long_as_its_length() -> None:
    began = time.process_time()
    for text in ("あ" * 60_000, "「はい」です。" * 4_000, "“" * 20_000, "a.b" * 20_000):
        assert to_plain(text, keep=["はい", "です"])
    assert time.process_time() - began < 20


def test_threads_do_not_share_a_tokenizer() -> None:
    wrong: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(50):
                assert to_plain("食べませんでした。") == "食べなかった。"
        except BaseException as error:  # noqa: BLE001 - whatever it is fails the test
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("社長がいらっしゃいますので、少々お待ちいただけますでしょうか。", 1),
        ("お客様がお待ちでございます。", 1),
        ("先生がお書きになりました。", 2),
        ("明日は学校に行きます。", 3),
        ("それは本です。", 3),
        ("明日は学校に行く。", 4),
        ("猫が鳴いている。", 4),
        ("「行きます」と言った。", 4),
        ("お客様、こちらへどうぞ。", 2),
        ("ほら、どうぞ。", 4),
        ("お茶を飲みます。", 3),
        ("お金がありません。", 3),
        ("春になりました。", 3),
        ("座れば楽になります。", 3),
        ("お店に行きました。", 3),
        ("お世話になりました。", 3),
        ("ご覧になりましたか。", 1),
        ("先生がお帰りになりました。", 1),
        ("立ちなさい。", 4),
        ("早く食べなさい。", 4),
        ("", 4),
    ],
)
def test_unmistakable_levels(text: str, level: int) -> None:
    assert politeness_level(text) == level
    assert is_polite(text) == (level < 4)


def test_levels_on_sentences_that_nothing_was_fitted_to() -> None:
    _, held_out = read()
    exact, balanced = scores(held_out, [int(politeness_level(text)) for text, _ in held_out])
    assert exact >= 0.68
    assert balanced >= 0.94


@pytest.mark.parametrize(
    ("polite", "casual"),
    [
        ("おいでになります。", "いる。"),
        ("お越しくださいまして、嬉しいです。", "来てくれて、嬉しい。"),
        ("お待ちいただけますか。", "待ってもらえる？"),
        ("ご連絡いただきました。", "連絡してもらった。"),
        ("ご覧になりますか。", "見る？"),
        ("もうご覧になった。", "もう見た。"),
        ("ご存知ですか。", "知ってる？"),
        ("いただきます。", "いただきます。"),
        ("いただきました。", "もらった。"),
    ],
)
def test_honorific_verbs_become_those_of_friends(polite: str, casual: str) -> None:
    assert to_casual(polite) == casual
