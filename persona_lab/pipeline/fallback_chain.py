"""Decide whether the next model of a fallback chain may answer after an error."""

from __future__ import annotations

from typing import TypeGuard

from persona_lab.errors import ProviderError, Refused


def can_fall_back(error: Exception) -> TypeGuard[ProviderError]:
    """Return whether the next model of the chain may be called after ``error``.

    The chain continues after a failure of one provider. It stops at our own errors, at invalid
    input and at a refusal: a refused message must not go from model to model until one accepts it.
    """
    return isinstance(error, ProviderError) and not isinstance(error, Refused)
