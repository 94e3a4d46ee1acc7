"""Build and launch the page: the top bar, the tabs, and the events that connect them."""

from __future__ import annotations

from html import escape

import gradio as gr
from starlette.middleware import Middleware

from persona_lab.errors import ConfigurationError
from persona_lab.lab import Lab
from persona_lab.server import AllowGradioRoutes, FrontPage, RejectFileInputs, VisitorCookie
from persona_lab.server.metrics_endpoint import is_local_only
from persona_lab.server.routes import routes
from persona_lab.translations import LANGUAGES, Translations
from persona_lab.ui.gradio_api import name_endpoints
from persona_lab.ui.header import build_header
from persona_lab.ui.model_status import model_choices
from persona_lab.ui.persona_view import PersonaView
from persona_lab.ui.session import Visitors
from persona_lab.ui.tabs.chat import ChatActions, build_chat
from persona_lab.ui.tabs.compare import CompareActions, build_compare
from persona_lab.ui.tabs.connect import ConnectActions, build_connect, key_labels
from persona_lab.ui.tabs.insights import (
    InsightsActions,
    alerts_of,
    build_insights,
    build_watch,
    no_alerts,
)
from persona_lab.ui.tabs.persona import EditorActions, build_editor, wire_try
from persona_lab.ui.theme import head, theme
from persona_lab.ui.workspace import Workspace


def build(lab: Lab, *, shared: bool = False) -> tuple[gr.Blocks, gr.I18n]:
    """Build the whole page. It loads no model and calls no provider.

    Alerts are for the operator of the server. The page shows them only where it serves the local
    machine alone.

    Args:
        lab: The open lab.
        shared: Whether a public link will serve the page.

    Returns:
        The page, and its translations for Gradio.
    """
    words = Translations(lab.settings.templates_dir / "ui.yaml")
    i18n = gr.I18n(
        **{
            language: {key: words(key, language) for key in words if not words.placeholders(key)}
            | key_labels(words, language)
            for language in LANGUAGES
        }
    )
    visitors = Visitors(lab, words)

    def both(key: str) -> str:
        """Return a text in both languages, for HTML, which Gradio doesn't translate.

        CSS shows one of the two.
        """
        return "".join(
            f'<span class="both" lang="{t}">{escape(words(key, t))}</span>' for t in LANGUAGES
        )

    choices = model_choices(lab.clients, lambda key: words(key, "ja"))
    default = lab.clients.info().spec
    watched = is_local_only(lab, shared=shared)

    with gr.Blocks(title="Persona Lab", fill_width=True, analytics_enabled=False) as page:
        name_endpoints(page, lab, visitors)  # first: an event of the page could take a name
        with gr.Row(elem_id="topbar", equal_height=False):
            header = build_header(i18n, both, choices, default)
            if watched:
                build_watch(lab, page, both)
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab(i18n("tab.persona"), id="persona"):
                editor = build_editor(i18n, both)
            with gr.Tab(i18n("tab.compare"), id="compare"):
                compare = build_compare(
                    CompareActions(lab, visitors),
                    i18n,
                    editor.editing,
                    choices,
                    default,
                    both,
                )
            with gr.Tab(i18n("tab.chat"), id="chat"):
                chat = build_chat(
                    ChatActions(lab, visitors), i18n, editor.editing, header.model, both
                )
            with gr.Tab(i18n("tab.insights"), id="insights", elem_id="insights") as insights:
                alerts = alerts_of(lab) if watched else no_alerts
                actions = InsightsActions(lab, visitors, alerts)
                build_insights(actions, insights, i18n, both)
            with gr.Tab(i18n("tab.connect"), id="connect") as connect:
                build_connect(
                    ConnectActions(lab, visitors),
                    connect,
                    i18n,
                    both,
                    [header.model, *(column.model for column in compare.columns)],
                    lambda who: model_choices(who.service.clients, who.translate, who.language),
                )
        editing = EditorActions(lab, visitors)
        wire_try(editing, editor, header.model)
        view = PersonaView(
            actions=editing, header=header, editor=editor, compare=compare, chat=chat
        )
        Workspace(view).wire(page)
    page.unload(visitors.leave)
    page.queue(default_concurrency_limit=64, max_size=1000)
    return page, i18n


def launch(page: gr.Blocks, i18n: gr.I18n, lab: Lab, *, share: bool = False) -> None:
    """Serve the page and the API routes until interrupted.

    Args:
        page: The page from :func:`build`.
        i18n: Its translations.
        lab: The open lab.
        share: Whether to create a public link.

    Raises:
        ConfigurationError: The server can't listen on its address and port.
    """
    settings = lab.settings
    own = routes(lab, shared=share)
    try:
        page.launch(
            server_name=settings.gradio_server_name,
            server_port=settings.gradio_server_port,
            share=share,
            theme=theme(),
            i18n=i18n,
            footer_links=["api"],
            ssr_mode=False,
            run_history=False,
            enable_monitoring=False,
            show_error=False,
            mcp_server=False,
            pwa=False,
            max_threads=100,
            app_kwargs={
                "routes": own,
                "middleware": [
                    Middleware(AllowGradioRoutes, lab=lab, own=own),
                    Middleware(RejectFileInputs),
                    Middleware(VisitorCookie),
                    Middleware(FrontPage, head=head()),
                ],
            },
        )
    except OSError as wrong:
        where = f"{settings.gradio_server_name}:{settings.gradio_server_port}"
        raise ConfigurationError(f"{where} can't be served: {wrong}") from wrong
