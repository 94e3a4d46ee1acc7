r"""Messages as safe HTML: CommonMark that shows every character that was said.

The parser is markdown-it, the sanitizer is nh3. Some rules of CommonMark lose characters of
ordinary text: ``2*3=6、4*5=20``, a line ``[状態]: 空腹``, the face ``¯\_(ツ)_/¯``. Those rules are
off, or apply only where the text can't be anything but markup. In doubt, the characters stay.

Only these characters of a message disappear: fences, the ``#`` of headings, the ``>`` of
quotations, list markers, horizontal rules, the pipes and rules of tables, ``**``, ``~~``, backticks
and single ``*`` around words, and the brackets and the address of a link.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from html import escape

import nh3
from linkify_it import LinkifyIt
from markdown_it import MarkdownIt
from markdown_it.helpers import parseLinkDestination, parseLinkLabel
from markdown_it.renderer import RendererHTML
from markdown_it.ruler import RuleOptionsType
from markdown_it.rules_block import StateBlock, blockquote, fence, heading, hr, list_block, table
from markdown_it.rules_block.table import escapedSplit, getLine
from markdown_it.rules_inline import StateInline, backtick, link
from markdown_it.rules_inline.state_inline import Delimiter
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

from persona_lab.responses.changes import ChangedSentence

MAX_NESTED_BLOCKS = 20
"""Maximum depth of lists and quotations. Markers of deeper ones are text."""
MAX_ADDRESS_LENGTH = 2048
"""Maximum number of characters of an address that becomes a link."""

_TAGS = {"*": "em", "**": "strong", "***": "strong", "~~": "s"}
_RUNS = list(_TAGS)
_FACE_WIDTH = 5
"""Maximum distance in characters between the eyes of a face."""


def message_html(
    message: str, *, pending: str = "", changed: Sequence[ChangedSentence] = ()
) -> str:
    """Convert a message to HTML.

    Each block of the message is one line, with a blank line between blocks. Gradio's Markdown
    parser takes such lines for HTML and leaves them as they are. Its page replaces only the
    blocks that have changed since the last update of a stream.

    Args:
        message: An answer of a model, a greeting, or a user's message.
        pending: The unfinished text after it. It is shown in a lighter ink.
        changed: The sentences of ``message`` that a step changed. They are underlined, and show
            the model's own words while they are touched or focused.
    """
    message, pending = message.translate(_NO_MARKS), pending.translate(_NO_MARKS)
    for sentence in reversed(changed):
        start, end = sentence.start, sentence.end
        message = f"{message[:start]}{_OPEN}{message[start:end]}{_CLOSE}{message[end:]}"
    html = _render_blocks(f"{message}{_PENDING}{pending}" if pending else message)
    if pending:
        finished, _, rest = html.partition(_PENDING)
        html = finished + _wrap_text(rest, '<span class="pending">{}</span>')
    for sentence in changed:
        before, _, rest = html.partition(_OPEN)
        inner, _, rest = rest.partition(_CLOSE)
        was = f'<span class="was">{_one_line(sentence.was.strip())}</span>'
        inner = _wrap_text(inner, f'<span class="changed">{{}}{was}</span>')
        inner = inner.replace("<span ", '<span tabindex="0" ', 1)
        html = before + inner + rest
    return html


_OPEN, _CLOSE, _PENDING = "\ufdd0", "\ufdd1", "\ufdd2"
"""Noncharacters, which stand for no text. They mark places of the text through the parser."""
_NO_MARKS = dict.fromkeys(map(ord, _OPEN + _CLOSE + _PENDING))


def _wrap_text(html: str, element: str) -> str:
    """Put each text between the tags of ``html`` into ``element``, in the place of its {}."""
    before, _, after = element.partition("{}")
    return _TEXT.sub(lambda text: f"{before}{text[0]}{after}" if text[0].strip() else text[0], html)


_TEXT = re.compile(r"(?:^|(?<=>))[^<>]+")


def _one_line(text: str) -> str:
    return escape(text).replace("\n", "&#10;").replace("\t", "&#9;")


def _render_blocks(message: str) -> str:
    env: EnvType = {}
    renderer, options = _MARKDOWN.renderer, _MARKDOWN.options
    return "\n\n".join(
        _SANITIZER.clean(renderer.render(block, options, env))
        .replace("\n", "&#10;")
        .replace("\t", "&#9;")
        for block in _split_blocks(_MARKDOWN.parse(message, env))
    )


def _split_blocks(tokens: Sequence[Token]) -> Iterator[Sequence[Token]]:
    start = depth = 0
    for end, token in enumerate(tokens, 1):
        depth += token.nesting
        if depth == 0:
            yield tokens[start:end]
            start = end


# ── bold, italic and deleted text ─────────────────────────────────────────────────────────


def _is_cjk(char: str) -> bool:
    return unicodedata.east_asian_width(char) in "WFH"


def _is_punctuation(char: str) -> bool:
    """Return whether CommonMark counts ``char`` as punctuation, without that of CJK text."""
    return unicodedata.category(char)[0] in "PS" and not _is_cjk(char)


def _flanks(before: str, after: str) -> tuple[bool, bool]:
    """Return whether a run of delimiters is left-flanking, and whether it is right-flanking.

    The definition is the one of the CJK-friendly amendment to CommonMark
    (https://github.com/tats-u/markdown-cjk-friendly). Without it, ``**「重要」**です`` isn't bold.
    """
    near = before.isspace() or _is_punctuation(before) or _is_cjk(before)
    left = not after.isspace() and (near or not _is_punctuation(after))
    near = after.isspace() or _is_punctuation(after) or _is_cjk(after)
    right = not before.isspace() and (near or not _is_punctuation(before))
    return left, right


def _can_open_and_close(run: str, before: str, after: str) -> tuple[bool, bool]:
    """Return whether a run of delimiters can begin marked text, and whether it can end it.

    Args:
        run: A key of ``_TAGS``.
        before: The character before the run, a space at the start of a paragraph.
        after: The character after the run, a space at the end of a paragraph.
    """
    left, right = _flanks(before, after)
    if run in ("**", "***"):
        # A power, such as 2**3. Full-width digits count, other CJK characters don't.
        power = all(
            char.isalnum() and (char.isnumeric() or not _is_cjk(char)) for char in (before, after)
        )
        return left and not power, right and not power
    # Not inside a word: 2*3, 楽しい~~よ.
    left, right = left and not before.isalnum(), right and not after.isalnum()
    if run == "*":
        # Not the cheeks of a face: (*^_^*), (*ノωノ*).
        left = left and before not in "(（" and (after.isalnum() or after in "「『（(“\"'")
        right = right and after not in ")）"
    return left, right


def _char_before(text: str, position: int) -> str:
    """Return the character before ``position``, without its variation selector."""
    while position > 0:
        position -= 1
        char = text[position]
        if not ("\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef"):
            return char
    return " "


def _delimiter_run(state: StateInline, silent: bool) -> bool:
    """Parse a run of ``*`` or ``~``."""
    start = end = state.pos
    marker = state.src[start]
    if silent or marker not in "*~":
        return False
    while end < state.posMax and state.src[end] == marker:
        end += 1
    run = state.src[start:end]
    state.push("text", "", 0).content = run
    state.pos = end
    if run in _TAGS:
        after = state.src[end] if end < state.posMax else " "
        opens, closes = _can_open_and_close(run, _char_before(state.src, start), after)
        state.delimiters.append(
            Delimiter(
                marker=_RUNS.index(run),
                length=0,  # no limit on the sum of two lengths
                token=len(state.tokens) - 1,
                end=-1,
                open=opens,
                close=closes,
            )
        )
    return True


def _pair_delimiters(state: StateInline) -> None:
    """Convert the delimiters that markdown-it has paired to tags."""
    _convert_delimiters(state, state.delimiters)
    for meta in state.tokens_meta:
        if meta and "delimiters" in meta:
            _convert_delimiters(state, meta["delimiters"])


def _convert_delimiters(state: StateInline, delimiters: list[Delimiter]) -> None:
    for opener in delimiters:
        if opener.end < 0:
            continue
        first, last = opener.token, delimiters[opener.end].token
        run = _RUNS[opener.marker]
        if run == "*" and sum(len(token.content) for token in state.tokens[first + 1 : last]) < 2:
            continue  # the face *o*
        tag = _TAGS[run]
        for position, nesting in ((first, 1), (last, -1)):
            token = Token(f"{tag}_open" if nesting == 1 else f"{tag}_close", tag, 0, markup=run)
            token.nesting = 1 if nesting == 1 else -1
            state.tokens[position] = token


# ── other inline rules ────────────────────────────────────────────────────────────────────


def _backslash(state: StateInline, silent: bool) -> bool:
    r"""Parse a backslash and the punctuation after it as text: ``\*`` shows both characters."""
    after = state.src[state.pos + 1 : state.pos + 2]
    if state.src[state.pos] != "\\" or state.pos + 1 >= state.posMax or not _is_ascii_mark(after):
        return False
    if not silent:
        state.append_pending("\\" + after)
    state.pos += 2
    return True


def _is_ascii_mark(char: str) -> bool:
    return char.isascii() and char.isprintable() and not char.isalnum() and char != " "


def _code_span(state: StateInline, silent: bool) -> bool:
    """Parse code between backticks. The backtick of a face, ``(´・ω・`)``, is text."""
    position = state.pos
    if state.src[position] != "`":
        return False
    single = "`" not in (state.src[position - 1 : position], state.src[position + 1 : position + 2])
    near = state.src[max(0, position - _FACE_WIDTH) : position + _FACE_WIDTH + 1]
    if single and "´" in near:
        if not silent:
            state.append_pending("`")
        state.pos += 1
        return True
    return backtick(state, silent)


def _link(state: StateInline, silent: bool) -> bool:
    """Parse ``[text](address)``.

    It stays text unless the address is absolute, or ``[笑顔](心の声)`` would lose what is in
    parentheses. A title would be lost too, so a link with a title stays text.
    """
    if state.src[state.pos] != "[" or "](" not in state.src[state.pos :]:
        return False
    label_end = parseLinkLabel(state, state.pos, True)
    if label_end < 0 or not state.src.startswith("(", label_end + 1):
        return False
    address = parseLinkDestination(state.src, label_end + 2, state.posMax)
    if (
        not state.src[state.pos + 1 : label_end].strip()
        or not address.ok
        or not address.str.startswith(("http://", "https://", "mailto:"))
        or not state.src.startswith(")", address.pos)
    ):
        return False
    return link(state, silent)


class _AsciiAddresses:
    """Finds plain addresses for markdown-it. They end before the first non-ASCII character."""

    def __init__(self) -> None:
        self._linkify = LinkifyIt()

    def match_at_start(self, text: str) -> object:
        """Return linkify-it's match at the start of ``text``, or None."""
        text = text[:MAX_ADDRESS_LENGTH]
        if not text.startswith(("http://", "https://")):
            return None
        end = next((i for i, char in enumerate(text) if not "!" <= char <= "~"), len(text))
        return self._linkify.match_at_start(text[:end])


# ── block rules ───────────────────────────────────────────────────────────────────────────


def _line(state: StateBlock, number: int) -> str:
    return state.src[state.bMarks[number] + state.tShift[number] : state.eMarks[number]]


def _heading(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Parse ``# heading``. A heading without text is text."""
    return bool(_line(state, start).strip("# \t")) and heading(state, start, end, silent)


def _fence(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Parse a fence of backticks. Tildes, ``~~~そうだね``, are text."""
    return _line(state, start).startswith("`") and fence(state, start, end, silent)


def _rule(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Parse a horizontal rule. Underscores, a blank to fill in, are text."""
    return not _line(state, start).startswith("_") and hr(state, start, end, silent)


def _quotation(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Parse a quotation. Without a space after its mark, as in ``>_<`` and ``>>1``, it is text."""
    if state.level >= MAX_NESTED_BLOCKS or not _line(state, start).startswith(("> ", ">\t")):
        return False
    return blockquote(state, start, end, silent)


def _list(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Parse a list that isn't nested too deep. markdown-it would drop its text."""
    return state.level < MAX_NESTED_BLOCKS and list_block(state, start, end, silent)


def _table(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Parse a table. Cells beyond the columns of its head are shown too."""
    first = len(state.tokens)
    if not table(state, start, end, silent):
        return False
    columns = row = 0
    tokens: list[Token] = []
    for token in state.tokens[first:]:
        if token.type == "tr_open" and token.map:
            row = token.map[0]
        columns += token.type == "th_open"
        if token.type == "tr_close":
            for cell in _cells(getLine(state, row))[columns:]:
                tokens += [
                    Token("td_open", "td", 1),
                    Token("inline", "", 0, content=cell, children=[]),
                    Token("td_close", "td", -1),
                ]
        tokens.append(token)
    state.tokens[first:] = tokens
    return True


def _cells(line: str) -> list[str]:
    cells = [cell.strip() for cell in escapedSplit(line.strip())]
    start = 1 if cells[0] == "" else 0
    return cells[start:-1] if len(cells) > start and cells[-1] == "" else cells[start:]


# ── HTML ──────────────────────────────────────────────────────────────────────────────────


class _Renderer(RendererHTML):
    """Renders blocks without newlines outside code, and shows what a fence says."""

    def renderToken(  # noqa: N802 - the name of the base class
        self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType
    ) -> str:
        token = tokens[idx]
        if token.hidden:  # the paragraph of an item in a list without blank lines
            return ""
        if token.nesting == -1:
            return f"</{token.tag}>"
        return f"<{token.tag}{self.renderAttrs(token) if token.attrs else ''}>"

    def softbreak(
        self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType
    ) -> str:
        return "<br>"

    hardbreak = softbreak

    def fence(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        info = tokens[idx].info.strip()
        caption = Token("text", "", 0, content=info)
        head = f'<div class="code-info">{self.text([caption], 0, options, env)}</div>'
        return (head if info else "") + self.code_block(tokens, idx, options, env)

    def code_block(
        self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType
    ) -> str:
        return super().code_block(tokens, idx, options, env).removesuffix("\n")

    def list_item_open(
        self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType
    ) -> str:
        number = tokens[idx].info
        if number:
            tokens[idx].attrSet("value", int(number))
        return self.renderToken(tokens, idx, options, env)


class _Markdown(MarkdownIt):
    """Shows an address as it was said."""

    def normalizeLinkText(self, link: str) -> str:  # noqa: N802 - the name of the base class
        return link


def _build_markdown() -> MarkdownIt:
    options = {"html": False, "breaks": True, "linkify": True, "maxNesting": 2 * MAX_NESTED_BLOCKS}
    markdown = _Markdown("commonmark", options, renderer_cls=_Renderer)
    markdown.enable(["table", "linkify", "strikethrough"])
    markdown.disable(["reference", "lheading", "html_block"])
    markdown.disable(["emphasis", "image", "autolink", "html_inline", "entity"])
    markdown.core.ruler.disable(["linkify"])
    markdown.linkify = _AsciiAddresses()
    interrupts: RuleOptionsType = {"alt": ["paragraph", "reference", "blockquote", "list"]}
    block = markdown.block.ruler
    block.at("heading", _heading, {"alt": ["paragraph", "reference", "blockquote"]})
    block.at("fence", _fence, interrupts)
    block.at("blockquote", _quotation, interrupts)
    block.at("hr", _rule, interrupts)
    block.at("list", _list, {"alt": ["paragraph", "reference", "blockquote"]})
    block.at("table", _table, {"alt": ["paragraph", "reference"]})
    markdown.inline.ruler.at("escape", _backslash)
    markdown.inline.ruler.at("backticks", _code_span)
    markdown.inline.ruler.at("strikethrough", _delimiter_run)
    markdown.inline.ruler.at("link", _link)
    markdown.inline.ruler2.at("strikethrough", _pair_delimiters)
    return markdown


_MARKDOWN = _build_markdown()
_SANITIZER = nh3.Cleaner(
    tags={
        "p", "br", "strong", "em", "s", "a", "code", "pre", "div", "blockquote", "hr",
        "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li",
        "table", "thead", "tbody", "tr", "th", "td",
    },
    attributes={
        "a": {"href"}, "ol": {"start"}, "li": {"value"}, "th": {"style"}, "td": {"style"},
    },
    allowed_classes={"div": {"code-info"}},
    filter_style_properties={"text-align"},
    set_tag_attribute_values={"a": {"target": "_blank"}},
    url_schemes={"http", "https", "mailto"},
)  # fmt: skip
