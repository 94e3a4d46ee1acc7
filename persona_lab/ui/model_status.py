"""The choice of a model, and its state: ready, loading, failed, or without a key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from html import escape
from pathlib import Path

import gradio as gr
from gradio.components import Component

from persona_lab.clients.catalog import ModelInfo
from persona_lab.clients.error_mapping import map_error
from persona_lab.clients.pool import ClientPool
from persona_lab.errors import MissingKey
from persona_lab.types import Language
from persona_lab.ui.events import PRIVATE_EVENT
from persona_lab.ui.prefetch import PromptPrefetcher
from persona_lab.ui.session import Visitor, Visitors

LOAD_POLL_INTERVAL_S = 0.5
"""Seconds between two updates of a model's load progress."""


def supports_language(info: ModelInfo, language: Language) -> bool:
    """Return whether a model supports a language; True where its languages are unknown."""
    return not info.languages or language in info.languages


def model_choices(
    clients: ClientPool, translate: Callable[[str], str], language: Language = "ja"
) -> list[tuple[str, str]]:
    """List the models as (label, spec). The label says when a model needs a key.

    Args:
        clients: The pool that lists the models.
        translate: Translates a key of ``templates/ui.yaml``.
        language: The visitor's language; the label marks a model that doesn't support it.

    Returns:
        Choices for a dropdown, in the order of the pool.
    """

    def label(info: ModelInfo) -> str:
        name = info.label or Path(info.name).name
        if info.is_practice:
            return f"{name} · {translate('model.practice')}"
        if not clients.available(info):
            return f"{name} · {translate('model.needs_key')}"
        if not supports_language(info, language):
            return f"{name} · {translate('model.english')}"
        return name

    return [(label(info), info.spec) for info in clients.listed()]


def status_html(state: str, visitor: Visitor, detail: str = "", **values: object) -> str:
    """Return the state of the chosen model as HTML.

    Args:
        state: ``ready``, ``loading``, ``failed`` or ``needs_key``.
        visitor: The visitor, whose language is used.
        detail: The tooltip.
        **values: Values for the state's text, such as ``percent``.
    """
    text = escape(visitor.translate("model.state." + state, **values))
    return (
        f'<p class="{state}" role="status" title="{escape(detail)}">'
        f'<span class="dot"></span>{text}</p>'
    )


class ModelStatus:
    """Loads the chosen model, and shows its state in the header."""

    def __init__(self, visitors: Visitors, prefetcher: PromptPrefetcher) -> None:
        self._visitors = visitors
        self._prefetcher = prefetcher

    async def load_model(self, model: str, request: gr.Request) -> AsyncGenerator[str, None]:
        """Load a model, and yield its state as HTML."""
        visitor = await self._visitors.from_request(request)
        try:
            client = await visitor.service.clients.open(model or "")
            if not client.is_loaded:
                loading = asyncio.create_task(client.load())
                try:
                    while not loading.done():
                        percent = round(100 * client.load_progress)
                        yield status_html("loading", visitor, percent=percent)
                        await asyncio.wait([loading], timeout=LOAD_POLL_INTERVAL_S)
                    await loading
                finally:
                    loading.cancel()  # a closed page needs no further progress
        except Exception as error:  # noqa: BLE001 - any error is shown as the model's state
            mapped = map_error(error)
            state = "needs_key" if isinstance(mapped, MissingKey) else "failed"
            yield status_html(state, visitor, visitor.error_text(mapped))
            return
        self._prefetcher.reschedule(visitor)
        yield status_html("ready", visitor)

    def wire(
        self, model: gr.Dropdown, status: Component, after: Sequence[gr.events.Dependency]
    ) -> None:
        """Load the model when it is chosen, and after each of the events ``after``."""
        options = {"concurrency_limit": None, **PRIVATE_EVENT}
        for event in after:
            event.then(self.load_model, [model], [status], **options)
        model.input(self.load_model, [model], [status], trigger_mode="always_last", **options)
