"""Language model providers. The only package that imports a provider's SDK.

A client turns a prompt into a stream of :class:`~persona_lab.types.Chunk`. ``provider:model``
names one: ``openai:gpt-5-mini``, ``local:gemma-3-270m``, ``mock:echo``.
"""

from persona_lab.clients.base import LLMClientInterface, estimate_tokens
from persona_lab.clients.catalog import Catalog, ModelInfo
from persona_lab.clients.options import check_options
from persona_lab.clients.pool import ClientPool, open_client

__all__ = [
    "Catalog",
    "ClientPool",
    "LLMClientInterface",
    "ModelInfo",
    "check_options",
    "estimate_tokens",
    "open_client",
]
