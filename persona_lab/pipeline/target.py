"""Resolve the models and the options of a turn, once, before the turn begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from persona_lab.clients.options import STRUCTURED_OUTPUT_OPTIONS
from persona_lab.clients.registry import get_provider
from persona_lab.types import Options

if TYPE_CHECKING:
    from persona_lab.clients.catalog import ModelInfo
    from persona_lab.clients.pool import ClientPool


@dataclass(frozen=True, slots=True)
class Target:
    """The models of a turn and their options.

    Attributes:
        models: The model of the turn, and after it the fallback models in their order.
        options: The options of a call to the first model.
        overrides: The options that the caller set, by name, for a call to a fallback model.
    """

    models: Sequence[ModelInfo]
    options: Options
    overrides: Mapping[str, Any]

    @property
    def has_form(self) -> bool:
        """Whether the answer has a required form, such as JSON by a schema."""
        return any(self.overrides.get(form) for form in STRUCTURED_OUTPUT_OPTIONS)


def resolve_target(
    clients: ClientPool, model: str, overrides: Mapping[str, Any], *, with_fallback: bool
) -> Target:
    """Return the models and options of a turn.

    Args:
        clients: Knows the models and the settings.
        model: ``provider:name``, or "" for the default model.
        overrides: Fields of :class:`~persona_lab.types.Options`.
        with_fallback: Whether the models of ``LLM_FALLBACK`` follow the model.

    Raises:
        InputError: The model or an option is invalid.
    """
    models = clients.fallback_chain(model) if with_fallback else [clients.info(model)]
    options = clients.options(models[0], **overrides)
    forms = {form for form in STRUCTURED_OUTPUT_OPTIONS if overrides.get(form)}
    capable = [info for info in models if forms <= get_provider(info.provider).structured_output]
    return Target(capable, options, overrides)
