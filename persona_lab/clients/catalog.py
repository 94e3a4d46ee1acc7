"""What is known of each model: context, prices, accepted options. Read from ``models.yaml``."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Literal

from persona_lab import settings
from persona_lab.clients.options import Sampling
from persona_lab.clients.registry import get_provider
from persona_lab.errors import UnknownModel
from persona_lab.settings import ProviderName
from persona_lab.yaml_config import StrictModel, dotted_place, load

NAME_LENGTH = 300
"""Characters of a model's name with its provider: they stand in records, logs and labels."""


class ModelInfo(StrictModel):
    """Facts of one model: one entry of ``data/models.yaml``.

    A name that ends in ``*`` stands for every unlisted model whose name begins so. If several
    match, the longest is taken.

    Attributes:
        provider: Name of its provider.
        name: Its name at the provider.
        label: Its name on the page.
        prompt: "chat", or "transcript" for a base model.
        examples: Whether example exchanges are part of the system text or turns before the chat.
        context: Length of the context window, in tokens.
        languages: Languages that it answers in.
        vision: Whether it reads images.
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
    languages: tuple[str, ...] = ("ja", "en")
    vision: bool = False
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
        return f"{self.provider}:{self.name}"

    @property
    def free(self) -> bool:
        """Whether its tokens cost nothing."""
        return get_provider(self.provider).free


class _File(StrictModel):
    models: tuple[ModelInfo, ...]


class Catalog:
    """The models that ``data/models.yaml`` knows, in its order, and facts for any other."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigurationError naming the file and the entry that is wrong."""
        self.models: dict[str, ModelInfo] = {}
        self._families: dict[str, ModelInfo] = {}
        for info in load(path, _File, place=dotted_place).models:
            if info.name.endswith("*"):
                self._families[info.spec[:-1]] = info
            else:
                self.models[info.spec] = info

    def find(self, spec: str) -> ModelInfo:
        """Facts for ``provider:model``; an empty model name means the provider's first.

        Raises UnknownModel for a provider that doesn't exist. A model that isn't listed is
        taken with the facts of its family, or with cautious ones: its provider decides whether it
        exists.
        """
        if not isinstance(spec, str) or spec != _sendable(spec) or len(spec) > NAME_LENGTH:
            raise UnknownModel(model=_sendable(str(spec)[:NAME_LENGTH]))
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
        return ModelInfo.model_validate({"provider": provider, "name": name, "source": name})


def _sendable(text: str) -> str:
    """``text`` without half surrogates, which no wire and no page takes."""
    return text.encode(errors="replace").decode()
