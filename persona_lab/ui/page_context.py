"""What the parts of the page share: services, texts, the header and the open persona."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import gradio as gr

from persona_lab.lab import Lab
from persona_lab.ui.header import Header
from persona_lab.ui.prefetch import PromptPrefetcher
from persona_lab.ui.session import Visitors


@dataclass(frozen=True, kw_only=True)
class PageContext:
    """What a tab gets to build itself."""

    lab: Lab
    visitors: Visitors
    i18n: gr.I18n
    """Labels by their keys in ``templates/ui.yaml``; Gradio shows the browser's language."""
    bilingual: Callable[[str], str]
    """Returns a text in both languages, for HTML; CSS shows one of the two."""
    header: Header
    persona_id: gr.Textbox
    """The id of the open persona; set with the form's fields, never by a dropdown."""
    model_choices: Sequence[tuple[str, str]]
    """The models as (label, spec), before the visitor is known."""
    default_model: str
    prefetcher: PromptPrefetcher
    shows_alerts: bool
    """Whether the page may show the operator's alerts."""
    model_dropdowns: list[gr.Dropdown] = field(default_factory=list)
    """Every dropdown of models; a tab adds its own while it is built."""
