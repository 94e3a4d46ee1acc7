"""The model catalog: context, prices and accepted options, read from ``models.yaml``."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import Any, Literal

from persona_lab import settings
from persona_lab.clients.options import Sampling
from persona_lab.clients.registry import get_provider
from persona_lab.errors import UnknownModel
from persona_lab.settings import ProviderName
from persona_lab.yaml_config import StrictModel, dotted_place, load

ASSUMED_CONTEXT = 32_768
"""Context of a remote model of which nothing is known, in tokens. Today's models have more."""

MAX_NAME_LENGTH = 300
"""Maximum length of ``provider:model``, in characters. Records, logs and labels contain it."""


class ModelInfo(StrictModel):
    """Facts of one model: one entry of ``data/models.yaml``.

    A name that ends in ``*`` matches every unlisted model whose name has this prefix. If several
    match, the longest applies.

    Attributes:
        provider: Name of its provider.
        name: Its name at the provider.
        label: Its name on the page.
        prompt: "chat", or "transcript" for a base model.
        examples: Whether example exchanges are part of the system text or turns before the chat.
        context: Length of the context window, in tokens.
        is_context_assumed: Whether nobody said how long the context is.
        languages: Languages that it answers in.
        vision: Whether it reads images.
        thinks: Whether it thinks before it answers; None if that isn't known.
        accepts: Sampling options that the provider takes for this model.
        sampling: Values of sampling options to use by default.
        input_price: US dollars per million tokens of input. Overrides
            :mod:`persona_lab.clients.pricing`, as the next two do.
        output_price: US dollars per million tokens of output.
        cached_price: US dollars per million tokens of input that the provider had cached.
        price_date: The date of these prices.
        source: For local models: ``package:NAME``, a path, or ``repo:file``.
        licence: Its licence.
    """

    provider: ProviderName
    name: str
    label: str = ""
    prompt: Literal["chat", "transcript"] = "chat"
    examples: Literal["system", "turns"] = "system"
    context: int = 4096
    is_context_assumed: bool = False
    languages: tuple[str, ...] = ("ja", "en")
    vision: bool = False
    thinks: bool | None = None
    accepts: frozenset[str] = frozenset({"temperature", "top_p", "max_tokens", "stop"})
    sampling: Sampling = Sampling()
    input_price: float | None = None
    output_price: float | None = None
    cached_price: float | None = None
    price_date: date | None = None
    source: str = ""
    licence: str = ""

    @property
    def spec(self) -> str:
        """The name with the provider: ``provider:model``."""
        return f"{self.provider}:{self.name}"

    @property
    def is_local(self) -> bool:
        """Whether the model runs in this process."""
        return get_provider(self.provider).is_local

    @property
    def is_practice(self) -> bool:
        """Whether the model makes up its answers, without weights or a server."""
        return get_provider(self.provider).is_practice

    @property
    def free(self) -> bool:
        """Whether the tokens of the model cost nothing."""
        return get_provider(self.provider).free


class _File(StrictModel):
    models: tuple[ModelInfo, ...]


class Catalog:
    """The models in ``data/models.yaml``, in its order, and default facts for all others."""

    def __init__(self, path: Path) -> None:
        """Read the catalog.

        Args:
            path: The YAML file.

        Raises:
            ConfigurationError: An entry isn't valid. The message names the file and the entry.
        """
        self.models: dict[str, ModelInfo] = {}
        self._families: dict[str, ModelInfo] = {}
        for info in load(path, _File, place=dotted_place).models:
            if info.name.endswith("*"):
                self._families[info.spec[:-1]] = info
            else:
                self.models[info.spec] = info

    def find(self, spec: str) -> ModelInfo:
        """Return the facts for ``provider:model``.

        An empty model name means the first listed model of the provider. An unlisted model gets
        the facts of its family, or else the defaults of :class:`ModelInfo`. Only its provider
        knows whether it exists.

        Args:
            spec: The name with the provider.

        Raises:
            UnknownModel: The name isn't valid, or the provider doesn't exist.
        """
        if not isinstance(spec, str) or spec != _sendable(spec) or len(spec) > MAX_NAME_LENGTH:
            raise UnknownModel(model=_sendable(str(spec)[:MAX_NAME_LENGTH]))
        provider, _, name = spec.partition(":")
        if provider not in settings.PROVIDER_NAMES:
            raise UnknownModel(model=spec)
        if not name:
            first = next((m for m in self.models.values() if m.provider == provider), None)
            if first is None:
                raise UnknownModel(model=spec)
            return first
        known = self.models.get(spec) or self.models.get(spec.partition("?")[0])
        if known is not None:
            return known if known.spec == spec else known.model_copy(update={"name": name})
        alike = [begins for begins in self._families if spec.startswith(begins)]
        if alike:
            return self._families[max(alike, key=len)].model_copy(update={"name": name})
        if (hosted := self._hosted(name)) is not None and provider in ("openai", "anthropic"):
            return hosted.model_copy(update={"provider": provider, "name": name} | _ELSEWHERE)
        facts: dict[str, Any] = {"provider": provider, "name": name, "source": name}
        if get_provider(provider).key_setting:
            facts |= {"context": ASSUMED_CONTEXT, "is_context_assumed": True}
        return ModelInfo.model_validate(facts)

    def _hosted(self, name: str) -> ModelInfo | None:
        """Return the facts of a model that another server hosts, by its name without prefixes."""
        bare = bare_name(name)
        for provider in settings.PROVIDER_NAMES:
            known = self.models.get(f"{provider}:{bare}")
            if known is not None and not known.is_local:
                return known
        spelled = [f"{provider}:{bare}" for provider in settings.PROVIDER_NAMES]
        alike = [b for b in self._families if any(spec.startswith(b) for spec in spelled)]
        longest = max(alike, key=lambda begins: len(begins.partition(":")[2]), default=None)
        return None if longest is None else self._families[longest]


_ELSEWHERE = {
    "label": "", "input_price": None, "output_price": None, "cached_price": None,
    "price_date": None,
}  # fmt: skip
"""Facts that depend on the server."""

_PREFIXES = re.compile(r".*/|(?:[a-z]{2,6}\.)?(?:anthropic|openai|azure|google|mistral|meta)[.:]")


def bare_name(name: str) -> str:
    """Return a model's name without what hosts put ahead of it: ``openai/``, ``us.anthropic.``."""
    return _PREFIXES.sub("", name.lower(), count=2)


def _sendable(text: str) -> str:
    """Replace lone surrogates in ``text``, which can't be encoded as UTF-8."""
    return text.encode(errors="replace").decode()
