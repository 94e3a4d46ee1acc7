"""All providers, each from its own file.

:data:`~persona_lab.settings.PROVIDER_NAMES` lists them. The provider ``x`` is the module
``persona_lab.clients.x``, which has a class ``Client`` with a
:class:`~persona_lab.clients.provider.Provider` as its ``provider``. These modules are imported
at the first use and import their SDK only when a client is created: an SDK takes up to 1.5 s.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

from persona_lab import settings
from persona_lab.clients.provider import Provider


@functools.cache
def provider_module(name: str) -> ModuleType:
    """Return the module of the provider ``name``, which must be one of the settings' names."""
    return importlib.import_module(f"persona_lab.clients.{name}")


def get_provider(name: str) -> Provider:
    """Return the declaration of the provider ``name``."""
    provider: Provider = provider_module(name).Client.provider
    return provider


def list_providers() -> list[Provider]:
    """Return every declaration, in the order of the settings' names."""
    return [get_provider(name) for name in settings.PROVIDER_NAMES]


def list_keyed_providers() -> list[Provider]:
    """Return the declarations of the providers that use an API key."""
    return [provider for provider in list_providers() if provider.key_setting]
