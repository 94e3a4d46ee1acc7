"""Messages as HTML: what a reader sees has every character that was said."""

from __future__ import annotations

import inspect
import re
import time
from html import unescape
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona_lab.responses.changes import changed_sentences
from persona_lab.ui.render.markdown import message_html


class Reader(HTMLParser):
    """Reads what is visible, and the tags and attributes.

    The visible text includes the numbers of list items. ``with_addresses`` includes the addresses
    behind links.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text = ""
        self.with_addresses = ""
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str]] = set()
        self._address = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        values = {name: value or "" for name, value in attrs}
        self.attributes |= {(tag, name) for name in values}
        if tag == "br":
            self.handle_data("\n")
        elif tag == "li" and "value" in values:
            self.handle_data(values["value"] + ".")
        elif tag == "a":
            self._address = values["href"]

    def handle_endtag(self, tag: str) -> None:
        if tag == "a":
            self.with_addresses += self._address

    def handle_data(self, data: str) -> None:
        self.text += data
        self.with_addresses += data


def shown(message: str) -> str:
    return Reader(message_html(message)).text


# ── ordinary text ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "text",
    [
        "やあ",
        "5~7時、明日は8~9時",
        "2*3=6、4*5=20",
        "2**3=8、4**2=16。２**３、４**５",
        "2 * 3 * 4 と 2 ** 3 ** 4",
        "[状態]: 空腹",
        "[状態]: 空腹\n[場所]: 森",
        "[笑顔](心の声)です",
        "[一覧](https://example.com 秘密)",
        "[]() と [ ](https://example.com)",
        r"¯\_(ツ)_/¯",
        "m(_ _)m",
        "(*^_^*) と (*^_^*)",
        "(*ノωノ*) すごい *o*",
        "(´・ω・`) そうか (´・ω・`)",
        "(`・ω・´) と (`・ω・´)",
        ">_< と >///<",
        ">>1 さん",
        "__init__.py と snake_case_name と _下線_ と __下線__",
        r"\( x^2 \) と \[ y \] と $$z$$",
        r"\*そのまま\* と C:\Users\*",
        "すご~~い、やった~~！",
        "~~~そうだね~~~\nうん",
        "予定\n===",
        "a < b & c > d &lt; &copy; <https://example.com>",
        "<script>x</script><img src=x>",
        "#タグ と #",
        "料金*は別途*です",
        "名前：\n____",
        "*必須、*任意",
        "http://日本語.jp/ と ftp://example.com",
        "こんにちは\n\\",
    ],
)
def test_message_html_keeps_every_character_when_text(text: str) -> None:
    assert shown(text) == text


WORDS = ("時", "あ", "ア", "x", "init", "7", "５")
MARKS = (
    "*", "_", "__", "~", "\\(", "\\_", "[", "]", ":", "]: ", "^", "(*", "*)", "(*^_^*)", "´`)", "=",
    "&amp;", "<b>", "、", "。", "](",
)  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(MARKS)), max_size=12))
def test_message_html_keeps_marks_between_words(pairs: list[tuple[str, str]]) -> None:
    text = "".join(word + mark for word, mark in pairs) + "終"
    assert shown(text) == text


# ── links ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("https://example.com/だ を見る", "https://example.com/"),
        ("https://example.com、明日", "https://example.com"),
        ("詳細はhttps://example.com/a?b=1。", "https://example.com/a?b=1"),
        ("（https://example.com/）", "https://example.com/"),
        ("(https://example.com/a_(b))", "https://example.com/a_(b)"),
        ("**https://example.com/**です", "https://example.com/"),
        ("http://example.com/%E3%81%82 は", "http://example.com/%E3%81%82"),
        ("[例](https://example.com/a)", "https://example.com/a"),
        ("![例](https://example.com/a.png)", "https://example.com/a.png"),
    ],
)
def test_message_html_links_address_without_text_after(text: str, address: str) -> None:
    html = message_html(text)
    assert re.findall(r'href="([^"]*)"', html) == [address]
    assert 'target="_blank" rel="noopener noreferrer"' in html
    assert "img" not in Reader(html).tags


# ── markup ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("これは**「重要」**です", "<p>これは<strong>「重要」</strong>です</p>"),
        ("**この文。**次の文", "<p><strong>この文。</strong>次の文</p>"),
        ("**二\n行**", "<p><strong>二<br>行</strong></p>"),
        ("第**3**章", "<p>第<strong>3</strong>章</p>"),
        ("**大好き❤️**です", "<p><strong>大好き❤️</strong>です</p>"),
        ("***強調***です", "<p><strong>強調</strong>です</p>"),
        ("*微笑む*「やあ」", "<p><em>微笑む</em>「やあ」</p>"),
        ("That is *really* good", "<p>That is <em>really</em> good</p>"),
        ("~~古い~~ 新しい", "<p><s>古い</s> 新しい</p>"),
        ("`a < **b**`です", "<p><code>a &lt; **b**</code>です</p>"),
        ("# 見出し", "<h1>見出し</h1>"),
        ("> 引用\n> 二行", "<blockquote><p>引用<br>二行</p></blockquote>"),
        ("前\n\n---\n\n後", "<p>前</p>\n\n<hr>\n\n<p>後</p>"),
        ("3. 三\n7. 七", '<ol start="3"><li value="3">三</li><li value="7">七</li></ol>'),
        (
            "|a|b|\n|-|-:|\n|1|2|3|",
            "<table><thead><tr><th>a</th>"
            '<th style="text-align:right">b</th></tr></thead><tbody><tr><td>1</td>'
            '<td style="text-align:right">2</td><td>3</td></tr></tbody></table>',
        ),
    ],
)
def test_message_html_renders_markup(text: str, html: str) -> None:
    assert message_html(text) == html


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```\n<b>**x**\n```\n**y**", "<b>**x**\n"),
        ("```html\nまだ途中 **x** <b>", "まだ途中 **x** <b>"),
        (
            "- 手順\n  ```python\n  if x:\n  \ty = 1\n\n  print(y)\n  ```\n- 次",
            "if x:\n\ty = 1\n\nprint(y)\n",
        ),
        ("1. 手順\n\n        a\n          b\n", " a\n   b\n"),
    ],
)  # fmt: skip
def test_message_html_keeps_lines_of_code(text: str, code: str) -> None:
    found = re.findall("<pre><code>(.*?)</code></pre>", message_html(text))
    assert [unescape(each) for each in found] == [code]


def test_message_html_shows_what_a_fence_says() -> None:
    assert message_html("```こんにちは\nうん\n```") == (
        '<div class="code-info">こんにちは</div><pre><code>うん&#10;</code></pre>'
    )


# ── properties ────────────────────────────────────────────────────────────────────────────

MARKUP = set("*~`#>|-+ \n\t[]()\u00a0")
"""The characters that markup consists of. They may disappear."""
ALLOWED_TAGS = {
    "p", "br", "strong", "em", "s", "a", "code", "pre", "div", "blockquote", "hr",
    "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li",
    "table", "thead", "tbody", "tr", "th", "td",
}  # fmt: skip
ALLOWED_ATTRIBUTES = {
    ("a", "href"), ("a", "target"), ("a", "rel"), ("ol", "start"), ("li", "value"),
    ("div", "class"), ("th", "style"), ("td", "style"),
}  # fmt: skip
PIECES = st.sampled_from(
    [
        "あ", "時", "x", "7", "、", "。", "「", "」", " ", "\n", "\n\n", "\n- ", "\n2. ", "\n> ",
        "\n# ", "\n| ", " | ", "\n|-|-|\n", "\n```", "```py\n", "\n    ", "`", "``", "*", "**",
        "***", "~", "~~", "\n~~~", "_", "__", "\\", "\\*", "[", "]", "](", ")",
        "[あ](https://a.b/c)",
        "https://a.b/", "http:", "[x]: ", "!", "<", ">", "<script>", "<img src=x onerror=y>",
        "&lt;",
        "(´・ω・`)", "=", "\n===\n", "\n---\n", "\t", "　", "😀", "\r\n",
    ]
)  # fmt: skip
MESSAGES = st.lists(PIECES, max_size=30).map("".join) | st.text(max_size=60)


def _visible(text: str) -> list[str]:
    text = text.replace("\\|", "|").replace("\0", "\ufffd")  # the escape of a pipe in a table
    return [char for char in text if char not in MARKUP and not char.isspace()]


@given(MESSAGES)
def test_message_html_keeps_every_visible_character(text: str) -> None:
    read = Reader(message_html(text))
    seen = iter(read.with_addresses)
    assert all(char in seen for char in _visible(text))
    if "a" not in read.tags:
        seen = iter(read.text)
        assert all(char in seen for char in re.findall(r"[\[\]]", text))


@given(MESSAGES)
def test_message_html_has_only_allowed_tags(text: str) -> None:
    html = message_html(text)
    read = Reader(html)
    assert read.tags <= ALLOWED_TAGS
    assert read.attributes <= ALLOWED_ATTRIBUTES
    assert all(link.startswith(("http", "mailto:")) for link in re.findall('href="([^"]*)', html))


@given(MESSAGES)
def test_message_html_passes_through_gradio_unchanged(text: str) -> None:
    html = message_html(text)
    assert inspect.cleandoc(html) == html
    assert all(re.match("<[a-z]", block) for block in html.split("\n\n") if html)
    assert "\n" not in html.replace("\n\n", "")


@pytest.mark.parametrize("address", ["javascript:alert(1)", "data:text/html,x", "//example.com"])
def test_message_html_links_only_web_addresses(address: str) -> None:
    assert "a" not in Reader(message_html(f"[x]({address}) <{address}> {address}")).tags


@pytest.mark.parametrize(
    "text",
    [
        "[" * 2000, "[a](" * 500, "**a " * 600, "`a" * 1000, "> " * 1000, "- " * 1000,
        "http://" * 280,
    ],
    ids=lambda text: text[:4],
)  # fmt: skip
def test_message_html_is_fast_when_markup_is_open(text: str) -> None:
    started = time.perf_counter()
    message_html(text)
    assert time.perf_counter() - started < 1


# ── unfinished and changed text ───────────────────────────────────────────────────────────


def test_pending_text_is_in_a_lighter_ink() -> None:
    html = message_html("雨です。**傘", pending="を買う**よ <b>")
    assert html == (
        '<p>雨です。<strong>傘<span class="pending">を買う</span></strong>'
        '<span class="pending">よ &lt;b&gt;</span></p>'
    )


def test_a_changed_sentence_shows_the_models_words() -> None:
    content = "はい。雨ですよ。\n**とても**大事です"
    changes = [
        {"start": 4, "end": 6, "was": "だ", "step": "tone"},
        {"start": 18, "end": 20, "was": 'だ<"', "step": "tone"},
    ]
    html = message_html(content, changed=changed_sentences(content, changes))
    assert html == (
        '<p>はい。<span tabindex="0" class="changed">雨ですよ。'
        '<span class="was">雨だよ。</span></span>'
        '<br><strong><span tabindex="0" class="changed">とても'
        '<span class="was">**とても**大事だ&lt;&quot;</span></span></strong>'
        '<span class="changed">大事です'
        '<span class="was">**とても**大事だ&lt;&quot;</span></span></p>'
    )


@given(st.text(max_size=60), st.text(max_size=60), st.integers(0, 60), st.integers(0, 20))
def test_marks_add_no_character_and_lose_none(
    message: str, pending: str, start: int, length: int
) -> None:
    start = min(start, len(message))
    end = min(start + length, len(message))
    changes = [{"start": start, "end": end, "was": "言葉", "step": "tone"}] if end > start else []
    changed = changed_sentences(message, changes)
    html = message_html(message, pending=pending, changed=changed)
    assert not set(html) & set("\ufdd0\ufdd1\ufdd2")
    assert html.count("<span") == html.count("</span>")
