"""The visitor of a page: identity, language, service, and error messages."""

from __future__ import annotations

import asyncio
import logging
import secrets
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html import escape

import gradio as gr
from cachetools import LRUCache

from persona_lab.clients.error_mapping import map_error
from persona_lab.errors import InvalidPersona, PersonaLabError
from persona_lab.lab import Lab
from persona_lab.pipeline.fallback import ErrorHandler
from persona_lab.pipeline.service import LLMService
from persona_lab.server import visitor_language, visitor_secret
from persona_lab.server.operations import Operations
from persona_lab.translations import Translations
from persona_lab.types import Language
from persona_lab.ui.running_answers import RunningAnswers
from persona_lab.ui.visitor_keys import Page, UserKeyStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Visitor:
    """One visitor, as one open page has them.

    Attributes:
        user_id: The id of the user, who owns the visitor's personas and chats.
        session: The Gradio session of the open page; a reload begins a new one.
        language: The language of the page's texts.
        translations: The texts of ``templates/ui.yaml``.
        error_handler: Writes error texts.
        service: Answers the visitor, with the page's own provider keys where it has any.
        has_cookie: Whether the browser sent the visitor's cookie. Without it, the visitor is a new
            one after a reload.
    """

    user_id: str
    session: str
    language: Language
    translations: Translations
    error_handler: ErrorHandler
    service: LLMService
    has_cookie: bool = True

    @property
    def page(self) -> Page:
        """The key of all state that the server has of the open page, such as provider keys.

        It includes the user, because a client may send another visitor's session.
        """
        return self.user_id, self.session

    def operations(self, lab: Lab) -> Operations:
        """Return the operations of ``lab`` for this visitor, answered by their service."""
        return Operations(lab, self.user_id, self.language, self.service)

    def translate(self, key: str, **details: object) -> str:
        """Return a text of ``templates/ui.yaml`` in the visitor's language."""
        return self.translations(key, self.language, **details)

    def error_text(self, error: PersonaLabError) -> str:
        """Return the text of ``templates/fallbacks.yaml`` for an error.

        It says what happened, and one thing to do.
        """
        if isinstance(error, InvalidPersona):
            field, reason = error.details["field"], error.details["reason"]
            known = f"field.{field}" in self.translations
            error = InvalidPersona(
                field=self.translate(f"field.{field}") if known else field,
                reason=self.translate(f"reason.{reason}", limit=error.details.get("limit", "")),
            )
        return self.error_handler.error_text(error, self.language)

    @contextmanager
    def error_toasts(self) -> Iterator[None]:
        """Turn errors inside into a message on the page, or in a client.

        The page's components stay unchanged, and so does what the visitor typed. The page shows
        the message as HTML, so names in it are escaped. The text of a foreign error isn't logged:
        it may contain private data.

        Raises:
            gr.Error: An error happened inside; it has a text in the visitor's language.
        """
        try:
            yield
        except (gr.Error, asyncio.CancelledError, GeneratorExit):
            raise
        except Exception as error:
            mapped = map_error(error)
            if mapped is not error:
                stack = "".join(traceback.format_tb(error.__traceback__))
                log.error("unexpected %s at the page\n%s", type(error).__name__, stack)
            raise gr.Error(
                escape(self.error_text(mapped).encode("utf-8", "replace").decode(), quote=False),
                title=self.translate("error.title"),
                duration=6,
                print_exception=False,
            ) from error


class Visitors:
    """Identifies visitors by the secret in their cookie, or else by their Gradio session."""

    def __init__(self, lab: Lab, translations: Translations) -> None:
        self._lab = lab
        self._translations = translations
        self._known: LRUCache[str, str] = LRUCache(10_000)
        self.user_keys = UserKeyStore(lab)
        self.answers = RunningAnswers()

    async def from_request(self, request: gr.Request) -> Visitor:
        """Return the visitor who sent ``request``.

        Raises:
            gr.Error: A new user couldn't be saved.
        """
        # A call with neither cookie nor session gets a user that no later request can reach.
        secret = _visitor_secret(request) or f"session:{secrets.token_hex()}"
        visitor = replace(self.unidentified(request), user_id=self._known.get(secret, ""))
        if visitor.user_id:
            return self.with_current_keys(visitor)
        with visitor.error_toasts():  # a new visitor is a new row: a full disk fails here
            user = await asyncio.to_thread(self._lab.store.user_for_secret, secret)
        self._known[secret] = user.id
        return self.with_current_keys(replace(visitor, user_id=user.id))

    def unidentified(self, request: gr.Request) -> Visitor:
        """Return the visitor of ``request`` without a user: enough for texts in their language."""
        return Visitor(
            "",
            request.session_hash or "",
            visitor_language(dict(request.cookies), request.headers),
            self._translations,
            self._lab.error_handler,
            self._lab.service,
            has_cookie=visitor_secret(dict(request.cookies)) is not None,
        )

    def with_current_keys(self, visitor: Visitor) -> Visitor:
        """Return the visitor with the service for their page's current keys."""
        return replace(visitor, service=self.user_keys.service(visitor.page))

    async def on_unload(self, request: gr.Request) -> None:
        """Handle a closed page, or a broken connection: forget its keys after a grace period.

        An answer that runs is finished first. It may need the keys.
        """
        page = self._known.get(_visitor_secret(request), ""), request.session_hash or ""
        await self.answers.wait(page)
        await self.user_keys.close_page(page)


def _visitor_secret(request: gr.Request) -> str:
    """Return the secret of a visitor: their cookie's, or else their session; "" for neither."""
    session = f"session:{request.session_hash}" if request.session_hash else ""
    return visitor_secret(dict(request.cookies)) or session
