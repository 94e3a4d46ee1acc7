"""Validate the sampling and output options of a caller."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)

from persona_lab.errors import InvalidOption


def refuse_bool(value: Any) -> Any:
    """Refuse true and false, which pydantic takes for the numbers 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("not a number")
    return value


class Sampling(BaseModel):
    """Sampling options of a model. The provider's default applies to an option that is None."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=100_000)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None

    _no_bool = field_validator(
        "temperature",
        "max_tokens",
        "top_p",
        "top_k",
        "min_p",
        "repeat_penalty",
        "seed",
        mode="before",
    )(refuse_bool)


def _as_json(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    try:
        return json.dumps(schema, allow_nan=False)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _schema(text: str) -> str:
    try:
        data = json.loads(text) if text else {}
        json.dumps(data, ensure_ascii=False, allow_nan=False).encode()  # or ValueError
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    return text


STRUCTURED_OUTPUT_OPTIONS = ("json_schema", "grammar")
"""Options that constrain the form of an answer."""

_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Overrides(Sampling):
    """The fields of :class:`~persona_lab.types.Options` that a caller may set."""

    stop: tuple[Annotated[str, Field(min_length=1)], ...] | None = None
    json_schema: Annotated[str, BeforeValidator(_as_json), AfterValidator(_schema)] | None = None
    grammar: str | None = None
    timeout: _Seconds | None = None
    connect_timeout: _Seconds | None = None
    idle_timeout: _Seconds | None = None
    total_timeout: _Seconds | None = None
    retries: Annotated[int, Field(ge=0, le=10)] | None = None


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Validate ``options`` and convert each value to the type of its option.

    Args:
        options: Values by option name. An option that is None counts as not set.

    Returns:
        The options that are set.

    Raises:
        InvalidOption: There is no such option, or its value isn't valid.
    """
    try:
        return Overrides.model_validate(dict(options)).model_dump(exclude_none=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        why = "unknown_option" if first["type"] == "extra_forbidden" else "option_value"
        value = repr(options[name])[:40]
        raise InvalidOption(f"{name}: {first['msg']}", option=name, why=why, value=value) from None
