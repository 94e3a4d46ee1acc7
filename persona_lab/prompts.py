"""From a persona to the exact text that is sent: choose a template, render it, keep the trace.

:class:`PromptTemplateEngine` knows the files: ``rules.yaml`` chooses, ``prompts/*.j2`` speak.
:class:`PromptBuilder` knows personas and makes a :class:`~persona_lab.models.Prompt`. Neither
knows a provider, the store, or how much of a conversation fits a model.

Persona text is always a value in a template, never template source. On its way through the
template a value carries marks that name its field (:class:`Traced`), and the marks become the
prompt's trace; so the trace needs nothing from the templates and holds for any of them.
"""

from __future__ import annotations

import re
import traceback
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from persona_lab.errors import TemplateError
from persona_lab.models import Agent, Prompt, Span, Trace, Turn
from persona_lab.words import read_yaml

if TYPE_CHECKING:
    from persona_lab.clients import ModelInfo

Kind = Literal["chat", "transcript"]
_T = TypeVar("_T")

LANGUAGES = ("ja", "en")
"""Every template that a rule names exists in these; others may be added beside them."""

FIELDS = (
    "name",
    "description",
    "gender",
    "background",
    "first_person",
    "second_person",
    "sentence_endings",
    "catchphrases",
    "forbidden_words",
    "personalities",
    "roles",
    "tones",
    "examples",
    "greeting",
)
"""The persona's fields that a span can name."""

# Unicode keeps U+FDD0–U+FDEF free for use inside a program: no text may contain them.
_CLOSE = "\ufdd0"
_OPEN = {field: chr(0xFDD1 + number) for number, field in enumerate(FIELDS)}
_FIELD = {mark: field for field, mark in _OPEN.items()}
_MARKS = re.compile("([\ufdd0-\ufdef])")


class Traced(str):
    """A persona's value that, printed by a template, says which field it came from.

    Only ``str()`` adds the marks, and ``str()`` is what Jinja's output, ``join`` and ``~`` call.
    Everything else (equality, truth, length, membership) is the plain value's, so a template
    can't tell it from one. A filter that computes a new text, such as ``upper``, loses the
    trace and nothing else.
    """

    __slots__ = ("field",)
    field: str

    def __new__(cls, value: object, field: str) -> Traced:
        text = super().__new__(cls, _clean(value))
        text.field = field
        return text

    def __str__(self) -> str:
        plain = str.__str__(self)
        return f"{_OPEN[self.field]}{plain}{_CLOSE}" if plain else ""


def _clean(value: object) -> str:
    return _MARKS.sub("", str(value or "")).strip()


def unmark(text: str) -> tuple[str, tuple[Span, ...]]:
    """``text`` without its marks, and the spans that they stood around, in order of appearance."""
    plain: list[str] = []
    spans: list[Span] = []
    length = 0
    opened: tuple[str, int] | None = None
    for piece in _MARKS.split(text):
        if piece in _FIELD:
            opened = (_FIELD[piece], length)
        elif piece == _CLOSE:
            if opened is not None:
                spans.append(Span(opened[1], length, opened[0]))
            opened = None
        else:
            plain.append(piece)
            length += len(piece)
    return "".join(plain), tuple(spans)


# ── the rules ─────────────────────────────────────────────────────────────────────────────

_Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
_Text = Annotated[str, Field(min_length=1)]
_LISTS = ("personalities", "roles", "tones")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Localized(_Strict):
    ja: _Text
    en: _Text


class _Condition(_Strict):
    """Holds when one of its words stands in the persona's list of that name."""

    personalities: tuple[_Text, ...] = ()
    roles: tuple[_Text, ...] = ()
    tones: tuple[_Text, ...] = ()

    @model_validator(mode="after")
    def _says_something(self) -> _Condition:
        if not any(getattr(self, name) for name in _LISTS):
            raise ValueError("names no personality, role or tone")
        return self

    def match(self, persona: Mapping[str, Sequence[str]]) -> tuple[str, str] | None:
        """The list and the persona's own word that made it hold."""
        for name in _LISTS:
            words = {_fold(word) for word in getattr(self, name)}
            for word in persona[name]:
                if _fold(word) in words:
                    return name, word
        return None


class _When(_Strict):
    """Holds when each of its conditions does."""

    when: Annotated[tuple[_Condition, ...], Field(min_length=1)]

    def match(self, persona: Mapping[str, Sequence[str]]) -> list[tuple[str, str]] | None:
        found = [condition.match(persona) for condition in self.when]
        return None if None in found else [pair for pair in found if pair is not None]


class _Rule(_When):
    template: _Name


class _Form(_When):
    prefix: _Name


class _Label(_Strict):
    """Who speaks in a transcript, and where an answer ends. ``persona`` for one without a name."""

    user: _Text
    persona: _Text
    stop: tuple[_Text, ...]


class _Labels(_Strict):
    ja: _Label
    en: _Label


class _Words(_Strict):
    personalities: _Localized
    roles: _Localized
    tones: _Localized
    matched: _Localized
    between: _Localized
    default: _Localized
    form: _Localized
    transcript: _Localized


class _RuleFile(_Strict):
    rules: tuple[_Rule, ...]
    forms: tuple[_Form, ...] = ()
    transcript: _Labels
    words: _Words


def _fold(word: str) -> str:
    return unicodedata.normalize("NFKC", word).strip().casefold()


def _read_rules(path: Path) -> _RuleFile:
    content = read_yaml(path, error=TemplateError)
    try:
        return _RuleFile.model_validate(content)
    except ValidationError as wrong:
        where, reason = _first_fault(wrong)
        raise TemplateError(
            f"{path.name}: {where}: {reason}", file=path.name, where=where
        ) from None


def _first_fault(wrong: ValidationError) -> tuple[str, str]:
    """Where the first fault is (``rule 2: when 1: role``, counted from 1) and what it is."""
    fault = wrong.errors(include_url=False)[0]
    singular = {"rules": "rule", "forms": "form"}
    place = ""
    for part in fault["loc"]:
        if isinstance(part, int):
            place = f"{place} {part + 1}"
        else:
            name = singular.get(part, part) if not place else part
            place = f"{place}: {name}" if place else name
    return place or "the file", fault["msg"].removeprefix("Value error, ")


# ── the engine ────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Choice:
    """A template and why it was chosen. ``rule`` counts from 1; 0 where no rule decided.

    ``reasons`` has a reader's words for it in each language, ``file`` the template's name.
    """

    name: str
    rule: int
    reasons: Mapping[str, str]
    template: jinja2.Template
    language: str

    @property
    def file(self) -> str:
        return f"{self.name}.{self.language}.j2"

    @property
    def reason(self) -> str:
        """In the persona's language, or in English."""
        return self.reasons.get(self.language, self.reasons["en"])


class PromptTemplateEngine:
    """Chooses a template by the rules and renders it.

    Everything is read once, at the start: rules are checked, each template is compiled and
    rendered for a full and for an empty persona, so that a fault is named here, by its file and
    its number or line, and not found in a chat.
    """

    def __init__(self, templates_dir: Path) -> None:
        """Raises TemplateError, one line that names the file and where in it the fault is."""
        self._rules = _read_rules(templates_dir / "rules.yaml")
        self._environment = ImmutableSandboxedEnvironment(
            loader=jinja2.FileSystemLoader(templates_dir / "prompts"),
            undefined=jinja2.StrictUndefined,
            autoescape=False,  # prompts are text for a model, not HTML
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            auto_reload=False,
            cache_size=-1,
        )
        # A prompt is the same each time it is rendered.
        del self._environment.filters["random"]
        del self._environment.globals["lipsum"]
        self._templates = {
            name.removesuffix(".j2"): self._compile(name)
            for name in self._environment.list_templates(extensions=["j2"])
        }
        self._require()
        for key in self.names:
            for sample in (_sample(full=True), _sample(full=False)):
                self._render(key, sample)

    @property
    def names(self) -> list[str]:
        """The templates that can be rendered, as ``name.language``; parts (``_base``) aren't."""
        return [key for key in self._templates if not key.startswith("_")]

    def get_template(
        self,
        personalities: Iterable[str],
        roles: Iterable[str],
        *,
        tones: Iterable[str] = (),
        language: str = "ja",
        kind: Kind = "chat",
    ) -> Choice:
        """The template for a persona with these traits, the first rule that fits deciding.

        A rule gives the name, then a form its prefix (``casual_``); where that form has no file,
        its base is taken. Raises TemplateError when the language has no templates at all.
        """
        if kind == "transcript":
            reasons = self._rules.words.transcript.model_dump()
            return self._choice("transcript", 0, reasons, language)
        persona = {
            "personalities": [*personalities],
            "roles": [*roles],
            "tones": [*tones],
        }
        name, number, found, prefix = "default", 0, [], ""
        for at, rule in enumerate(self._rules.rules, 1):
            if (match := rule.match(persona)) is not None:
                name, number, found = rule.template, at, match
                break
        for form in self._rules.forms:
            if (match := form.match(persona)) is not None:
                if f"{form.prefix}_{name}.{language}" in self._templates:
                    prefix = form.prefix
                    name, found = f"{prefix}_{name}", [*found, *match]
                break
        reasons = self._reasons(found, "" if number else prefix)
        return self._choice(name, number, reasons, language)

    def render(self, choice: Choice, variables: Mapping[str, Any]) -> tuple[str, tuple[Span, ...]]:
        """The text and the spans of it that are traced values. Raises TemplateError."""
        return unmark(self._render(f"{choice.name}.{choice.language}", variables).strip())

    def labels(self, language: str, name: str) -> tuple[str, str, tuple[str, ...]]:
        """For a transcript: the user's label, the persona's, and the stop strings."""
        labels = self._rules.transcript
        label = labels.ja if language == "ja" else labels.en
        persona = " ".join(name.split()) or label.persona
        stop = (s.replace("{user}", label.user).replace("{name}", persona) for s in label.stop)
        return label.user, persona, tuple(dict.fromkeys(stop))

    def _choice(self, name: str, rule: int, reasons: dict[str, str], language: str) -> Choice:
        template = self._templates.get(f"{name}.{language}")
        if template is None:
            file = f"{name}.{language}.j2"
            raise TemplateError(f"{file}: there is no such template", file=file)
        return Choice(name, rule, MappingProxyType(reasons), template, language)

    def _reasons(self, found: Sequence[tuple[str, str]], form: str) -> dict[str, str]:
        """What was ``found`` in the persona; ``form``: of the default, that it chose alone."""
        words = self._rules.words
        if not found:
            return words.default.model_dump()
        reasons = {
            language: getattr(words.between, language).join(
                getattr(words.matched, language)
                .replace("{list}", getattr(getattr(words, name), language))
                .replace("{word}", word)
                for name, word in found
            )
            for language in LANGUAGES
        }
        if form:
            for language, matched in reasons.items():
                text: str = getattr(words.form, language).replace("{form}", form)
                reasons[language] = text.replace("{matched}", matched)
        return reasons

    def _compile(self, file: str) -> jinja2.Template:
        return _naming(file, lambda: self._environment.get_template(file))

    def _render(self, key: str, variables: Mapping[str, Any]) -> str:
        return _naming(f"{key}.j2", lambda: self._templates[key].render(variables))

    def _require(self) -> None:
        needed = [("rules.yaml: default", "default"), ("rules.yaml: transcript", "transcript")]
        needed += [
            (f"rules.yaml: rule {number}", rule.template)
            for number, rule in enumerate(self._rules.rules, 1)
        ]
        for where, name in needed:
            for language in LANGUAGES:
                if f"{name}.{language}" not in self._templates:
                    file = f"{name}.{language}.j2"
                    raise TemplateError(f"{where}: there is no prompts/{file}", file=file)
        for at, form in enumerate(self._rules.forms, 1):
            if not any(key.startswith(f"{form.prefix}_") for key in self._templates):
                raise TemplateError(
                    f"rules.yaml: form {at}: there is no prompts/{form.prefix}_….j2",
                    file="rules.yaml",
                )


def _naming(file: str, work: Callable[[], _T]) -> _T:
    """Do ``work``. A template can raise anything (1/0): all of it names its file and line."""
    try:
        return work()
    except jinja2.TemplateSyntaxError as wrong:
        raise _fault(wrong.name or file, wrong.lineno, wrong.message) from wrong
    except jinja2.TemplateNotFound as wrong:
        raise _fault(*_place(file, wrong), f"there is no prompts/{wrong.name}") from wrong
    except Exception as wrong:
        raise _fault(*_place(file, wrong), str(wrong) or type(wrong).__name__) from wrong


def _place(file: str, wrong: Exception) -> tuple[str, int | None]:
    """Jinja puts its files into the traceback: the innermost is where the fault is."""
    for frame in reversed(traceback.extract_tb(wrong.__traceback__)):
        if frame.filename.endswith(".j2"):
            return Path(frame.filename).name, frame.lineno
    return file, None


def _fault(file: str, line: int | None, reason: str | None) -> TemplateError:
    where = f"line {line}" if line else ""
    parts = [part for part in (file, where, reason) if part]
    return TemplateError(" ".join(": ".join(parts).split()), file=file, where=where)


def _sample(*, full: bool) -> dict[str, Any]:
    """Values of every variable, to try a template with: all there, or none."""
    agent = Agent(name="x" if full else "")
    if full:
        for field in ("description", "gender", "background", "greeting"):
            setattr(agent, field, "x")
        agent.first_person = agent.second_person = "x"
        agent.sentence_endings = agent.catchphrases = agent.forbidden_words = ["x", "y"]
        agent.examples = [{"user": "x", "ai": "y"}, {"user": "x", "ai": "y"}]
    traits = [Traced("x", "personalities"), Traced("y", "personalities")] if full else []
    return _variables(
        agent,
        traits,
        traits,
        traits,
        message="x" if full else "",
        history=[{"sender": "user", "content": "x"}, {"sender": "ai", "content": "y"}]
        if full
        else [],
        labels=("x", "y"),
        with_examples=True,
    )


# ── the builder ───────────────────────────────────────────────────────────────────────────


class PromptBuilder:
    """Makes the prompt for a persona, a conversation and a message."""

    def __init__(self, engine: PromptTemplateEngine) -> None:
        self.engine = engine

    async def build(
        self,
        agent: Agent,
        message: str,
        context: Sequence[Mapping[str, Any]] = (),
        *,
        info: ModelInfo | None = None,
    ) -> Prompt:
        """What would be sent to the model of ``info`` (a chat model without one), to the byte.

        ``context``: earlier messages, oldest first, ``{"sender": "user"|"ai", "content": …}``.
        An empty ``message`` is a preview before anything is typed: the prompt has no turn for it.
        Needs nothing from the store: the agent may be unsaved. Raises TemplateError.
        """
        kind: Kind = info.prompt if info is not None else "chat"
        as_turns = kind == "chat" and info is not None and info.examples == "turns"
        personalities = _traced_list((p.name for p in agent.personalities), "personalities")
        roles = _traced_list((r.name for r in agent.roles), "roles")
        tones = _traced_list((t.name for t in agent.tones), "tones")
        choice = self.engine.get_template(
            personalities, roles, tones=tones, language=agent.language, kind=kind
        )
        user, persona, stop = self.engine.labels(agent.language, agent.name or "")
        history = [
            {"sender": entry["sender"], "content": _clean(entry["content"])}
            for entry in context
            if _clean(entry["content"])
        ]
        variables = _variables(
            agent,
            personalities,
            roles,
            tones,
            message=_clean(message),
            history=history,
            labels=(user, persona),
            with_examples=not as_turns,
        )
        system, spans = self.engine.render(choice, variables)
        trace = Trace(choice.file, choice.rule, choice.reason, spans, dict(choice.reasons))
        if kind == "transcript":
            return Prompt(system, (), kind, message, stop, trace)
        turns: list[Turn] = []
        if as_turns:
            for example in _examples(agent):
                turns.append(Turn("user", str.__str__(example["user"])))
                turns.append(Turn("assistant", str.__str__(example["ai"])))
        turns += [
            Turn("user" if entry["sender"] == "user" else "assistant", str(entry["content"]))
            for entry in context
            if str(entry["content"]).strip()
        ]
        if message:
            turns.append(Turn("user", message))
        return Prompt(system, tuple(turns), kind, message, (), trace)


def _variables(
    agent: Agent,
    personalities: list[Traced],
    roles: list[Traced],
    tones: list[Traced],
    *,
    message: str,
    history: list[dict[str, str]],
    labels: tuple[str, str],
    with_examples: bool,
) -> dict[str, Any]:
    """Every variable that a template can use: the specification's and the persona's voice."""
    user_label, persona_label = labels
    return {
        "agent_name": Traced(agent.name, "name"),
        "agent_description": Traced(agent.description, "description"),
        "agent_background": Traced(agent.background, "background"),
        "gender": Traced(agent.gender, "gender"),
        "personalities": personalities,
        "roles": roles,
        "tones": tones,
        "first_person": Traced(agent.first_person, "first_person"),
        "second_person": Traced(agent.second_person, "second_person"),
        "sentence_endings": _traced_list(agent.sentence_endings, "sentence_endings"),
        "catchphrases": _traced_list(agent.catchphrases, "catchphrases"),
        "forbidden_words": _traced_list(agent.forbidden_words, "forbidden_words"),
        "examples": _examples(agent) if with_examples else [],
        "greeting": Traced(agent.greeting, "greeting"),
        "language": agent.language,
        "conversation_history": history,
        "user_message": message,
        "user_label": user_label,
        "persona_label": Traced(persona_label, "name") if agent.name else persona_label,
    }


def _traced_list(values: Iterable[str] | None, field: str) -> list[Traced]:
    return [value for value in (Traced(each, field) for each in values or ()) if value]


def _examples(agent: Agent) -> list[dict[str, Traced]]:
    """The exchanges that have both sides: a half one would teach a model to stay silent."""
    pairs = [
        {side: Traced(example.get(side), "examples") for side in ("user", "ai")}
        for example in agent.examples or ()
    ]
    return [pair for pair in pairs if pair["user"] and pair["ai"]]
