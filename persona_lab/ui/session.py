"""Who is looking at the page, in which language, and how they are told what went wrong."""

from __future__ import annotations

import asyncio
import logging
import secrets
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import gradio as gr
from cachetools import LRUCache

from persona_lab.clients.error_mapping import map_error
from persona_lab.errors import InvalidPersona, PersonaLabError
from persona_lab.lab import Lab
from persona_lab.pipeline.fallback import ErrorHandler
from persona_lab.pipeline.service import LLMService
from persona_lab.server import language_of, visitor_secret
from persona_lab.server.operations import Operations
from persona_lab.translations import Translations
from persona_lab.types import Language
from persona_lab.ui.visitor_keys import Page, UserKeyStore

log = logging.getLogger(__name__)

QUIET: Mapping[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""For the page's own events: no program's, and without Gradio's curtain."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """``user_id`` owns what they make; ``session`` is the page that is open, until it is reloaded;
    ``language`` is what it speaks to them; ``service`` answers them, with keys of their own where
    the page has any."""

    user_id: str
    session: str
    language: Language
    words: Translations
    error_handler: ErrorHandler
    service: LLMService

    @property
    def page(self) -> Page:
        """What is remembered of the open page, their keys too, belongs to it: nobody else's,
        whatever session they name."""
        return self.user_id, self.session

    def operations(self, lab: Lab) -> Operations:
        """What the visitor can do, answered by their own service."""
        return Operations(lab, self.user_id, self.language, self.service)

    def translate(self, key: str, **details: object) -> str:
        """Words of ``templates/ui.yaml`` in the visitor's language."""
        return self.words(key, self.language, **details)

    def error_text(self, error: PersonaLabError) -> str:
        """What happened, what was kept, what to do next: words of ``templates/fallbacks.yaml``."""
        if isinstance(error, InvalidPersona):
            field, reason = error.details["field"], error.details["reason"]
            known = f"field.{field}" in self.words
            error = InvalidPersona(
                field=self.translate(f"field.{field}") if known else field,
                reason=self.translate(f"reason.{reason}", limit=error.details.get("limit", "")),
            )
        return self.error_handler.error_text(error, self.language)

    @contextmanager
    def error_toasts(self) -> Iterator[None]:
        """Errors inside become a message on the page (or in a client) in plain words.

        What was typed stays where it was: the page's components are left as they are. The page
        shows the message as HTML, and a name or a model in it is anybody's text. A foreign
        error's own text isn't logged: it may hold what nobody else should read.
        """
        try:
            yield
        except (gr.Error, asyncio.CancelledError, GeneratorExit):
            raise
        except Exception as wrong:
            ours = map_error(wrong)
            if ours is not wrong:
                where = "".join(traceback.format_tb(wrong.__traceback__))
                log.error("unexpected %s at the page\n%s", type(wrong).__name__, where)
            raise gr.Error(
                escape(self.error_text(ours).encode("utf-8", "replace").decode(), quote=False),
                title=self.translate("error.title"),
                duration=6,
                print_exception=False,
            ) from wrong


class Visitors:
    """Knows visitors by the secret in their cookie; a client without one, by its session."""

    def __init__(self, lab: Lab, words: Translations) -> None:
        self._lab = lab
        self._words = words
        self._known: LRUCache[str, str] = LRUCache(10_000)
        self.keyring = UserKeyStore(lab)

    async def of(self, request: gr.Request) -> Visitor:
        """Who sends ``request``. Errors are told as :meth:`Visitor.told` does."""
        # A call with neither cookie nor session is nobody's: what it makes, no one finds again.
        secret = _secret(request) or f"session:{secrets.token_hex()}"
        visitor = Visitor(
            self._known.get(secret, ""),
            request.session_hash or "",
            language_of(dict(request.cookies), request.headers),
            self._words,
            self._lab.error_handler,
            self._lab.service,
        )
        if visitor.user_id:
            return self.again(visitor)
        with visitor.error_toasts():  # a new visitor is a new row, which a full disk doesn't take
            user = await asyncio.to_thread(self._lab.store.user_for_secret, secret)
        self._known[secret] = user.id
        return self.again(replace(visitor, user_id=user.id))

    def again(self, visitor: Visitor) -> Visitor:
        """The visitor as their page's keys are now."""
        return replace(visitor, service=self.keyring.service(visitor.page))

    async def leave(self, request: gr.Request) -> None:
        """A page was closed, or its connection broke."""
        user_id = self._known.get(_secret(request), "")
        await self.keyring.leave((user_id, request.session_hash or ""))


def _secret(request: gr.Request) -> str:
    """By which a visitor is known: their cookie's, else their page's session; "" for neither."""
    session = f"session:{request.session_hash}" if request.session_hash else ""
    return visitor_secret(dict(request.cookies)) or session
