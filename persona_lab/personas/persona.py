"""The typed value of a persona, the table of its fields, and their validation.

:class:`Persona` declares each field once. :data:`PERSONA_FIELDS` is read from it and drives
everything that needs a list of fields: validation, the form, the REST schema, the demos, the
variables of prompt templates and the trace. To add a field, declare it here, add its column and a
migration, and give it a label in ``templates/ui.yaml``. To use it in prompts, name it in the
prompt templates.

A persona is the value; an agent is the row that stores it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, Literal, Protocol, get_type_hints

from persona_lab.errors import InvalidPersona
from persona_lab.unicode_text import compose_nfc, is_blank, to_storable

NAME_LENGTH = 100
TEXT_LENGTH = 10_000
LIST_ITEMS = 50
ITEM_LENGTH = 200
EXAMPLES = 20

FieldKind = Literal["name", "text", "list", "traits", "examples", "choice"]
"""What a field holds.

``name``: one line that is not blank. ``text``: any text. ``list``: single lines. ``traits``:
distinct names, each a row of its own table. ``examples``: exchanges of user and persona.
``choice``: one of a few values.
"""
DemoRule = Literal["optional", "required", "filled", "folded"]
"""What ``data/personas.yaml`` must hold of a field.

``required``: the key. ``filled``: the key and at least one character or exchange. ``folded``: the
same, and the spaces between Japanese lines are removed.
"""
Section = Literal["identity", "voice", "examples"]


class PersonaRow(Protocol):
    """A row with an attribute for each field of a persona, such as an agent."""

    name: str
    language: str


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a field in the form.

    Attributes:
        section: The part of the form; ``voice`` and ``examples`` can be folded away.
        order: The position in the section.
        row: Neighbours with the same row stand side by side; "" is a row of its own.
        options: Options of the Gradio component, such as ``lines``.
    """

    section: Section
    order: int
    row: str = ""
    options: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class PersonaField:
    """One row of :data:`PERSONA_FIELDS`.

    Attributes:
        kind: What the field holds.
        place: Where the form shows it.
        limit: The largest number of characters of a text, or of items of a list.
        item_limit: The largest number of characters of one item of a list.
        colour: The colour of its spans in the shown prompt (``shade-…`` in ``page.css``); "" for
            a field that no span can name.
        variable: Its name in prompt templates; by default that of the field.
        table: The table of its names, for traits. ``agent<table>`` links them in their order.
        choices: The values of a choice, the default first, each with the key of its words.
        demo: What a demo must hold of it.
        description: Its description in the REST schema.
        example: Its example in the REST schema.
        name: The field's name, which is that of the attribute of :class:`Persona`.
    """

    kind: FieldKind
    place: Place
    limit: int = 0
    item_limit: int = 0
    colour: str = ""
    variable: str = ""
    table: str = ""
    choices: tuple[tuple[str, str], ...] = ()
    demo: DemoRule = "optional"
    description: str | None = None
    example: Any = None
    name: str = ""

    @property
    def label(self) -> str:
        """The key of the field's label in ``templates/ui.yaml``."""
        return f"field.{self.name}"

    @property
    def hint(self) -> str:
        """The key of the field's hint in ``templates/ui.yaml``."""
        return f"field_hint.{self.name}"

    @property
    def values(self) -> tuple[str, ...]:
        """The values of a choice."""
        return tuple(value for value, _ in self.choices)

    @property
    def is_list(self) -> bool:
        """Whether the value is a list of lines: a list or traits."""
        return self.kind in ("list", "traits")

    def clean(self, value: Any) -> Any:
        """Return ``value`` cleaned, as plain data.

        Raises:
            InvalidPersona: The value has the wrong type or exceeds a limit.
        """
        match self.kind:
            case "name":
                return self._clean_name(value)
            case "text":
                return _clean_string(self.name, value, self.limit)
            case "examples":
                items = _items(self.name, value, self.limit)
                return [self._clean_example(item) for item in items]
            case "choice":
                if value not in self.values:
                    raise _invalid(self.name, "unknown")
                return value
            case "list" | "traits":
                items = _items(self.name, value, self.limit)
                lines = [clean_line(self.name, item, self.item_limit) for item in items]
                lines = [line for line in lines if line]
                return list(dict.fromkeys(lines)) if self.kind == "traits" else lines

    def _clean_name(self, value: Any) -> str:
        name = clean_line(self.name, value, self.limit)
        if is_blank(name):
            raise _invalid(self.name, "empty")
        return name

    def _clean_example(self, example: Any) -> dict[str, str]:
        if not isinstance(example, dict) or set(example) != {"user", "ai"}:
            raise _invalid(self.name, "wrong_type")
        return {
            side: _clean_string(self.name, example[side], self.item_limit)
            for side in ("user", "ai")
        }


@dataclass(frozen=True, slots=True)
class Example:
    """An exchange that shows how the persona speaks."""

    user: str = ""
    ai: str = ""


_Lines = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Persona:
    """Everything of a persona that a designer can edit."""

    name: Annotated[
        str,
        PersonaField(
            "name",
            Place("identity", 1, row="heading", options=(("scale", 3),)),
            limit=NAME_LENGTH,
            colour="identity",
            variable="agent_name",
            demo="filled",
            description=f"At most {NAME_LENGTH} characters.",
            example="さくら",
        ),
    ] = ""
    description: Annotated[
        str,
        PersonaField(
            "text",
            Place("identity", 3),
            limit=TEXT_LENGTH,
            colour="identity",
            variable="agent_description",
            demo="filled",
            description="Who it is, in a line or two.",
        ),
    ] = ""
    gender: Annotated[
        str,
        PersonaField(
            "text",
            Place("voice", 3, row="address", options=(("min_width", 120),)),
            limit=TEXT_LENGTH,
            colour="identity",
            demo="required",
        ),
    ] = ""
    background: Annotated[
        str,
        PersonaField(
            "text",
            Place("identity", 4, options=(("lines", 3), ("max_lines", 12))),
            limit=TEXT_LENGTH,
            colour="background",
            variable="agent_background",
            demo="folded",
            description="What it knows and where it comes from.",
        ),
    ] = ""
    first_person: Annotated[
        str,
        PersonaField(
            "text",
            Place("voice", 1, row="address", options=(("min_width", 120),)),
            limit=TEXT_LENGTH,
            colour="voice",
            demo="required",
            description="What it calls itself.",
            example="私",
        ),
    ] = ""
    second_person: Annotated[
        str,
        PersonaField(
            "text",
            Place("voice", 2, row="address", options=(("min_width", 120),)),
            limit=TEXT_LENGTH,
            colour="voice",
            demo="required",
            description="What it calls you.",
            example="あなた",
        ),
    ] = ""
    sentence_endings: Annotated[
        _Lines,
        PersonaField(
            "list",
            Place("voice", 4),
            colour="voice",
            demo="required",
            limit=LIST_ITEMS,
            item_limit=ITEM_LENGTH,
        ),
    ] = ()
    catchphrases: Annotated[
        _Lines,
        PersonaField(
            "list",
            Place("voice", 5),
            colour="voice",
            demo="required",
            limit=LIST_ITEMS,
            item_limit=ITEM_LENGTH,
        ),
    ] = ()
    forbidden_words: Annotated[
        _Lines,
        PersonaField(
            "list",
            Place("voice", 6),
            colour="voice",
            demo="required",
            description="Words that it never says.",
            limit=LIST_ITEMS,
            item_limit=ITEM_LENGTH,
        ),
    ] = ()
    personalities: Annotated[
        _Lines,
        PersonaField(
            "traits",
            Place("identity", 5),
            colour="personalities",
            table="personality",
            demo="required",
            example=["明るい"],
            limit=LIST_ITEMS,
            item_limit=ITEM_LENGTH,
        ),
    ] = ()
    roles: Annotated[
        _Lines,
        PersonaField(
            "traits",
            Place("identity", 6),
            colour="roles",
            table="role",
            demo="required",
            example=["教師"],
            limit=LIST_ITEMS,
            item_limit=ITEM_LENGTH,
        ),
    ] = ()
    tones: Annotated[
        _Lines,
        PersonaField(
            "traits",
            Place("identity", 7),
            colour="voice",
            table="tone",
            demo="required",
            example=["敬語"],
            limit=LIST_ITEMS,
            item_limit=ITEM_LENGTH,
        ),
    ] = ()
    examples: Annotated[
        tuple[Example, ...],
        PersonaField(
            "examples",
            Place("examples", 1, options=(("lines", 8), ("max_lines", 30))),
            limit=EXAMPLES,
            item_limit=TEXT_LENGTH,
            colour="examples",
            demo="filled",
        ),
    ] = ()
    greeting: Annotated[
        str,
        PersonaField(
            "text",
            Place("voice", 7, options=(("lines", 2), ("max_lines", 6))),
            limit=TEXT_LENGTH,
            colour="identity",
            demo="required",
        ),
    ] = ""
    language: Annotated[
        str,
        PersonaField(
            "choice",
            Place("identity", 2, row="heading", options=(("scale", 2), ("min_width", 180))),
            choices=(("ja", "speaks.japanese"), ("en", "speaks.english")),
            demo="required",
        ),
    ] = "ja"

    @classmethod
    def from_agent(cls, agent: PersonaRow) -> Persona:
        """Return the persona that ``agent`` stores. A column without a value counts as empty."""
        values: dict[str, Any] = {}
        for field in PERSONA_FIELDS.values():
            value = getattr(agent, field.name)
            if field.kind == "traits":
                values[field.name] = tuple(trait.name for trait in value)
            elif field.kind == "list":
                values[field.name] = tuple(value or ())
            elif field.kind == "examples":
                values[field.name] = tuple(
                    Example(each.get("user") or "", each.get("ai") or "") for each in value or ()
                )
            else:
                values[field.name] = value or ""
        return cls(**values)

    @classmethod
    def validate(cls, values: Mapping[str, Any]) -> Persona:
        """Return the persona of ``values``, cleaned. Missing fields have their defaults.

        Raises:
            InvalidPersona: As :func:`clean_persona` does; and if the name is missing.
        """
        cleaned = clean_persona({"name": "", **values})
        for name, value in cleaned.items():
            if PERSONA_FIELDS[name].is_list:
                cleaned[name] = tuple(value)
            elif PERSONA_FIELDS[name].kind == "examples":
                cleaned[name] = tuple(Example(**example) for example in value)
        return cls(**cleaned)

    def to_dict(self) -> dict[str, Any]:
        """Return the persona as plain data that can be stored as JSON."""
        values = asdict(self)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        }


def _read_fields() -> dict[str, PersonaField]:
    hints = get_type_hints(Persona, include_extras=True)
    return {
        each.name: replace(hints[each.name].__metadata__[0], name=each.name)
        for each in fields(Persona)
    }


PERSONA_FIELDS = _read_fields()
"""The fields of a persona by name, in the order of :class:`Persona`."""

"""The languages that a persona can speak; the first is the default."""

TRAITS = {each.name: each.table for each in PERSONA_FIELDS.values() if each.kind == "traits"}
"""The fields whose values are rows of a table, with the table's name."""


def clean_text(text: str) -> str:
    r"""Return ``text`` in NFC with ``\n`` line ends and no control characters except tabs.

    Compatibility ideographs stay as typed: NFC would turn a name's 神 (U+FA19) into another form.
    """
    return compose_nfc(to_storable(text))


def persona_of(agent: PersonaRow) -> dict[str, Any]:
    """Return the persona of ``agent`` as plain data that create and update accept."""
    return Persona.from_agent(agent).to_dict()


def clean_persona(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return some or all fields of a persona, cleaned, as plain data.

    None counts as empty, and so does a name that shows nothing, such as one of zero-width
    characters. Empty list items are removed, and a repeated trait counts once.

    Args:
        values: Values by the names of :data:`PERSONA_FIELDS`.

    Raises:
        InvalidPersona: With ``field``, ``reason`` ("empty", "too_long", "too_many", "wrong_type"
            or "unknown") and, where there is one, ``limit`` (characters or items).
    """
    cleaned: dict[str, Any] = {}
    for name, value in values.items():
        if name not in PERSONA_FIELDS:
            raise _invalid(name, "unknown")
        cleaned[name] = PERSONA_FIELDS[name].clean(value)
    return cleaned


def _clean_string(field: str, value: Any, limit: int) -> str:
    if not isinstance(value, str | None):
        raise _invalid(field, "wrong_type")
    text = clean_text(value or "")
    if len(text) > limit:
        raise _invalid(field, "too_long", limit=limit)
    return text


def clean_line(field: str, value: Any, limit: int) -> str:
    """Return ``value`` on one line, without space around it."""
    if isinstance(value, str):
        value = re.sub(r"[\r\n\t]+", " ", value).strip()
    return _clean_string(field, value, limit)


def _items(field: str, value: Any, limit: int) -> Sequence[Any]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise _invalid(field, "wrong_type")
    if len(value) > limit:
        raise _invalid(field, "too_many", limit=limit)
    return value


def _invalid(field: str, reason: str, **details: Any) -> InvalidPersona:
    return InvalidPersona(f"{field}: {reason}", field=field, reason=reason, **details)
