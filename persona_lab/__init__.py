"""Persona Lab: shape AI personas, see the exact prompt, compare models, talk.

The public names are imported when they are first used: ``persona_lab.settings`` alone must not
wait for the database and the templates.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from persona_lab.clients.anthropic import AnthropicClient
    from persona_lab.clients.base import LLMClientInterface
    from persona_lab.clients.middleware.rate_limit import RateLimiter
    from persona_lab.clients.middleware.response_cache import CacheManager
    from persona_lab.clients.mock import MockClient
    from persona_lab.clients.openai import OpenAIClient
    from persona_lab.clients.pool import open_client
    from persona_lab.comparison.runner import Comparison, Contestant
    from persona_lab.db.store import Store
    from persona_lab.errors import ErrorType, PersonaLabError
    from persona_lab.insights import Insights
    from persona_lab.lab import Lab, open_lab
    from persona_lab.pipeline.context import ContextManager
    from persona_lab.pipeline.fallback import ErrorHandler
    from persona_lab.pipeline.input import InputValidator
    from persona_lab.pipeline.service import LLMService
    from persona_lab.prompts.builder import PromptBuilder
    from persona_lab.prompts.templates import PromptTemplateEngine
    from persona_lab.responses.output_filter import OutputFilter
    from persona_lab.responses.processor import ResponseProcessor
    from persona_lab.settings import Settings, load_settings

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
    "CacheManager": "clients.middleware.response_cache",
    "Comparison": "comparison.runner",
    "Contestant": "comparison.runner",
    "ContextManager": "pipeline.context",
    "ErrorHandler": "pipeline.fallback",
    "ErrorType": "errors",
    "InputValidator": "pipeline.input",
    "Insights": "insights",
    "LLMClientInterface": "clients.base",
    "LLMService": "pipeline.service",
    "Lab": "lab",
    "MockClient": "clients.mock",
    "OpenAIClient": "clients.openai",
    "OutputFilter": "responses.output_filter",
    "PersonaLabError": "errors",
    "PromptBuilder": "prompts.builder",
    "PromptTemplateEngine": "prompts.templates",
    "RateLimiter": "clients.middleware.rate_limit",
    "ResponseProcessor": "responses.processor",
    "Settings": "settings",
    "Store": "db.store",
    "load_settings": "settings",
    "open_client": "clients.pool",
    "open_lab": "lab",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
