"""What Gradio alone costs: four tabs with a few components, no SDK, no database, no model."""

from __future__ import annotations

import gradio as gr


def echo(text: str) -> str:
    return text


with gr.Blocks(title="Bare") as page:
    for name in ("Persona", "Compare", "Chat", "Models"):
        with gr.Tab(name):
            message = gr.Textbox(label="Message")
            shown = gr.Textbox(label="Answer")
            gr.Button("Send").click(echo, message, shown)

if __name__ == "__main__":
    page.launch(ssr_mode=False, show_error=False)
