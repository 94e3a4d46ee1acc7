"""Turn the messages of an OpenAI request into exchanges and the message to answer.

Clients send messages in any order, with parts, calls of tools and pictures. A model of this app
gets whole exchanges of text, in which the user and the persona take turns:

- System and developer messages become a first exchange, in which the persona agrees to them.
- Consecutive messages of one sender are joined.
- A tool's call and its result become text, since personas have no tools.
- A part that isn't text becomes a placeholder. In the question to answer it is refused.
- Without a question, the instructions after the last answer are the question, or else a request to
  go on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import BaseModel

from persona_lab.errors import InvalidRequest
from persona_lab.pipeline.context import Entry
from persona_lab.pipeline.input import InputValidator
from persona_lab.translations import Translations

MAX_CONVERSATION = 1024 * 1024
"""The largest request in bytes, without its attachments."""

MAX_ATTACHMENTS = 32 * 1024 * 1024
"""The largest request in bytes, with the pictures and files of its history."""

long_text = InputValidator(MAX_CONVERSATION)
"""Cleans texts that only the model's context window limits."""

_INSTRUCTIONS = ("system", "developer")
_RESULTS = ("tool", "function")
_TEXT_TYPES = ("text", "refusal", "thinking", "reasoning", "redacted_thinking")
"""Types of parts that attach nothing. Thoughts are left out."""
_ATTACHMENTS = ("image", "audio", "video")
"""Kinds of attachments that the type of a part names, such as ``image_url``."""

_ATTACHED = re.compile(
    rb'("(?:file_)?data"\s*:\s*"|"(?=data:))'  # the value of a field, or a data URL
    rb'(?=[^"\s]{4096})(?:data:[^",\s]{0,200},)?+(?:[A-Za-z0-9+/=_-]++|\\/)*+"'
)
"""A string of JSON with a file in Base64. Some clients escape slashes."""


class ContentPart(BaseModel):
    """A part of a message."""

    type: str = "text"
    text: str | None = None
    refusal: str | None = None


class FunctionCall(BaseModel):
    """A call of a function."""

    name: str | None = None
    arguments: Any = None


class ToolCall(BaseModel):
    """A call of a tool."""

    id: str | None = None
    function: FunctionCall | None = None


class ChatMessage(BaseModel):
    """A message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart | str] | None = None
    refusal: str | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: FunctionCall | None = None
    tool_call_id: str | None = None

    def parts(self) -> list[ContentPart]:
        """Return the content as parts."""
        content = self.content if self.content is not None else self.refusal or ""
        listed = [content] if isinstance(content, str) else content
        return [ContentPart(text=part) if isinstance(part, str) else part for part in listed]

    def calls(self) -> list[FunctionCall]:
        """Return the calls of tools in the message."""
        calls = [call.function for call in self.tool_calls or []] + [self.function_call]
        return [call for call in calls if call is not None]


def drop_attachments(body: bytes) -> bytes:
    """Return the JSON of a request without the contents of files, which no model here reads."""
    return _ATTACHED.sub(rb'\1"', body)


def conversation(
    messages: Sequence[ChatMessage],
    texts: Translations,
    language: str,
    clean_question: Callable[[str], str] = long_text.clean,
) -> tuple[list[Entry], str]:
    """Split messages into the context, as whole exchanges, and the message to answer.

    Args:
        messages: At least one message.
        texts: The texts that complete exchanges and replace what isn't text.
        language: The language of these texts.
        clean_question: Cleans each message of the user since the last answer, or refuses it.

    Raises:
        InputError: ``clean_question`` refuses a message.
        InvalidRequest: A part of the question isn't text.
    """
    renderer = _Renderer(texts, language)
    answers = [
        index
        for index, message in enumerate(messages)
        if message.role == "assistant" and renderer.text(message)
    ]
    start = answers[-1] + 1 if answers else 0
    earlier = [(message.role, renderer.text(message)) for message in messages[:start]]
    question = [
        (message.role, renderer.question(message, clean_question)) for message in messages[start:]
    ]
    instructions = _select(earlier, _INSTRUCTIONS)
    asked = [text for role, text in question if role in ("user", *_RESULTS)]
    if asked:
        instructions += _select(question, _INSTRUCTIONS)
        message = _join(asked)
    else:
        message = _join(_select(question, _INSTRUCTIONS)) or texts("go_on", language)

    context: list[Entry] = []

    def add(sender: str, text: str) -> None:
        if context and context[-1]["sender"] == sender:
            context[-1]["content"] += "\n\n" + text
        else:
            context.append({"sender": sender, "content": text, "timestamp": ""})

    if instructions:
        add("user", _join(instructions))
        add("ai", texts("heard", language))
    for role, text in earlier:
        if role in _INSTRUCTIONS or not text:
            continue
        if role == "assistant" and not context:
            add("user", texts("opening", language))
        add("ai" if role == "assistant" else "user", text)
    return context, message


def _select(turns: Sequence[tuple[str, str]], roles: Sequence[str]) -> list[str]:
    return [text for role, text in turns if role in roles and text]


def _join(texts: Sequence[str]) -> str:
    return "\n\n".join(filter(None, texts))


class _Renderer:
    """Renders messages as text, the results of tools with the names of the calls before."""

    def __init__(self, texts: Translations, language: str) -> None:
        self._texts = texts
        self._language = language
        self._names: dict[str | None, str | None] = {}

    def text(self, message: ChatMessage) -> str:
        """Return an earlier message as text."""
        for call in message.tool_calls or []:
            self._names[call.id] = call.function.name if call.function else None
        text = long_text.clean("\n".join(filter(None, map(self._part, message.parts()))))
        if message.role in _RESULTS:
            name = message.name or self._names.get(message.tool_call_id) or ""
            return self._texts("tool_result", self._language, name=name, result=text)
        calls = [
            self._texts(
                "tool_call", self._language, name=call.name or "", arguments=call.arguments or ""
            )
            for call in message.calls()
        ]
        return _join([text, *calls])

    def question(self, message: ChatMessage, clean: Callable[[str], str]) -> str:
        """Return a message of the question as text.

        Raises:
            InputError: ``clean`` refuses the text of the user.
            InvalidRequest: The user's message has a part that isn't text.
        """
        if message.role != "user":
            return self.text(message)
        parts = message.parts()
        if any(_attachment(part) for part in parts):
            raise InvalidRequest(why="only_text", field="messages")
        return clean("\n".join(filter(None, map(self._part, parts))))

    def _part(self, part: ContentPart) -> str:
        kind = _attachment(part)
        if not kind:
            return part.text or part.refusal or ""
        return self._texts("attachment", self._language, kind=self._texts(kind, self._language))


def _attachment(part: ContentPart) -> str:
    """Return the key of the name of what a part contains; "" for text."""
    if part.text is not None or part.refusal is not None or part.type in _TEXT_TYPES:
        return ""
    kind = next((kind for kind in _ATTACHMENTS if kind in part.type), "file")
    return f"attachments.{kind}"
