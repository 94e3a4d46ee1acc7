"""The labels of a persona's fields in sheets and in the text of cards.

The first label of a field and language is the one that is written; all are understood.
"""

from __future__ import annotations

import re
import unicodedata

LABELS: dict[str, dict[str, tuple[str, ...]]] = {
    "name": {
        "ja": ("名前", "なまえ", "氏名", "姓名", "本名", "キャラクター名", "キャラ名"),
        "en": ("Name", "Full name", "Character", "Character name", "Char name"),
    },
    "description": {
        "ja": ("ひとこと", "一言", "紹介", "概要", "説明", "キャッチコピー"),
        "en": ("Tagline", "Description", "Summary", "Overview", "About", "Introduction"),
    },
    "gender": {"ja": ("性別",), "en": ("Gender", "Sex")},
    "background": {
        "ja": ("背景", "経歴", "設定", "生い立ち", "プロフィール", "人物設定", "詳細"),
        "en": ("Background", "Backstory", "Back story", "History", "Bio", "Biography", "Profile"),
    },
    "first_person": {
        "ja": ("一人称", "自分の呼び方"),
        "en": ("Refers to self as", "First person", "First-person pronoun", "Calls self"),
    },
    "second_person": {
        "ja": ("二人称", "相手の呼び方", "ユーザーの呼び方", "呼び方"),
        "en": ("Addresses the user as", "Second person", "Calls the user", "Calls user"),
    },
    "sentence_endings": {
        "ja": ("語尾", "文末"),
        "en": ("Sentence endings", "Sentence ending", "Endings"),
    },
    "catchphrases": {
        "ja": ("口ぐせ", "口癖", "決め台詞", "決めゼリフ", "決まり文句"),
        "en": ("Catchphrases", "Catchphrase", "Catch phrase", "Pet phrases"),
    },
    "forbidden_words": {
        "ja": ("使わない言葉", "禁止ワード", "禁止語", "禁句", "NGワード", "言わない言葉"),
        "en": ("Never says", "Forbidden words", "Forbidden", "Banned words"),
    },
    "personalities": {
        "ja": ("性格", "性格特性", "人柄", "パーソナリティ"),
        "en": ("Personality", "Personalities", "Personality traits", "Traits", "Temperament"),
    },
    "roles": {
        "ja": ("役割", "職業", "仕事", "肩書き", "肩書", "立場"),
        "en": ("Role", "Roles", "Occupation", "Job", "Profession"),
    },
    "tones": {
        "ja": ("口調", "話し方", "トーン", "しゃべり方"),
        "en": ("Tone", "Tones", "Speech", "Speaking style", "Speech style", "Voice"),
    },
    "examples": {
        "ja": ("会話例", "セリフ例", "台詞例", "発言例", "サンプルセリフ", "対話例", "セリフ"),
        "en": (
            "Examples",
            "Example",
            "Example exchanges",
            "Example dialogue",
            "Example dialogues",
            "Example messages",
            "Sample dialogue",
            "Dialogue examples",
            "mes_example",
        ),
    },
    "greeting": {
        "ja": ("最初のあいさつ", "あいさつ", "挨拶", "初回メッセージ", "最初のメッセージ"),
        "en": ("Greeting", "First message", "first_mes", "Opening", "Opening message"),
    },
    "language": {"ja": ("話す言語", "言語", "使用言語"), "en": ("Speaks", "Language")},
}
USER_LABELS = ("ユーザー", "ユーザ", "あなた", "相手", "user", "you", "{{user}}", "<user>")
_LANGUAGE_NAMES = {
    "ja": ("日本語", "ja", "japanese", "jp"),
    "en": ("英語", "en", "english"),
}


def plain_label(text: str) -> str:
    """Return ``text`` in the form in which labels are compared."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"[\s_\-・*#]+", "", text)


FIELD_OF_LABEL = {
    plain_label(label): name
    for name, languages in LABELS.items()
    for labels in languages.values()
    for label in labels
}
ALL_LABELS = [
    label for languages in LABELS.values() for labels in languages.values() for label in labels
]
_USERS = {plain_label(label) for label in USER_LABELS}
_LANGUAGES = {
    plain_label(name): language for language, names in _LANGUAGE_NAMES.items() for name in names
}


def is_user(label: str) -> bool:
    """Return whether ``label`` names the user in a dialogue."""
    return plain_label(label) in _USERS


def language_named(text: str) -> str | None:
    """Return the language that ``text`` names."""
    return _LANGUAGES.get(plain_label(text))


def language_of(text: str) -> str:
    """Return the language of a persona whose text this is: Japanese or English.

    A Japanese character says about as much as three Latin letters.
    """
    wide = sum("\u3040" <= letter <= "\u9fff" for letter in text)
    narrow = sum(letter.isalpha() and letter < "\u0250" for letter in text)
    return "ja" if wide * 3 >= narrow and (wide or not narrow) else "en"
