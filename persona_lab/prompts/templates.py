"""Choose a prompt template by the rules, and render it with a trace.

``rules.yaml`` chooses, and ``prompts/*.j2`` are the templates. This module knows no provider, no
database, and not how much of a conversation fits a model.

A persona's text is always a value in a template, never template source. In a template a value
carries marks that name its field (:class:`~persona_lab.prompts.trace.Traced`), and the marks become
the prompt's trace. So a trace needs no support from templates.
"""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import jinja2
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from persona_lab.errors import TemplateError
from persona_lab.personas.persona import PERSONA_FIELDS, Example, Persona
from persona_lab.prompts.rules import read_rules
from persona_lab.prompts.trace import extract_spans
from persona_lab.prompts.variables import template_variables
from persona_lab.types import LANGUAGES, Span

Kind = Literal["chat", "transcript"]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Choice:
    """A template and the reason for its choice.

    ``rule`` counts from 1; 0 means that no rule matched. ``reasons`` has the reason's text in each
    language.
    """

    name: str
    rule: int
    reasons: Mapping[str, str]
    template: jinja2.Template
    language: str

    @property
    def file(self) -> str:
        """The name of the template's file."""
        return f"{self.name}.{self.language}.j2"

    @property
    def reason(self) -> str:
        """The reason in the persona's language, or else in English."""
        return self.reasons.get(self.language, self.reasons["en"])


class PromptTemplateEngine:
    """Chooses a template by the rules and renders it.

    Everything is loaded once, at the start. Each template is rendered for a full and for an empty
    persona, so an error is found here, by file and line, and not in a chat.
    """

    def __init__(self, templates_dir: Path) -> None:
        """Load rules and templates.

        Raises:
            TemplateError: A file is wrong. One line names the file and the place.
        """
        self._rules = read_rules(templates_dir / "rules.yaml")
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
        # Rendering must be deterministic.
        del self._environment.filters["random"]
        del self._environment.globals["lipsum"]
        self._templates = {
            name.removesuffix(".j2"): self._compile(name)
            for name in self._environment.list_templates(extensions=["j2"])
        }
        self._check_files_exist()
        for key in self.names:
            for sample in (_sample_variables(full=True), _sample_variables(full=False)):
                self._render(key, sample)
        self._hashes = {name: self._hash(f"{name}.j2") for name in self._templates}

    @property
    def names(self) -> list[str]:
        """The templates that can be rendered, as ``name.language``, without parts (``_base``)."""
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
        """Choose the template for a persona with these traits, by the first rule that matches.

        A rule gives the name, then a form gives its prefix (``casual_``). If there is no file for
        the form, the name without the prefix is used.

        Raises:
            TemplateError: The language has no templates.
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

    def source_hash(self, choice: Choice) -> str:
        """Return the hash of the template's text and of the templates that it refers to."""
        return self._hashes[f"{choice.name}.{choice.language}"]

    def render(self, choice: Choice, variables: Mapping[str, Any]) -> tuple[str, tuple[Span, ...]]:
        """Return the rendered text, and its spans that are traced values.

        Raises:
            TemplateError: The template failed.
        """
        return extract_spans(self._render(f"{choice.name}.{choice.language}", variables).strip())

    def labels(self, language: str, name: str) -> tuple[str, str, tuple[str, ...]]:
        """Return the labels of user and persona in a transcript, and its stop texts."""
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
        """Word the reason: what was ``found``, and the ``form`` if only a form matched."""
        words = self._rules.words
        if not found:
            return words.default.model_dump()
        reasons: dict[str, str] = {
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
        return _translate_template_errors(file, lambda: self._environment.get_template(file))

    def _render(self, key: str, variables: Mapping[str, Any]) -> str:
        return _translate_template_errors(
            f"{key}.j2", lambda: self._templates[key].render(variables)
        )

    def _hash(self, file: str) -> str:
        digest, seen, waiting = hashlib.sha256(), {file}, [file]
        loader = self._environment.loader
        while waiting and loader is not None:
            source, *_ = loader.get_source(self._environment, waiting.pop())
            digest.update(source.encode())
            parsed = self._environment.parse(source)
            found = {name for name in meta.find_referenced_templates(parsed) if name} - seen
            seen |= found
            waiting += sorted(found)
        return digest.hexdigest()

    def _check_files_exist(self) -> None:
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


def _translate_template_errors(file: str, work: Callable[[], _T]) -> _T:
    """Do ``work``. A template can raise any error (1/0); name its file and line."""
    try:
        return work()
    except jinja2.TemplateSyntaxError as error:
        raise _template_error(error.name or file, error.lineno, error.message) from error
    except jinja2.TemplateNotFound as error:
        raise _template_error(
            *_error_location(file, error), f"there is no prompts/{error.name}"
        ) from error
    except Exception as error:
        raise _template_error(
            *_error_location(file, error), str(error) or type(error).__name__
        ) from error


def _error_location(file: str, error: Exception) -> tuple[str, int | None]:
    """Return file and line of the error: those of the innermost template in the traceback."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.endswith(".j2"):
            return Path(frame.filename).name, frame.lineno
    return file, None


def _template_error(file: str, line: int | None, reason: str | None) -> TemplateError:
    where = f"line {line}" if line else ""
    parts = [part for part in (file, where, reason) if part]
    return TemplateError(" ".join(": ".join(parts).split()), file=file, where=where)


def _sample_variables(*, full: bool) -> dict[str, Any]:
    """Return values of every variable, to try a template with: all of them or none."""
    sample = {
        "name": "x",
        "text": "x",
        "list": ("x", "y"),
        "traits": ("x", "y"),
        "examples": (Example("x", "y"), Example("x", "y")),
    }
    values: dict[str, Any] = {}
    if full:
        for field in PERSONA_FIELDS.values():
            if field.kind in sample:
                values[field.name] = sample[field.kind]
    return template_variables(
        Persona(**values),
        message="x" if full else "",
        history=[{"sender": "user", "content": "x"}, {"sender": "ai", "content": "y"}]
        if full
        else [],
        labels=("x", "y"),
        with_examples=True,
    )
