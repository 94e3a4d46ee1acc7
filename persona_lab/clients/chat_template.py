"""The chat template of a GGUF file: render it, and prove that all words of a prompt come out.

A template is a Jinja program that comes with the file. Some have no branch for the system role and
leave the persona out without an error; some read only content in parts. So each template renders a
conversation of known words first. The first form of messages in which all words come out, in their
order, is used.
"""

from __future__ import annotations

import functools
import json
import logging
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

log = logging.getLogger(__name__)

Message = dict[str, Any]

TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError)
"""Errors that a template may raise."""

_PROBE: tuple[Message, ...] = (
    {"role": "system", "content": "Persona word alpha."},
    {"role": "user", "content": "Question word bravo."},
    {"role": "assistant", "content": "Answer word charlie."},
    {"role": "user", "content": "Question word delta."},
)
"""A conversation of known words."""


_OPEN_THOUGHT = re.compile(
    r"(<(?:think|thinking|thought|reasoning|seed:think)>|\[THINK\]|◁think▷|<\|START_THINKING\|>)\s*$",
    re.IGNORECASE,
)


def without_system(messages: list[Message]) -> list[Message]:
    """Put the system text ahead of the first user message."""
    if not messages or messages[0]["role"] != "system":
        return messages
    system, *turns = messages
    first = next((turn for turn in turns if turn["role"] == "user"), None)
    if first is None:
        return [{**system, "role": "user"}, *turns]
    return [
        {**turn, "content": f"{system['content']}\n\n{turn['content']}"} if turn is first else turn
        for turn in turns
    ]


def _in_parts(messages: list[Message]) -> list[Message]:
    """Give each content as a list of parts."""
    return [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]


_FORMS: dict[str, Callable[[list[Message]], list[Message]]] = {
    "messages": lambda messages: messages,
    "parts": _in_parts,
    "system in user": without_system,
    "system in user, parts": lambda messages: _in_parts(without_system(messages)),
}
"""The forms in which a template may take messages, the best first."""


class ChatTemplate:
    """A compiled template and the form of messages that it takes.

    Attributes:
        form: The name of the form; "" if the words come out in none.
        open_thought: The tag with which the template begins the answer's thought, "" if it begins
            none.
    """

    def __init__(self, source: str, bos: str, eos: str) -> None:
        """Compile a template.

        Args:
            source: The template.
            bos: The name of the token that begins a text.
            eos: The name of the token that ends a text.
        """
        self._source, self._bos, self._eos = source, bos, eos
        self.form = next(filter(self._proves, _FORMS), "")
        text = self._render(_FORMS[self.form](list(_PROBE))) if self.form else ""
        opened = _OPEN_THOUGHT.search(text)
        self.open_thought = f"{opened[1]}\n" if opened else ""

    def render(self, messages: list[Message]) -> str | None:
        """Render a conversation.

        Returns:
            The text, None if the template doesn't bring out all words.

        Raises:
            jinja2.TemplateError: The template refuses the conversation, or it isn't valid.
        """
        forms = (self.form, "system in user") if self.form else tuple(_FORMS)
        refusal: Exception | None = None
        for form in forms:
            try:
                text = self._render(_FORMS[form](messages))
            except TEMPLATE_ERRORS as error:
                refusal = refusal or error
                continue
            return text if self.form else None
        raise jinja2.TemplateError(str(refusal)) from refusal

    def _render(self, messages: list[Message]) -> str:
        template, unset = _compile(self._source)
        return template.render(
            messages=messages,
            add_generation_prompt=True,
            bos_token=self._bos,
            eos_token=self._eos,
            **dict.fromkeys(unset),
        )

    def _proves(self, form: str) -> bool:
        """Return whether all words of the probe come out in their order."""
        try:
            text = self._render(_FORMS[form](list(_PROBE)))
        except TEMPLATE_ERRORS:
            return False
        places = [text.find(message["content"]) for message in _PROBE]
        return places[0] >= 0 and places == sorted(places)


@functools.lru_cache(maxsize=32)
def chat_template(source: str, bos: str, eos: str, model: str) -> ChatTemplate:
    """Return the template of a model, and log once if it needs another form of messages."""
    template = ChatTemplate(source, bos, eos)
    if template.form != "messages":
        used = template.form or "plain text, because the words of a prompt don't come out"
        more = {"event": "chat_template", "model": model, "form": template.form or "plain"}
        log.warning("the chat template of %s gets: %s", model, used, extra=more)
    return template


# ── Jinja, as templates expect it ─────────────────────────────────────────────────────────


class _Generation(Extension):
    """The tag ``{% generation %}``, which marks the answer for training and changes no text."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return what stands between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@functools.lru_cache(maxsize=32)
def _compile(source: str) -> tuple[jinja2.Template, tuple[str, ...]]:
    """Compile a template in a sandbox, because it comes from a downloaded file.

    Returns:
        The template, and the variables that it expects to be none if they aren't given. A
        comparison with none is true for a variable that isn't defined.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _Generation],
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.filters["tojson"] = _to_json
    parsed = environment.parse(source)
    compared = {
        test.node.name
        for test in parsed.find_all(nodes.Test)
        if test.name == "none" and isinstance(test.node, nodes.Name)
    }
    compared |= {
        compare.expr.name
        for compare in parsed.find_all(nodes.Compare)
        if isinstance(compare.expr, nodes.Name)
        and any(isinstance(o.expr, nodes.Const) and o.expr.value is None for o in compare.ops)
    }
    known = {"messages", "add_generation_prompt", "bos_token", "eos_token"}
    unset = sorted((compared | {"tools", "documents"}) - known)
    return environment.from_string(source), tuple(unset)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON without the escapes for HTML of Jinja's own filter."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
