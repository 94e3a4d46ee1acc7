"""The lab's own page, wiring and all, but what answers a keystroke in the editor does nothing.

It repeats the persona's name into the preview, so that one can see that it was called.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from persona_lab.settings import load_settings
from persona_lab.ui import page as frame
from persona_lab.ui import serve

launch = frame.launch


def launch_emptied(page: gr.Blocks, *args: Any, **options: Any) -> None:
    """What ``frame.launch`` does, with a page whose ``on_edit`` is empty."""
    by_id = {block.elem_id: block for block in page.blocks.values()}
    name, preview = by_id["field-name"], by_id["prompt-preview"]

    async def empty(values: dict[Any, Any]) -> dict[Any, Any]:
        return {preview: values[name]}

    (edited,) = [call for call in page.fns.values() if call.name == "on_edit"]
    edited.fn = empty
    launch(page, *args, **options)


if __name__ == "__main__":
    frame.launch = launch_emptied
    serve(load_settings())
