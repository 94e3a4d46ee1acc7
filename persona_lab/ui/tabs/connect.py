"""The connect tab: the visitor's own provider keys, and API tokens for their programs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, tzinfo
from html import escape
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
from gradio.components import Component

from persona_lab.clients.registry import get_provider, list_keyed_providers
from persona_lab.db.tables import ApiToken
from persona_lab.insights import zone_of
from persona_lab.lab import Lab
from persona_lab.translations import Translations
from persona_lab.ui.events import PRIVATE_EVENT
from persona_lab.ui.session import Visitor, Visitors
from persona_lab.ui.tabs.insights import WITH_ZONE

KEYED = tuple(provider.name for provider in list_keyed_providers())
"""The providers that need a key."""
_KEY = re.compile(r"[\w.:~+/=-]{20,400}", re.ASCII)
"""The form of a key. It excludes plain words, which would be redacted from answers."""

_EXAMPLE = """from openai import OpenAI

client = OpenAI(
    base_url="{origin}/v1",
    api_key="{token}",
)
said = [{"role": "user", "content": "{said}"}]
answer = client.chat.completions.create(model="{persona}", messages=said)
print(answer.choices[0].message.content)"""
"""``{origin}`` is the page's own address, which the browser fills in."""
_COPY = """const [pre, copy] = ["pre", ".copy"].map((at) => element.querySelector(at));
copy.addEventListener("click", () => (copy.dataset.copy = pre.innerText));"""
"""Copies the example as it is displayed: in one language, with the page's address."""


def key_labels(words: Translations, language: str) -> dict[str, str]:
    """Return the label of each provider's field, by its key ``connect.key.<provider>``."""
    return {
        f"connect.key.{provider.name}": words("connect.key", language, provider=provider.label)
        for provider in list_keyed_providers()
    }


def key_state(provider: str, visitor: Visitor) -> str:
    """Return HTML that says whose key is used, and to which custom server it is sent."""
    clients = visitor.service.clients
    state = "own" if provider in clients.user_key_providers else "house"
    if get_provider(provider).api_key(clients.settings) is None:
        state = "none"
    words = escape(visitor.translate(f"connect.key_state.{state}"))
    server = get_provider(provider).custom_url(clients.settings)
    if server:
        where = urlsplit(server).netloc.rpartition("@")[2]
        words += f" {escape(visitor.translate('connect.sent_to', server=where))}"
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
            gr.Error: The key is empty or has a wrong form.
        """
        key = key.strip()
        if not (_KEY.fullmatch(key) and visitor.session):
            raise gr.Error(
                visitor.translate("connect.no_key" if key else "connect.empty_key"),
                title=visitor.translate("error.title"),
                duration=6,
                print_exception=False,
            )
        await self.visitors.keyring.put(visitor.page, provider, key)
        return self.visitors.again(visitor)

    async def forget_key(self, provider: str, visitor: Visitor) -> Visitor:
        """Forget the page's key for ``provider``; return the visitor with the new service."""
        self.visitors.keyring.drop(visitor.page, provider)
        return self.visitors.again(visitor)

    async def tokens(self, visitor: Visitor, zone: str = "") -> list[tuple[str, str]]:
        """Return the visitor's tokens as (label, id), the newest first."""
        held = await visitor.operations(self.lab).list_tokens()
        return [(token_label(token, visitor, zone_of(zone)), token.id) for token in held]

    async def make_token(self, name: str, visitor: Visitor) -> str:
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
        held = await operations.list_tokens()
        await operations.revoke_token(token_id)
        name = next((token.name for token in held if token.id == token_id), "")
        words = visitor.translate(
            "connect.revoked", name=name or visitor.translate("connect.nameless")
        )
        return f'<p class="quiet" role="status">{escape(words)}</p>'


def build_connect(
    actions: ConnectActions,
    tab: gr.Tab,
    i18n: gr.I18n,
    both: Callable[[str], str],
    choosers: Sequence[gr.Dropdown],
    choices: Callable[[Visitor], list[tuple[str, str]]],
) -> None:
    """Build the tab and connect its events.

    Args:
        actions: The actions of the tab.
        tab: The tab, whose selection updates the content.
        i18n: The translations of labels.
        both: Returns a text in both languages, for HTML.
        choosers: Dropdowns of models, which are updated when a key is added or forgotten.
        choices: Returns the choices of those dropdowns.
    """
    boxes: dict[str, gr.Textbox] = {}
    states: dict[str, gr.HTML] = {}
    drops: dict[str, gr.Button] = {}
    uses: dict[str, gr.Button] = {}
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320, elem_classes="sheet", elem_id="connect-keys"):
            gr.HTML(f"<h2>{both('connect.keys')}</h2><p>{both('connect.keys_line')}</p>")
            for provider in KEYED:
                with gr.Row(elem_classes="writing"):
                    boxes[provider] = gr.Textbox(
                        label=i18n(f"connect.key.{provider}"),
                        type="password",
                        elem_id=f"key-{provider}",
                        html_attributes=gr.InputHTMLAttributes(
                            autocomplete="one-time-code", spellcheck=False, autocorrect="off"
                        ),
                        scale=4,
                    )
                    uses[provider] = gr.Button(
                        i18n("connect.use"), elem_id=f"key-{provider}-use", scale=0, min_width=90
                    )
                    drops[provider] = gr.Button(
                        i18n("connect.forget"),
                        elem_id=f"key-{provider}-forget",
                        scale=0,
                        min_width=90,
                        visible=False,
                    )
                states[provider] = gr.HTML(elem_id=f"key-{provider}-state")
        with gr.Column(min_width=320, elem_classes="sheet", elem_id="connect-tokens"):
            gr.HTML(f"<h2>{both('connect.tokens')}</h2><p>{both('connect.tokens_line')}</p>")
            with gr.Row(elem_classes="writing"):
                name = gr.Textbox(
                    label=i18n("connect.name"),
                    placeholder=i18n("connect.name_hint"),
                    elem_id="token-name",
                    max_lines=1,
                    scale=4,
                )
                make = gr.Button(i18n("connect.make"), elem_id="token-make", scale=0, min_width=90)
            made = gr.HTML(elem_id="token-made")
            listed = gr.Radio([], label=i18n("connect.held"), elem_id="token-list", visible=False)
            with gr.Row(elem_classes="tools"):
                revoke = gr.Button(
                    i18n("connect.revoke"),
                    elem_id="token-revoke",
                    size="sm",
                    elem_classes="tool",
                    visible=False,
                    interactive=False,
                )
            example = escape(_EXAMPLE)
            for blank, shown in (
                ("{origin}", "<span data-origin></span>"),
                ("{token}", both("connect.token_here")),
                ("{said}", both("connect.said")),
                ("{persona}", both("connect.persona")),
            ):
                example = example.replace(blank, shown)
            gr.HTML(
                f"<details><summary>{both('connect.example')}</summary><pre>{example}</pre>"
                f'<button type="button" class="copy">{both("chat.copy")}</button></details>'
                f"<p>{both('connect.rest')} <code><span data-origin></span>/api/v1</code> "
                f'<a href="api/v1/openapi.json" target="_blank">{both("connect.rest_form")}</a></p>'
                f"<p>{both('connect.socket')} <code>/ws/{{chat_id}}</code></p>",
                elem_id="connect-example",
                js_on_load=_COPY,
            )
    zone = gr.Textbox(visible="hidden")
    asked = gr.Textbox(visible="hidden")  # the token that the next press revokes

    def keys_shown(visitor: Visitor) -> dict[Component, Any]:
        """Return updates of the keys' state and of the model dropdowns."""
        own = visitor.service.clients.user_key_providers
        update: dict[Component, Any] = {}
        for provider in KEYED:
            update[states[provider]] = key_state(provider, visitor)
            update[drops[provider]] = gr.update(visible=provider in own)
        return update | dict.fromkeys(choosers, gr.update(choices=choices(visitor)))

    async def tokens_shown(visitor: Visitor, zone: str) -> dict[Component, Any]:
        tokens = await actions.tokens(visitor, zone or "")
        there = bool(tokens)
        return {
            listed: gr.update(choices=tokens, value=None, visible=there),
            **revocable(visitor, visible=there, interactive=False),
        }

    def revocable(visitor: Visitor, **more: Any) -> dict[Component, Any]:
        """Return updates that reset the revoke button to its first step."""
        return {asked: "", revoke: gr.update(value=visitor.translate("connect.revoke"), **more)}

    async def open_tab(zone: str, request: gr.Request) -> dict[Component, Any]:
        visitor = await actions.visitors.of(request)
        with visitor.error_toasts():
            return keys_shown(visitor) | await tokens_shown(visitor, zone)

    async def make_token(name_: str, zone: str, request: gr.Request) -> dict[Component, Any]:
        visitor = await actions.visitors.of(request)
        with visitor.error_toasts():
            shown = await actions.make_token(name_ or "", visitor)
            return {made: shown, name: ""} | await tokens_shown(visitor, zone)

    async def choose_token(request: gr.Request) -> dict[Component, Any]:
        return revocable(await actions.visitors.of(request), interactive=True)

    async def revoke_token(
        token: str | None, asked_: str, zone: str, request: gr.Request
    ) -> dict[Component, Any]:
        visitor = await actions.visitors.of(request)
        with visitor.error_toasts():
            if token and token != asked_:
                sure = gr.update(value=visitor.translate("connect.revoke_sure"))
                return {asked: token, revoke: sure}
            gone = await actions.revoke_token(token or "", visitor)
            return {made: gone} | await tokens_shown(visitor, zone)

    keys: list[Component] = [*states.values(), *drops.values(), *choosers]
    held: list[Component] = [listed, revoke, asked]
    tab.select(open_tab, [zone], [*keys, *held], js=WITH_ZONE, **PRIVATE_EVENT)
    for provider in KEYED:

        async def use_key(
            key: str, request: gr.Request, provider: str = provider
        ) -> dict[Component, Any]:
            visitor = await actions.visitors.of(request)
            with visitor.error_toasts():
                try:
                    visitor = await actions.use_key(provider, key or "", visitor)
                except gr.Error as wrong:  # shown beside the box until a key is accepted
                    warning = f'<p class="warning" role="alert">{escape(wrong.message)}</p>'
                    return {states[provider]: key_state(provider, visitor) + warning}
                return {boxes[provider]: ""} | keys_shown(visitor)

        async def forget_key(request: gr.Request, provider: str = provider) -> dict[Component, Any]:
            visitor = await actions.visitors.of(request)
            with visitor.error_toasts():
                return keys_shown(await actions.forget_key(provider, visitor))

        gr.on(
            [boxes[provider].submit, uses[provider].click],
            use_key,
            [boxes[provider]],
            [boxes[provider], *keys],
            **PRIVATE_EVENT,
        )
        drops[provider].click(forget_key, [], keys, **PRIVATE_EVENT)
    gr.on(
        [name.submit, make.click],
        make_token,
        [name, zone],
        [name, made, *held],
        js=WITH_ZONE,
        **PRIVATE_EVENT,
    )
    listed.input(choose_token, [], [revoke, asked], queue=False, **PRIVATE_EVENT)
    revoke.click(revoke_token, [listed, asked, zone], [made, *held], js=WITH_ZONE, **PRIVATE_EVENT)
