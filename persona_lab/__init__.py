"""Persona Lab: shape AI personas, see the exact prompt, compare models, talk.

The public names are imported when they are first used: ``persona_lab.settings`` alone must not
wait for the database and the templates.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from persona_lab.cache import CacheManager
    from persona_lab.clients import LLMClientInterface, open_client
    from persona_lab.clients.anthropic import AnthropicClient
    from persona_lab.clients.mock import MockClient
    from persona_lab.clients.openai import OpenAIClient
    from persona_lab.compare import Comparison, Contestant
    from persona_lab.context import ContextManager
    from persona_lab.errors import ErrorHandler, ErrorType, PersonaLabError
    from persona_lab.guards import InputValidator, OutputFilter
    from persona_lab.insights import Insights
    from persona_lab.lab import Lab, open_lab
    from persona_lab.limits import RateLimiter
    from persona_lab.prompts import PromptBuilder, PromptTemplateEngine
    from persona_lab.replies import ResponseProcessor
    from persona_lab.service import LLMService
    from persona_lab.settings import Settings, load_settings
    from persona_lab.store import Store

__all__ = [
    "AnthropicClient",
    "CacheManager",
    "Comparison",
    "Contestant",
    "ContextManager",
    "ErrorHandler",
    "ErrorType",
    "InputValidator",
    "Insights",
    "LLMClientInterface",
    "LLMService",
    "Lab",
    "MockClient",
    "OpenAIClient",
    "OutputFilter",
    "PersonaLabError",
    "PromptBuilder",
    "PromptTemplateEngine",
    "RateLimiter",
    "ResponseProcessor",
    "Settings",
    "Store",
    "load_settings",
    "open_client",
    "open_lab",
]

_HOMES = {
    "AnthropicClient": "clients.anthropic",
    "CacheManager": "cache",
    "Comparison": "compare",
    "Contestant": "compare",
    "ContextManager": "context",
    "ErrorHandler": "errors",
    "ErrorType": "errors",
    "InputValidator": "guards",
    "Insights": "insights",
    "LLMClientInterface": "clients",
    "LLMService": "service",
    "Lab": "lab",
    "MockClient": "clients.mock",
    "OpenAIClient": "clients.openai",
    "OutputFilter": "guards",
    "PersonaLabError": "errors",
    "PromptBuilder": "prompts",
    "PromptTemplateEngine": "prompts",
    "RateLimiter": "limits",
    "ResponseProcessor": "replies",
    "Settings": "settings",
    "Store": "store",
    "load_settings": "settings",
    "open_client": "clients",
    "open_lab": "lab",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
