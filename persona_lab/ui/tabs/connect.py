"""The connect tab: the visitor's own provider keys, and API tokens for their programs."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, tzinfo
from html import escape
from typing import Any, ClassVar
from urllib.parse import urlsplit

import gradio as gr
from gradio.components import Component

from persona_lab.clients.registry import get_provider, list_keyed_providers
from persona_lab.db.tables import ApiToken
from persona_lab.insights import parse_time_zone
from persona_lab.lab import Lab
from persona_lab.ui.events import PRIVATE_EVENT, WITH_TIME_ZONE, Update
from persona_lab.ui.model_status import model_choices
from persona_lab.ui.page_context import PageContext
from persona_lab.ui.session import Visitor, Visitors

KEYED_PROVIDERS = tuple(provider.name for provider in list_keyed_providers())
"""The providers that need a key."""
MIN_KEY_LENGTH = 20
"""Minimum number of characters. It excludes plain words, which would be redacted from answers."""
MAX_KEY_LENGTH = 400
_KEY_CHARACTERS = re.compile(r"[\w.:~+/=-]+", re.ASCII)

_EXAMPLE_PROGRAM = """from openai import OpenAI

client = OpenAI(
    base_url="{origin}/v1",
    api_key="{token}",
)
said = [{"role": "user", "content": "{said}"}]
answer = client.chat.completions.create(model="{persona}", messages=said)
print(answer.choices[0].message.content)"""
"""``{origin}`` is the page's own address, which the browser fills in."""
_COPY_SCRIPT = """const [pre, copy] = ["pre", ".copy"].map((at) => element.querySelector(at));
copy.addEventListener("click", () => (copy.dataset.copy = pre.innerText));"""
"""Copies the example as it is displayed: in one language, with the page's address."""


def key_fault(key: str, visitor: Visitor) -> str:
    """Return why ``key`` can't be a provider's key, in the visitor's language; "" if it can."""
    if not key:
        return visitor.translate("connect.empty_key")
    if re.search(r"\s", key):
        return visitor.translate("connect.key_spaces")
    if not _KEY_CHARACTERS.fullmatch(key):
        return visitor.translate("connect.key_characters")
    if len(key) < MIN_KEY_LENGTH:
        return visitor.translate("connect.no_key", limit=MIN_KEY_LENGTH)
    if len(key) > MAX_KEY_LENGTH:
        return visitor.translate("connect.long_key", limit=MAX_KEY_LENGTH)
    return ""


def key_state(provider: str, visitor: Visitor) -> str:
    """Return HTML that says whose key is used, and to which custom server it is sent.

    Of the visitor's own key it shows the last four characters, to tell keys apart.
    """
    clients = visitor.service.clients
    key = get_provider(provider).api_key(clients.settings)
    state, details = "house", {}
    if key is None:
        state = "none"
    elif provider in clients.user_key_providers:
        state, details = "own", {"end": key.get_secret_value()[-4:]}
    words = escape(visitor.translate(f"connect.key_state.{state}", **details))
    server = get_provider(provider).custom_url(clients.settings)
    if server:
        host = urlsplit(server).netloc.rpartition("@")[2]
        words += f" {escape(visitor.translate('connect.sent_to', server=host))}"
    return f'<p class="quiet {state}" role="status">{words}</p>'


def token_label(token: ApiToken, visitor: Visitor, zone: tzinfo = UTC) -> str:
    """Return the label of a token in the list: its name, and its days of creation and last use.

    Args:
        token: The row of the token.
        visitor: The visitor, whose language is used.
        zone: The time zone of the days.
    """
    name = token.name or visitor.translate("connect.nameless")
    made = visitor.translate("connect.made_on", day=f"{token.created_at.astimezone(zone):%Y-%m-%d}")
    used = (
        visitor.translate("connect.used_on", day=f"{token.last_used_at.astimezone(zone):%Y-%m-%d}")
        if token.last_used_at
        else visitor.translate("connect.never_used")
    )
    return f"{name} · {made} · {used}"


@dataclass(frozen=True)
class KeyForm:
    """The components of one provider's key."""

    box: gr.Textbox
    use: gr.Button
    forget: gr.Button
    state: gr.HTML


class ConnectActions:
    """The actions of the tab."""

    def __init__(self, lab: Lab, visitors: Visitors) -> None:
        self.lab = lab
        self.visitors = visitors

    async def use_key(self, provider: str, key: str, visitor: Visitor) -> Visitor:
        """Use ``key`` for the requests of the visitor's page.

        Args:
            provider: The provider's name.
            key: The key; spaces around it are removed.
            visitor: The visitor.

        Returns:
            The visitor with the new service.

        Raises:
            gr.Error: The key is empty or has a wrong form; the error says which rule it breaks.
        """
        key = key.strip()
        fault = key_fault(key, visitor)
        if not (fault or visitor.session):
            fault = visitor.translate("error.title")
        if fault:
            raise gr.Error(
                fault,
                title=visitor.translate("error.title"),
                duration=6,
                print_exception=False,
            )
        await self.visitors.user_keys.put(visitor.page, provider, key)
        return self.visitors.with_current_keys(visitor)

    async def forget_key(self, provider: str, visitor: Visitor) -> Visitor:
        """Forget the page's key for ``provider``; return the visitor with the new service."""
        self.visitors.user_keys.drop(visitor.page, provider)
        return self.visitors.with_current_keys(visitor)

    async def list_tokens(self, visitor: Visitor, zone: str = "") -> list[tuple[str, str]]:
        """Return the visitor's tokens as (label, id), the newest first."""
        tokens = await visitor.operations(self.lab).list_tokens()
        return [(token_label(token, visitor, parse_time_zone(zone)), token.id) for token in tokens]

    async def create_token(self, name: str, visitor: Visitor) -> str:
        """Create a token; return it as HTML. It is shown only once."""
        _, secret = await visitor.operations(self.lab).create_token(name)
        say = visitor.translate
        return (
            f'<div class="secret" role="status"><p>{escape(say("connect.once"))}</p>'
            f'<p><code>{secret}</code> <button type="button" class="copy" data-copy="{secret}">'
            f"{escape(say('chat.copy'))}</button></p></div>"
        )

    async def revoke_token(self, token_id: str, visitor: Visitor) -> str:
        """Revoke a token; return HTML that names it."""
        operations = visitor.operations(self.lab)
        tokens = await operations.list_tokens()
        await operations.revoke_token(token_id)
        name = next((token.name for token in tokens if token.id == token_id), "")
        words = visitor.translate(
            "connect.revoked", name=name or visitor.translate("connect.nameless")
        )
        return f'<p class="quiet" role="status">{escape(words)}</p>'


class ConnectTab:
    """The tab: a box for each provider's key, and the list of tokens."""

    key: ClassVar[str] = "connect"

    def __init__(self, page: PageContext) -> None:
        self._page = page
        self._actions = ConnectActions(page.lab, page.visitors)
        self.key_events: list[gr.events.Dependency] = []
        """The events after which other keys may be in use, so a model's state may change."""

    def build(self, frame: gr.Tab) -> None:
        """Create the components."""
        self._frame = frame
        bilingual = self._page.bilingual
        with gr.Row(equal_height=False):
            with gr.Column(min_width=320, elem_classes="sheet", elem_id="connect-keys"):
                gr.HTML(
                    f"<h2>{bilingual('connect.keys')}</h2><p>{bilingual('connect.keys_line')}</p>"
                )
                self._key_forms = {
                    provider: self._build_key(provider) for provider in KEYED_PROVIDERS
                }
            with gr.Column(min_width=320, elem_classes="sheet", elem_id="connect-tokens"):
                gr.HTML(
                    f"<h2>{bilingual('connect.tokens')}</h2>"
                    f"<p>{bilingual('connect.tokens_line')}</p>"
                )
                self._build_tokens()
                self._build_example()
        self._zone = gr.Textbox(visible="hidden")
        self._to_revoke = gr.Textbox(visible="hidden")
        """The id of the token that the next press of the button revokes."""

    def _build_key(self, provider: str) -> KeyForm:
        i18n = self._page.i18n
        with gr.Row(elem_classes="writing"):
            box = gr.Textbox(
                label=i18n(f"connect.key.{provider}"),
                type="password",
                elem_id=f"key-{provider}",
                html_attributes=gr.InputHTMLAttributes(
                    autocomplete="one-time-code", spellcheck=False, autocorrect="off"
                ),
                scale=4,
            )
            use = gr.Button(
                i18n("connect.use"), elem_id=f"key-{provider}-use", scale=0, min_width=90
            )
            forget = gr.Button(
                i18n("connect.forget"),
                elem_id=f"key-{provider}-forget",
                scale=0,
                min_width=90,
                visible=False,
            )
        return KeyForm(box, use, forget, gr.HTML(elem_id=f"key-{provider}-state"))

    def _build_tokens(self) -> None:
        i18n = self._page.i18n
        with gr.Row(elem_classes="writing"):
            self._name = gr.Textbox(
                label=i18n("connect.name"),
                placeholder=i18n("connect.name_hint"),
                elem_id="token-name",
                max_lines=1,
                scale=4,
            )
            self._create = gr.Button(
                i18n("connect.make"), elem_id="token-make", scale=0, min_width=90
            )
        self._message = gr.HTML(elem_id="token-made")
        self._list = gr.Radio([], label=i18n("connect.held"), elem_id="token-list", visible=False)
        with gr.Row(elem_classes="tools"):
            self._revoke = gr.Button(
                i18n("connect.revoke"),
                elem_id="token-revoke",
                size="sm",
                elem_classes="tool",
                visible=False,
                interactive=False,
            )

    def _build_example(self) -> None:
        bilingual = self._page.bilingual
        example = escape(_EXAMPLE_PROGRAM)
        for placeholder, shown in (
            ("{origin}", "<span data-origin></span>"),
            ("{token}", bilingual("connect.token_here")),
            ("{said}", bilingual("connect.said")),
            ("{persona}", bilingual("connect.persona")),
        ):
            example = example.replace(placeholder, shown)
        schema = '<a href="api/v1/openapi.json" target="_blank">'
        gr.HTML(
            f"<details><summary>{bilingual('connect.example')}</summary><pre>{example}</pre>"
            f'<button type="button" class="copy">{bilingual("chat.copy")}</button></details>'
            f"<p>{bilingual('connect.rest')} <code><span data-origin></span>/api/v1</code> "
            f"{schema}{bilingual('connect.rest_form')}</a></p>"
            f"<p>{bilingual('connect.socket')} <code><span data-origin='ws'></span>"
            "/ws/{chat_id}</code></p>",
            elem_id="connect-example",
            js_on_load=_COPY_SCRIPT,
        )

    # ── updates ───────────────────────────────────────────────────────────────────────────

    @property
    def _changed_by_key(self) -> list[Component]:
        forms = self._key_forms.values()
        return [
            *[form.state for form in forms],
            *[form.forget for form in forms],
            *self._page.model_dropdowns,
        ]

    @property
    def _changed_by_token(self) -> list[Component]:
        return [self._list, self._revoke, self._to_revoke]

    def _show_keys(self, visitor: Visitor) -> Update:
        """Return updates of the keys' state and of the model dropdowns."""
        update: Update = {}
        for provider, form in self._key_forms.items():
            update[form.state] = key_state(provider, visitor)
            has_key = provider in visitor.service.clients.user_key_providers
            update[form.forget] = gr.update(visible=has_key)
        choices = model_choices(visitor.service.clients, visitor.translate, visitor.language)
        return update | dict.fromkeys(self._page.model_dropdowns, gr.update(choices=choices))

    async def _show_tokens(self, visitor: Visitor, zone: str) -> Update:
        tokens = await self._actions.list_tokens(visitor, zone or "")
        return {
            self._list: gr.update(choices=tokens, value=None, visible=bool(tokens)),
            **self._reset_revoke_button(visitor, visible=bool(tokens), interactive=False),
        }

    def _reset_revoke_button(self, visitor: Visitor, **properties: Any) -> Update:
        """Return updates that reset the revoke button to its first step."""
        label = visitor.translate("connect.revoke")
        return {self._to_revoke: "", self._revoke: gr.update(value=label, **properties)}

    # ── handlers ──────────────────────────────────────────────────────────────────────────

    async def _on_open(self, zone: str, request: gr.Request) -> Update:
        visitor = await self._page.visitors.from_request(request)
        with visitor.error_toasts():
            return self._show_keys(visitor) | await self._show_tokens(visitor, zone)

    async def _on_create_token(self, name: str, zone: str, request: gr.Request) -> Update:
        visitor = await self._page.visitors.from_request(request)
        with visitor.error_toasts():
            message = await self._actions.create_token(name or "", visitor)
            update: Update = {self._message: message, self._name: ""}
            return update | await self._show_tokens(visitor, zone)

    async def _on_choose_token(self, request: gr.Request) -> Update:
        return self._reset_revoke_button(
            await self._page.visitors.from_request(request), interactive=True
        )

    async def _on_revoke_token(
        self, token_id: str | None, to_revoke: str, zone: str, request: gr.Request
    ) -> Update:
        """Revoke a token at the second press of the button."""
        visitor = await self._page.visitors.from_request(request)
        with visitor.error_toasts():
            if token_id and token_id != to_revoke:
                label = gr.update(value=visitor.translate("connect.revoke_sure"))
                return {self._to_revoke: token_id, self._revoke: label}
            update: Update = {
                self._message: await self._actions.revoke_token(token_id or "", visitor)
            }
            return update | await self._show_tokens(visitor, zone)

    def _use_key_handler(self, provider: str) -> Callable[..., Coroutine[Any, Any, Update]]:
        form = self._key_forms[provider]

        async def on_use_key(key: str, request: gr.Request) -> Update:
            visitor = await self._page.visitors.from_request(request)
            with visitor.error_toasts():
                try:
                    visitor = await self._actions.use_key(provider, key or "", visitor)
                except gr.Error as error:  # shown beside the box until a key is accepted
                    warning = f'<p class="warning" role="alert">{escape(error.message)}</p>'
                    state = key_state(provider, visitor)
                    if provider not in visitor.service.clients.user_key_providers:
                        state = ""  # the warning says it
                    return {form.state: state + warning}
                return {form.box: "", **self._show_keys(visitor)}

        return on_use_key

    def _forget_key_handler(self, provider: str) -> Callable[..., Coroutine[Any, Any, Update]]:
        async def on_forget_key(request: gr.Request) -> Update:
            visitor = await self._page.visitors.from_request(request)
            with visitor.error_toasts():
                return self._show_keys(await self._actions.forget_key(provider, visitor))

        return on_forget_key

    def wire(self) -> None:
        """Connect the events."""
        zone, keys, tokens = self._zone, self._changed_by_key, self._changed_by_token
        options: dict[str, Any] = {"js": WITH_TIME_ZONE, **PRIVATE_EVENT}
        opened = self._frame.select(self._on_open, [zone], [*keys, *tokens], **options)
        self.key_events = [opened]
        for provider, form in self._key_forms.items():
            used = gr.on(
                [form.box.submit, form.use.click],
                self._use_key_handler(provider),
                [form.box],
                [form.box, *keys],
                **PRIVATE_EVENT,
            )
            forgotten = form.forget.click(
                self._forget_key_handler(provider), [], keys, **PRIVATE_EVENT
            )
            self.key_events += [used, forgotten]
        gr.on(
            [self._name.submit, self._create.click],
            self._on_create_token,
            [self._name, zone],
            [self._name, self._message, *tokens],
            **options,
        )
        self._list.input(
            self._on_choose_token,
            [],
            [self._revoke, self._to_revoke],
            queue=False,
            **PRIVATE_EVENT,
        )
        self._revoke.click(
            self._on_revoke_token,
            [self._list, self._to_revoke, zone],
            [self._message, *tokens],
            **options,
        )
