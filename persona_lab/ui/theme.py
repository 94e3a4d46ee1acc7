"""Gradio's theme in the page's own colours, and the content of the HTML head."""

from __future__ import annotations

import gradio as gr

from persona_lab.ui.scripts import STATIC, bundle

FONTS = [
    "Hiragino Sans",
    "Noto Sans CJK JP",
    "Noto Sans JP",
    "Yu Gothic UI",
    "Meiryo",
    "sans-serif",
]


def theme() -> gr.themes.Base:
    """Return the theme, whose colours are the CSS variables of ``page.css``."""
    look = gr.themes.Base(
        primary_hue=gr.themes.colors.indigo,
        neutral_hue=gr.themes.colors.stone,
        font=FONTS,
        font_mono=["Menlo", "Noto Sans Mono CJK JP", "monospace"],
        radius_size=gr.themes.sizes.radius_md,
        text_size=gr.themes.sizes.text_md,
    )
    paper = {
        "body_background_fill": "var(--paper)",
        "background_fill_primary": "var(--sheet)",
        "background_fill_secondary": "var(--paper)",
        "block_background_fill": "var(--sheet)",
        "block_border_color": "var(--line)",
        "border_color_primary": "var(--line)",
        "input_background_fill": "var(--paper)",
        "input_border_color": "var(--line)",
        "input_placeholder_color": "var(--quiet)",
        "body_text_color": "var(--ink)",
        "body_text_color_subdued": "var(--quiet)",
        "block_label_text_color": "var(--quiet)",
        "block_title_text_color": "var(--quiet)",
        "block_info_text_color": "var(--quiet)",
        "button_primary_background_fill": "var(--accent)",
        "button_primary_background_fill_hover": "var(--accent)",
        "button_primary_text_color": "var(--on-accent)",
        "button_secondary_background_fill": "var(--sheet)",
        "button_secondary_background_fill_hover": "var(--accent-soft)",
        "button_secondary_border_color": "var(--line)",
        "button_secondary_text_color": "var(--ink)",
        "button_cancel_background_fill": "var(--sheet)",
        "button_cancel_background_fill_hover": "var(--warn-soft)",
        "button_cancel_border_color": "var(--line)",
        "button_cancel_text_color": "var(--warn)",
        "color_accent": "var(--accent)",
        "color_accent_soft": "var(--accent-soft)",
        "link_text_color": "var(--accent)",
    }
    # page.css changes the variables in dark mode. Gradio's own dark values must not override them.
    dark = {f"{name}_dark": value for name, value in paper.items() if name != "color_accent"}
    return look.set(**paper, **dark)


def head() -> str:
    """Return the style element, and the script that runs before Gradio's."""
    style = (STATIC / "page.css").read_text("utf-8")
    return f"<style>{style}</style><script>{bundle()}</script>"
