"""The header: the page's name, the dropdowns of persona and model, and the page's switches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import gradio as gr

from persona_lab.ui.scripts import STATIC


@dataclass(frozen=True, kw_only=True)
class Header:
    """The components of the header that other parts of the page use."""

    persona: gr.Dropdown
    model: gr.Dropdown
    model_status: gr.HTML
    no_cookie: gr.HTML


def build_header(
    i18n: gr.I18n,
    bilingual: Callable[[str], str],
    model_choices: Sequence[tuple[str, str]],
    default_model: str,
) -> Header:
    """Build the header. Call it inside its row.

    Args:
        i18n: The translations of labels.
        bilingual: Returns a text in both languages, for HTML.
        model_choices: The models, as (label, spec).
        default_model: The spec of the model that is chosen first.
    """
    gr.HTML(f"<h1>Persona Lab</h1><p>{bilingual('bar.line')}</p>", elem_id="brand")
    persona = gr.Dropdown([], label=i18n("bar.who"), elem_id="who")
    model = gr.Dropdown(
        list(model_choices),
        value=default_model,
        label=i18n("bar.model"),
        elem_id="model",
        allow_custom_value=True,
    )
    model_status = gr.HTML(elem_id="ready")
    gr.HTML(
        '<nav><button type="button" lang="ja" data-language="ja">日本語</button>'
        '<button type="button" lang="en" data-language="en">EN</button>'
        '<button type="button" data-light>'
        f'<span class="visually-hidden">{bilingual("bar.light")}</span></button></nav>'
        f'<dialog aria-labelledby="sure"><form method="dialog">'
        f'<p id="sure">{bilingual("bar.sure")}</p>'
        f'<button value="">{bilingual("bar.stay")}</button> '
        f"<button data-go>{bilingual('bar.go')}</button></form></dialog>",
        elem_id="switches",
        js_on_load=(STATIC / "switches.js").read_text("utf-8"),
    )
    for state in ("lost", "unreachable"):  # page.css shows it
        gr.HTML(f'<p class="warning" role="alert">{bilingual(f"bar.{state}")}</p>', elem_id=state)
    gr.HTML(f'<p class="warning">{bilingual("bar.no_storage")}</p>', elem_id="no-storage")
    no_cookie = gr.HTML(
        f'<p class="warning" role="alert">{bilingual("bar.no_cookie")}</p>',
        elem_id="no-cookie",
        visible=False,
    )
    return Header(persona=persona, model=model, model_status=model_status, no_cookie=no_cookie)
