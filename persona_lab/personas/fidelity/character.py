"""Out of character: the model speaks as a model, as the user, or as the author."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from persona_lab.answer_text.passages import Kind
from persona_lab.answer_text.speaker_labels import USER_LABELS
from persona_lab.personas.fidelity.answer import CODE, Answer
from persona_lab.personas.fidelity.mark import CannotMeasure, Fault
from persona_lab.personas.fidelity.reference import own_lines, profile
from persona_lab.personas.persona import Persona


def _any_of(*alternatives: str, flags: int = 0) -> re.Pattern[str]:
    return re.compile("|".join(alternatives), flags)


_AI_PERSONA = _any_of(
    r"(?<![A-Za-z])(?:AI|A\.I\.|bot|robot|android|assistant|chatbot)(?![a-z])",
    "人工知能|ロボ|アンドロイド|ボット|アシスタント|プログラム|機械|サイボーグ|人造|電脳|コンピュータ",
    "言語モデル|ホログラム|仮想",
    flags=re.IGNORECASE,
)
_AI = r"(?<![A-Za-z])AI(?![A-Za-z])"
_MODEL = (
    rf"(?:(?:大規模)?言語モデル|(?:対話型|生成|会話)?{_AI}(?:アシスタント|(?:言語)?モデル|チャットボット)?"
    "|人工知能(?:アシスタント|モデル)?|チャットボット|(?:コンピューター?)?プログラム"
    r"|ChatGPT|GPT-?[345][\w.]*|Claude|Gemini|Qwen|通義千問|Llama|(?:バーチャル|デジタル|仮想)アシスタント)"
)
_SELF = "(?:私|わたし|わたくし|僕|ぼく|俺|ボク|オレ|当方)"
_MAKER = "(?:OpenAI|Anthropic|Google|Alibaba|アリババ|Meta|Microsoft|DeepMind|Mistral|Cohere)"
_IS = (
    "(?:です|だ[。よかなの、]|だった|な(?:の[でだ]|んです|んだ)|であ[りる]|に(?:過|す)ぎ|として|でしか"
    "|でございます)"
)
_AI_ADMISSION = _any_of(
    rf"{_SELF}(?:は|、)[^。！？!?\n、]{{0,14}}?、?{_MODEL}{_IS}",  # 私はただのAIです
    rf"(?:はい|ええ|うん|そうです)[、。]\s*{_MODEL}{_IS}",
    rf"、{_MODEL}(?:だから|ですから|なので)。",
    rf"(?:^|[、「\s.…])(?:あくまで(?:も)?|ただの|単なる|所詮)?{_MODEL}"
    "(?:として[、は]|(?:なので|ですので|ですから|だから)[、はの])",
    rf"{_MODEL}(?:である|の|な)(?:の?で)?、?{_SELF}(?![一-龥])",  # AIである私
    rf"{_SELF}のような{_MODEL}",
    rf"{_SELF}は[^。！？!?\n]{{0,20}}{_MAKER}[^。！？!?\n]{{0,16}}(?:開発|作成|作られ|訓練|トレーニング|設計)",
    rf"{_SELF}(?:は|に)[^。！？!?\n]{{0,14}}(?:プログラムされて|(?:学習|訓練)データ)",
    r"\b[Aa]s (?:an AI|a (?:large )?language model)\b",
    r"\bI(?: am|['’]m) (?:just |only |actually )?(?:an AI|a (?:large )?language model|a chatbot)\b",
)
_NOT_ADMITTED = _any_of(
    rf"{_MODEL}(?:では|じゃ|なんかじゃ|とは|などでは)(?:ない|なく|ありません|違)",
    rf"{_SELF}は[^。！？!?\n]{{0,8}}{_MODEL}(?:[をがとも]|について|の(?:研究|開発|技術|専門|勉強))",
    rf"{_MODEL}(?:の(?:研究者|専門家|開発者|技術者|エンジニア)|研究者|エンジニア|開発者)",
)
_QUOTED = re.compile("「[^「」]*」|『[^『』]*』")
_ASKED = re.compile("あなた|[？?]|(?:お前|君|きみ|貴方)[はがもの]")
"""Words of a sentence that is about the listener."""
_INSTRUCTIONS = _any_of(
    "システム(?:プロンプト|メッセージ|からの指示)|ロールプレイ",
    "(?:この|私の|与えられた|以下の)(?:プロンプト|キャラクター設定|キャラ設定)",
    "(?:与えられた|以下の)(?:設定|指示)(?:に(?:よると|従|沿|基)|では|通り)",
    "(?:キャラクター|キャラ|ペルソナ)(?:の?設定)(?:に|で|は|を|と|[:：])",
    r"(?:^|\n)[-・*# ]*(?:口調|一人称|二人称|語尾|性格|話し方|禁止事項|セリフ例|台詞例)[:：]",
    "【(?:キャラクター|キャラ|設定|口調|役割|指示|ルール|世界観)[^】]*】",
    r"\b(?:system prompt|my instructions|role-?play(?:ing)? as)\b",
    "(?:というキャラクター|という役|このキャラ(?:クター)?)(?:を|に|として)(?:演じ|なりき|振る舞)",
    flags=re.IGNORECASE,
)
_MIN_QUOTED_LENGTH = 24
"""Characters of the profile that an answer must repeat to quote it."""
_NOTE_NAMES = (
    "(?:注(?:意(?:書き)?|記|釈)?|補足|訳注|備考|(?:作者|筆者)(?:注|より)?"
    r"|Note|OOC|P\.?S\.?|Author's note)"
)
_NOTE_LABEL = _any_of(
    rf"\s*{_NOTE_NAMES}\s*[:：]",
    r"\s*(?:※|OOC\b)",
    r"\s*(?:続く|つづく|終わり|終|完|以下(?:省)?略|中略|省略|to be continued)[。.…]*$",
    flags=re.IGNORECASE,
)
_NOTE_LINE = _any_of(
    rf"^[ \t　*]*{_NOTE_NAMES}\*{{0,2}}\s*[:：].+", r"^[ \t　*]*※.+", flags=re.MULTILINE
)
_NOTE_WORDS = _any_of(
    "ロールプレイ|(?:場面|シーン)(?:の?転換|を?変更|チェンジ|[がを](?:変わ|切り替|転換|変え|移))",
    "(?:場面|話題)[をに][^）)]{0,16}(?:転換|移行)|(?:場面|シーン)終了",
    "シーン(?:は|が|の(?:終|始))|(?:という|との)設定|設定(?:を(?:追加|活か|変更|想定)|に(?:移行|変更))",
    "物語(?:を(?:進|展開|続|締)|の(?:展開|幕))|ストーリー(?:を|の|が)",
    "展開(?:に移行|を(?:促|示唆|提案|提供)|させ)|(?:対話|会話)を(?:終|締め)",
    "各?キャラクター(?:の|が|は|を)|(?:返答|回答|応答|返事)を(?:待ちます|想定|期待|お待ち)",
    "(?:ユーザー|プレイヤー)の(?:返答|反応|返事|入力|発言|選択|行動)|読者|文字数|緊張感を高めるため",
)
_STAGING = re.compile(
    "[（(](?:ここで(?:は|、|場面|話題)|この(?:質問|返答|提案|展開|場面|発言|回答|会話|対話|やり取り|後)(?:によ|では|は|で|、))"
    "[^（）()\\n]*(?:ます|ました|です|展開|追加|転換)。?[）)]"
)
"""Brackets in which the author explains the scene: （ここで、鐘が鳴ります）."""
_MAX_NOTE = 120
"""Characters of the longest bracket that is judged by its words: longer ones hold speech."""
_BRACKET = re.compile(r"[（(\[［【]([^（）()\[\]［］【】「」\n]+)[）)\]］】]")
_SPOKEN = re.compile(rf"{_SELF}|あなた|[君貴]|です(?:ね|よ|か)|ましょう|[？?！!]")
"""Words of speech: models put speech into brackets, too."""


def ai_admission(answer: Answer) -> Iterator[Fault]:
    """Find sentences in which a persona that is no AI says that it is one."""
    if is_machine(answer.persona):
        raise CannotMeasure("roles", "not_stated")
    for part in answer.prose:
        if part.kind in (Kind.SPEECH, Kind.DIRECTION, Kind.NARRATION):
            said = _QUOTED.sub(lambda quote: "＿" * len(quote[0]), part.text)
            match = _AI_ADMISSION.search(said)
            if match and not (_NOT_ADMITTED.search(said) or _ASKED.search(said)):
                yield Fault(*part.span, "roles", "、".join(answer.persona.roles))


@lru_cache(maxsize=256)
def is_machine(persona: Persona) -> bool:
    """Tell whether the persona is an AI or a machine."""
    if _AI_PERSONA.search(profile(persona)):
        return True
    said = "\n".join(line.text for line in own_lines(persona))
    return bool(re.search(rf"{_SELF}は[^。]{{0,10}}(?:AI|ロボット|アンドロイド)(?:です|だ)", said))


def instructions(answer: Answer) -> Iterator[Fault]:
    """Find text that quotes the persona's instructions or speaks of them."""
    asked = "\n".join(answer.user_turns)
    notes = _note_spans(answer)
    for match in _INSTRUCTIONS.finditer(answer.text):
        start, end = match.span()
        if match[0].strip() not in asked and not any(a <= start < b for a, b in notes):
            yield Fault(start, end, "description")
    for field in ("description", "background"):
        yield from _quoted(answer, getattr(answer.persona, field), field)


def _quoted(answer: Answer, text: str, field: str) -> Iterator[Fault]:
    """Find the sentences of a field that the answer repeats word for word."""
    own = "\n".join(line.text for line in own_lines(answer.persona))
    for sentence in re.split(r"(?<=[。！？\n])", text):
        sentence = sentence.strip()
        if len(sentence) >= _MIN_QUOTED_LENGTH and sentence not in own:
            at = answer.text.find(sentence)
            if at >= 0:
                yield Fault(at, at + len(sentence), field)


def speaks_for_user(answer: Answer) -> Iterator[Fault]:
    """Find lines that the answer says in the user's name."""
    names = sorted({*_user_names(answer), *USER_LABELS} - _own_names(answer), key=len, reverse=True)
    label = re.compile(
        rf"^[ 　\t*_【\[]*(?:{'|'.join(map(re.escape, names))})(?:さん|様)?[ 　\]】*_]*"
        r"(?:[:：]\s*\S|(?:[（(][^（）()\n]*[）)])?\s*[「『][^」』\n]*)[^\n]*",
        re.MULTILINE,
    )
    blocks = [(p.start, p.start + len(p.text)) for p in answer.parts if p.kind is Kind.BLOCK]
    for match in label.finditer(answer.text):
        if not any(start <= match.start() < end for start, end in blocks):
            yield Fault(match.start(), match.end(), "second_person", answer.persona.name)


def _own_names(answer: Answer) -> set[str]:
    name = answer.persona.name
    return {name, *name.split(), "AI"}


_USER_LABEL = re.compile(
    r"^\s*([^\s「」『』（）()、。！？!?:：]{1,16})(?:[:：]\s*)?[「『]", re.MULTILINE
)


def _user_names(answer: Answer) -> set[str]:
    """Return the labels under which the user speaks."""
    names: set[str] = set()
    for turn in answer.user_turns:
        match = _USER_LABEL.match(turn)
        if match and not match[1].endswith(tuple("はがをにでとへも")):
            names.add(match[1])
    called = re.split(r"[、,／/・\s]+", answer.persona.second_person)
    names |= {name for name in called if name.endswith(("様", "さま", "さん", "殿"))}
    return {name for name in names if name not in answer.persona.name}


def author_note(answer: Answer) -> Iterator[Fault]:
    """Find notes of the author: brackets and lines that speak about the text, not in it."""
    for start, end in _note_spans(answer):
        yield Fault(start, end, "")


def _note_spans(answer: Answer) -> list[tuple[int, int]]:
    text = answer.text
    found = [match.span() for match in _NOTE_LINE.finditer(text)]
    found += [m.span() for m in _STAGING.finditer(text) if not _SPOKEN.search(m[0])]
    for match in _BRACKET.finditer(text):
        within = match[1]
        about = len(within) <= _MAX_NOTE and _NOTE_WORDS.search(within)
        if _NOTE_LABEL.match(within) or (about and not _SPOKEN.search(within)):
            found.append(match.span())
    code = [match.span() for match in CODE.finditer(text)]
    spans: list[tuple[int, int]] = []
    for start, end in sorted(found):
        free = not spans or start >= spans[-1][1]
        if free and not any(first <= start < last for first, last in code):
            spans.append((start, end))
    return spans
