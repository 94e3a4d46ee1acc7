"""Remove the markup of models from an answer: thoughts, and tokens that begin or end a turn.

A server that knows a model's template removes this markup. Others return it as text:

- A *thought* is a pair of tags such as ``<think>…</think>`` or a channel of gpt-oss. It stands at
  the start of the answer, in its own line or after a sentence. Text after ``</think>`` at the start
  is the answer, too. A thought without an end is no answer.
- An *end token* such as ``<|im_end|>`` ends the answer at the end of a line. At the start of the
  answer it is only removed. A *turn token* such as ``<|im_start|>user`` begins another turn.

Markup stays where the answer talks about it: in code, within a sentence (``<think>タグとは``), in a
list or in an answer about tokens. Some templates open a thought in the prompt, so that the answer
begins with the thought and no tag. Text can't be taken back. So only text that begins like a
thought (``Okay, the user …``) is held back until its end.
"""

from __future__ import annotations

import re

from persona_lab.answer_text.code_fences import CodeFenceTracker, CodeSpanTracker
from persona_lab.answer_text.speaker_labels import (
    BRACKET_FRAMES,
    SpeakerLabels,
    comparison_key,
    continues_sentence,
)
from persona_lab.db.tables import Agent
from persona_lab.responses.changes import Edit
from persona_lab.responses.filters import Filter

_TAGS = ("think", "thinking", "thought", "thoughts", "reasoning", "reflection", "seed:think")
THOUGHTS = {
    **{f"<{tag}>": f"</{tag}>" for tag in _TAGS},
    "[think]": "[/think]",
    "◁think▷": "◁/think▷",
    "<|start_thinking|>": "<|end_thinking|>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|channel>thought": "<channel|>",
    "<unused94>thought": "<unused95>",
}
"""The begin of a thought → its end, in lower case."""
CHANNEL_TOKEN = "<|channel|>"  # noqa: S105 - a name of markup
_CHANNEL_ENDS = ("<|end|>", "<|call|>", "<|return|>")
"""Tokens that end a thought of gpt-oss. The begin of another channel ends it, too."""
TURN_TOKENS = (
    "<|im_start|>", "<start_of_turn>", "<|start_header_id|>", "<|start_of_role|>", "<|start|>",
    "<|header_start|>", "<|turn>",
)  # fmt: skip
"""Tokens that begin a turn. The name of a role follows."""
SPEAKER_TOKENS = (
    "<|user|>", "<|human|>", "<|assistant|>", "<|system|>", "<|model|>", "<|user_token|>",
    "<|chatbot_token|>", "<｜user｜>", "<｜assistant｜>", "[inst]",
)  # fmt: skip
"""Tokens that begin the turn of a role."""
END_TOKENS = (
    "</s>", "<eos>", "<end_of_turn>", "<end_of_text>", "<end_of_utterance>", "<turn|>", "<eot>",
    "<eoa>", "[/inst]", "[eos]", "[|endofturn|]",
)  # fmt: skip
"""Tokens that end a turn. All other names in ``<|…|>`` and ``<｜…｜>`` count as such, too."""
_ROLES = ("assistant", "model", "user", "human", "system", "bot", "ai", "tool")
_UNOPENED = (
    *(f"{begin}the user" for begin in ("", "okay, ", "ok, ", "okay. ", "alright, ", "hmm, ", "so ",
                                       "so, ", "okay, so ", "okay so ", "well, ", "first, ")),
    *(f"we need to {verb}" for verb in ("respond", "answer", "reply", "produce", "write")),
    *(f"i need to {verb}" for verb in ("respond", "answer as", "reply")),
    "ユーザーは", "ユーザーが", "ユーザーから", "ユーザーの", "まず、ユーザー",
    "好的，用户", "嗯，用户", "用户",
)  # fmt: skip
"""How thoughts begin that have no opening tag, in lower case."""
_BARE_CHANNEL = "analysis"
_BARE_FINAL = "assistantfinal"

_NAMED = re.compile(r"<\|[A-Za-z][\w-]{1,30}\|>|<｜[\w▁\s-]{1,40}｜>")
_NAMED_BEGIN = re.compile(r"<(?:\|(?:[A-Za-z][\w-]{0,30}\|?)?|｜[\w▁\s-]{0,40}｜?)?")
_FIXED = (*THOUGHTS, *THOUGHTS.values(), *TURN_TOKENS, *SPEAKER_TOKENS, *END_TOKENS)
_FIRSTS = frozenset(token[0] for token in _FIXED)
_SPECIAL = re.compile("[" + "".join(map(re.escape, sorted(_FIRSTS))) + "]")
_HEADER = re.compile(
    r"<\|channel\|>\s*([^<\n]{0,60})(?:<\|constrain\|>[^<\n]{0,40})?<\|message\|>", re.IGNORECASE
)
_MAX_HEADER_LENGTH = 160
_ROLE_END = re.compile(
    r"\s*(?:<\|(?:end_header_id|header_end|im_sep|end_of_role)\|>\s*|\n|(?=<)|\Z)", re.IGNORECASE
)
_ABOUT_MARKUP = re.compile(
    r"トークン|(?:HTML|XML|think|開始|終了|閉じ|思考)\w*タグ|>(?:と|や|」)|チャットテンプレート|ChatML"
    r"|(?:special|stop|end|eos|control) tokens?\b|(?:html|xml|think\w*) tags?\b|chat template"
    r"|think>",
    re.IGNORECASE,
)
"""Text that talks about markup."""
_MENTION = re.compile(
    r"\s*(?:タグ|要素|ブロック|トークン|記法|記号|マーカー|部分|で囲|から始|[」』）)”\"'’.|]"
    r"|(?:tags?|elements?|blocks?|tokens?|markers?|sections?)\b)",
    re.IGNORECASE,
)
_MENTION_LENGTH = 9
"""Characters that are needed to judge whether a tag is mentioned."""
_LIST_LINE = re.compile(r"\s*(?:[-+*|>・•]|\d{1,3}[.)．、]|[「『（(\"'“])\s*$| {4}|\t|\s*[|>]")
"""The begin of a line in which a token is an item, quoted or code."""
_CONTEXT = 200
"""Characters of the line before that are searched."""
_BEFORE_VALUES = (":", "：", "=", "＝", "→")
_STRIKE_END = "</s>"
"""An end token, and the end of struck-out text in HTML."""
_SENTENCE_END = "。！？!?.…♪♡」』）)〜～"


class StripModelMarkup(Filter):
    """Removes thoughts and the tokens that begin or end a turn."""

    def __init__(self, agent: Agent) -> None:
        self._labels = SpeakerLabels([agent.name], BRACKET_FRAMES)
        self._roles = (*_ROLES, agent.name.lower()) if agent.name.strip() else _ROLES
        self._fences = CodeFenceTracker()
        self._spans = CodeSpanTracker()
        self._held = ""
        self._again = ""
        """The text after the begin of a thought, which is read once more."""
        self._thought: _Thought | None = None
        self._begun = False
        """Whether the answer has visible text."""
        self._first_line = True
        self._data = False
        """Whether the answer is a JSON object."""
        self._about_markup = False
        """Whether a line before talks about markup."""
        self._introduced = False
        """Whether the last line ends with a colon."""
        self._at_thought = True
        """Whether a thought without an opening tag may begin here."""
        self._position = 0
        """Number of the characters that were returned or removed."""
        self._edits: list[Edit] = []
        self.consumed: int = 0

    def feed(self, text: str) -> str:
        """Read ``text``, and return the text that is finished."""
        out: list[str] = []
        position = 0
        while position < len(text) and not self.ended:
            if self._begun and not self._held and self._thought is None:
                special = _SPECIAL.search(text, position)
                end = special.start() if special else len(text)
                out.append(self._give(text[position:end]))
                self.consumed += end - position
                position = end
                if not special:
                    break
            self.consumed += 1
            out.append(self._read(text[position]))
            position += 1
        return "".join(out)

    def finish(self) -> str:
        """End the input, and return the rest of the text."""
        out = ""
        while not self.ended:
            if self._thought is not None:
                out += self._end_thought(self._thought)
            elif self._held:
                out += self._scan(ended=True)
            else:
                break
        return out

    def edits(self, before: str, after: str) -> list[Edit]:
        """Return the removals."""
        if self._position < len(before):
            self._remove(len(before) - self._position)
        return self._edits

    def _read(self, character: str) -> str:
        if self._thought is not None:
            return self._read_thought(self._thought, character)
        if not self._held and self._begun and character not in _FIRSTS:
            return self._give(character)
        self._held += character
        return self._scan()

    def _scan(self, *, ended: bool = False) -> str:
        """Decide about the held text, as far as it is known."""
        out = ""
        while self._held and not self.ended and self._thought is None:
            length = self._decide(ended=ended)
            if length is None:
                break
            if length > 0:
                out += self._give(self._take(length))
            elif length < 0:
                self._remove(len(self._take(-length)))
        again, self._again = self._again, ""
        for character in again:
            out += self._read(character)
        return out

    def _decide(self, *, ended: bool) -> int | None:
        """Decide about the begin of the held text.

        Returns:
            The number of characters that stay, or the negative number of those to remove; 0 if the
            state changed. None if more text is needed.
        """
        held = self._held
        if self._fences.open or self._spans.open:
            return 1
        if not self._begun and (waiting := self._decide_unopened(ended=ended)) is not False:
            return waiting
        if held[0] not in _FIRSTS:
            return 1
        folded = held.lower()
        token = next((each for each in _FIXED if folded.startswith(each)), "")
        if not token and (named := _NAMED.match(held)):
            token = named[0].lower()
        if not token:
            if any(each.startswith(folded) for each in _FIXED) or _NAMED_BEGIN.fullmatch(held):
                cut_off = (
                    len(held) > 2 and held.startswith(("<|", "<｜")) and not self._is_mention("")
                )
                return (-len(held) if cut_off else 1) if ended else None
            return 1
        after = held[len(token) :]
        if token in THOUGHTS:
            return self._decide_opening(token, after, ended=ended)
        if token in THOUGHTS.values():
            return self._decide_closing(token, after, ended=ended)
        if token == CHANNEL_TOKEN:
            return self._decide_channel(token, ended=ended)
        if token in TURN_TOKENS:
            return self._decide_turn(token, after, ended=ended)
        return self._decide_end(token, after, ended=ended)

    def _decide_unopened(self, *, ended: bool) -> int | bool | None:
        """Decide about a thought without an opening tag. False if there is none."""
        held = self._held
        if held[0].isspace():
            return 1
        if not self._at_thought:
            return False
        folded = held.lower()
        if any(folded.startswith(each) for each in _UNOPENED):
            return self._start_thought(0, _Thought(tuple(THOUGHTS.values()), optional=True))
        if folded.startswith(_BARE_CHANNEL) and held[len(_BARE_CHANNEL) :][:1].isupper():
            return self._start_thought(0, _Thought((_BARE_FINAL,), certain=True))
        begins = (*_UNOPENED, _BARE_CHANNEL)
        if not ended and any(each.startswith(folded) for each in begins):
            return None
        self._at_thought = False
        return False

    def _decide_opening(self, token: str, after: str, *, ended: bool) -> int | None:
        strict = self._at_start or not self._spans.line.strip()
        after_sentence = self._spans.line.rstrip()[-1:] in _SENTENCE_END
        if not self._at_start and (
            not (strict or after_sentence) or self._is_mention("") or self._introduced or self._data
        ):
            return len(token)
        mention = _mentions(after, ended=ended)
        if mention is None:
            return None
        if mention:
            return len(token)
        return self._start_thought(len(token), _Thought((THOUGHTS[token],), loose=not strict))

    def _decide_closing(self, token: str, after: str, *, ended: bool) -> int | None:
        line, newline, _ = after.partition("\n")
        if not self._at_start and self._spans.line.strip():
            return len(token)
        if self._at_start:
            mention = _mentions(after, ended=ended)
            return None if mention is None else len(token) if mention else -len(token)
        if line.strip() or self._is_mention(""):
            return len(token)
        return -len(token) if newline or ended else None

    def _decide_channel(self, token: str, *, ended: bool) -> int | None:
        held = self._held
        if not self._at_start:
            return self._decide_end(token, held[len(token) :], ended=ended)
        header = _HEADER.match(held)
        if header is None:
            unfinished = len(held) < _MAX_HEADER_LENGTH and "\n" not in held
            return None if unfinished and not ended else len(token)
        if header[1].lower().startswith("final"):
            return -len(header[0])
        restarts = (CHANNEL_TOKEN, "<|start|>")
        return self._start_thought(
            len(header[0]), _Thought(_CHANNEL_ENDS, restarts=restarts, certain=True)
        )

    def _decide_turn(self, token: str, after: str, *, ended: bool) -> int | None:
        folded = after.lower()
        role = max((each for each in self._roles if folded.startswith(each)), key=len, default="")
        if not ended and any(each.startswith(folded) for each in self._roles if each != folded):
            return None
        rest = after[len(role) :]
        end = _ROLE_END.match(rest) if role else None
        if not ended and role and (len(rest) < 20 and "\n" not in rest and not rest.strip(" ")):
            return None
        if not ended and role and rest.lstrip().startswith("<") and ">" not in rest:
            return None
        if self._is_mention("") or (role and end is None) or (after and not role):
            return len(token)
        if self._at_start:
            return -(len(token) + len(role) + (end.end() if end else 0))
        return self._end()

    def _decide_end(self, token: str, after: str, *, ended: bool) -> int | None:
        line, newline, _ = after.partition("\n")
        spaces = len(line) - len(line.lstrip())
        mentioned = self._is_mention(token)
        speaker = token in SPEAKER_TOKENS
        if self._at_start or (speaker and not self._spans.line.strip()):
            mention = mentioned or _mentions(after, ended=ended)
            if mention is None:
                return None
            if mention:
                return len(token)
            return -len(token) if self._at_start else self._end()
        if mentioned:
            return len(token)
        if newline and not line.strip():
            return self._end()
        text = line[spaces:]
        if not text:
            return self._end() if ended else None
        folded = text.lower()
        if _NAMED.match(text) or any(folded.startswith(each) for each in _FIXED):
            return self._end()
        if not ended and (
            _NAMED_BEGIN.fullmatch(text) or any(each.startswith(folded) for each in _FIXED)
        ):
            return None
        return len(token)

    @property
    def _at_start(self) -> bool:
        """Whether the answer has no text yet, besides the persona's label."""
        if not self._begun:
            return True
        line = self._spans.line
        if not self._first_line or len(line) > 100:
            return False
        return self._labels.is_label("".join(map(comparison_key, line)))

    def _is_mention(self, token: str) -> bool:
        """Return whether the text before the current place makes markup a part of the words."""
        begin, line = self._spans.line[:_CONTEXT], self._spans.line[-_CONTEXT:]
        return (
            self._about_markup
            or _ABOUT_MARKUP.search(line) is not None
            or _LIST_LINE.match(begin) is not None
            or line.rstrip()[-1:] in _BEFORE_VALUES
            or (token == _STRIKE_END and "<s>" in line)
        )

    def _read_thought(self, thought: _Thought, character: str) -> str:
        thought.text.append(character)
        thought.tail = (thought.tail + character.lower())[-thought.longest :]
        if thought.closed:
            return self._judge_closed(thought)
        if thought.tail.endswith(thought.restarts):
            begin = next(each for each in thought.restarts if thought.tail.endswith(each))
            text, self._thought = "".join(thought.text), None
            self._remove(len(text) - len(begin))
            self._held = text[-len(begin) :]
            return self._scan()
        if not thought.tail.endswith(thought.ends):
            return ""
        thought.closed = len(thought.text)
        return self._judge_closed(thought)

    def _judge_closed(self, thought: _Thought, *, ended: bool = False) -> str:
        """Remove a thought that ended, unless the text after it mentions the tags."""
        text = "".join(thought.text)
        after = text[thought.closed :]
        certain = thought.certain or "\n" in text[: thought.closed]
        mention = False if certain else _mentions(after, ended=ended)
        if mention is None:
            return ""
        self._thought = None
        out = ""
        if mention:
            out = self._give(text[: thought.closed])
        else:
            self._remove(thought.closed)
            self._at_thought = False
        for character in after:
            out += self._read(character)
        return out

    def _end_thought(self, thought: _Thought) -> str:
        """Decide about a thought at the end of the input."""
        text = "".join(thought.text)
        if thought.closed:
            return self._judge_closed(thought, ended=True)
        self._thought = None
        if thought.optional:
            self._at_thought = False
            self._held = text
        elif thought.loose and text.lower() not in THOUGHTS:
            return self._give(text)
        else:
            self._remove(len(text))
        return ""

    def _start_thought(self, length: int, thought: _Thought) -> int:
        """Begin a thought with the first ``length`` characters of the held text."""
        thought.text.extend(self._take(length))
        self._again, self._held, self._thought = self._held, "", thought
        return 0

    def _end(self) -> int:
        self._held, self.ended = "", True
        return 0

    def _take(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text

    def _give(self, text: str) -> str:
        """Return ``text``, and remember what it tells about the text after it."""
        self._position += len(text)
        if not self._begun and text.strip():
            self._begun, self._data = True, text.lstrip().startswith("{")
        *lines, rest = text.split("\n")
        for part in lines:
            line = self._spans.line + part
            self._about_markup |= _ABOUT_MARKUP.search(line) is not None
            if line.strip():
                self._introduced = line.rstrip().endswith((":", "："))
                self._first_line = False
            self._spans.feed(part + "\n")
        self._spans.feed(rest)
        self._fences.feed(text)
        return text

    def _remove(self, length: int) -> None:
        end = self._position + length
        if self._edits and self._edits[-1].end == self._position:
            self._edits[-1] = Edit(self._edits[-1].start, end, 0)
        elif length:
            self._edits.append(Edit(self._position, end, 0))
        self._position = end


def strip_model_markup(text: str, agent: Agent) -> str:
    """Return the complete ``text`` of a model without its markup."""
    markup = StripModelMarkup(agent)
    return markup.feed(text) + markup.finish()


class _Thought:
    """A thought that is read.

    Attributes:
        ends: The texts that end it.
        restarts: The texts that end it and begin other markup.
        optional: Whether it is a thought only if it ends.
        certain: Whether its end makes it a thought, whatever follows.
        loose: Whether it begins within a line, so that it must end.
        text: The text so far, in characters.
        tail: The end of the text, in lower case.
        closed: The length of the thought with its end; 0 while it is open.
    """

    def __init__(
        self,
        ends: tuple[str, ...],
        *,
        restarts: tuple[str, ...] = (),
        optional: bool = False,
        certain: bool = False,
        loose: bool = False,
    ) -> None:
        self.ends = ends
        self.restarts = restarts
        self.optional = optional
        self.certain = certain or optional
        self.loose = loose
        self.text: list[str] = []
        self.tail = ""
        self.closed = 0
        self.longest = max(map(len, (*ends, *restarts)))


def _mentions(after: str, *, ended: bool) -> bool | None:
    """Return whether ``after`` goes on with a sentence about the tag before it.

    Returns:
        None if more text is needed.
    """
    line, newline, _ = after.partition("\n")
    if len(line) < _MENTION_LENGTH and not newline and not ended:
        return None
    return _MENTION.match(line) is not None or bool(continues_sentence(after, ended=True))
