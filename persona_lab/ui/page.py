"""Build and launch the page: the top bar, the tabs, and the events that connect them."""

from __future__ import annotations

from functools import partial

import gradio as gr
from starlette.middleware import Middleware

from persona_lab.errors import ConfigurationError
from persona_lab.lab import Lab
from persona_lab.server import (
    AllowGradioRoutes,
    CheckGradioCalls,
    FrontPage,
    RequestIdHeader,
    VisitorCookie,
)
from persona_lab.server.metrics_endpoint import is_local_only
from persona_lab.server.routes import routes
from persona_lab.translations import load_texts
from persona_lab.ui.alert_marker import build_alert_marker
from persona_lab.ui.gradio_api import input_finder, name_endpoints
from persona_lab.ui.header import build_header
from persona_lab.ui.labels import bilingual_html, build_i18n
from persona_lab.ui.model_status import model_choices
from persona_lab.ui.page_blocks import PageBlocks
from persona_lab.ui.page_context import PageContext
from persona_lab.ui.prefetch import PromptPrefetcher
from persona_lab.ui.session import Visitors
from persona_lab.ui.tabs import TABS
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
    words = load_texts(lab.settings.templates_dir, "ui.yaml")
    i18n = build_i18n(words)
    visitors = Visitors(lab, words)
    bilingual = partial(bilingual_html, words)
    choices = model_choices(lab.clients, lambda key: words(key, "ja"))
    default_model = lab.clients.info().spec
    shows_alerts = is_local_only(lab, shared=shared)

    with PageBlocks(
        visitors, title="Persona Lab", fill_width=True, analytics_enabled=False
    ) as page:
        name_endpoints(page, lab, visitors)  # first: an event of the page could take a name
        with gr.Row(elem_id="topbar", equal_height=False):
            header = build_header(i18n, bilingual, choices, default_model)
            if shows_alerts:
                build_alert_marker(lab, page, bilingual)
        context = PageContext(
            lab=lab,
            visitors=visitors,
            i18n=i18n,
            bilingual=bilingual,
            header=header,
            persona_id=gr.Textbox(visible="hidden", elem_id="editing", render=False),
            model_choices=choices,
            default_model=default_model,
            prefetcher=PromptPrefetcher(),
            shows_alerts=shows_alerts,
            model_dropdowns=[header.model],
        )
        tabs = [tab_class(context) for tab_class in TABS]
        with gr.Tabs(elem_id="tabs"):
            for tab in tabs:
                with gr.Tab(i18n(f"tab.{tab.key}"), id=tab.key, elem_id=tab.key) as frame:
                    tab.build(frame)
        context.persona_id.render()
        for tab in tabs:
            tab.wire()
        Workspace(context, tabs).wire(page)
    page.unload(visitors.on_unload)
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
    api_routes = routes(lab, shared=share)
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
                "routes": api_routes,
                "middleware": [
                    Middleware(RequestIdHeader),
                    Middleware(AllowGradioRoutes, lab=lab, own=api_routes),
                    Middleware(CheckGradioCalls, lab=lab, find_inputs=input_finder(page)),
                    Middleware(VisitorCookie),
                    Middleware(FrontPage, head=head()),
                ],
            },
        )
    except OSError as error:
        address = f"{settings.gradio_server_name}:{settings.gradio_server_port}"
        raise ConfigurationError(f"{address} can't be served: {error}") from error
