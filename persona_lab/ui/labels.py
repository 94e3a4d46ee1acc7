"""The texts of ``templates/ui.yaml`` as the page's labels."""

from __future__ import annotations

from html import escape

import gradio as gr

from persona_lab.clients.registry import list_keyed_providers
from persona_lab.translations import Translations
from persona_lab.types import LANGUAGES


def build_i18n(words: Translations) -> gr.I18n:
    """Return the labels in each language. Texts with values in them are no labels."""
    return gr.I18n(
        **{
            language: {key: words(key, language) for key in words if not words.placeholders(key)}
            | key_labels(words, language)
            for language in LANGUAGES
        }
    )


def key_labels(words: Translations, language: str) -> dict[str, str]:
    """Return the label of each provider's key, by its key ``connect.key.<provider>``."""
    return {
        f"connect.key.{provider.name}": words("connect.key", language, provider=provider.label)
        for provider in list_keyed_providers()
    }


def bilingual_html(words: Translations, key: str) -> str:
    """Return a text in both languages, for HTML, which Gradio doesn't translate.

    CSS shows one of the two.
    """
    return "".join(
        f'<span class="both" lang="{language}">{escape(words(key, language))}</span>'
        for language in LANGUAGES
    )
