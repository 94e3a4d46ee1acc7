"""What Gradio alone makes of a chat: its ChatInterface over a stand-in of a set pace."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator

import gradio as gr

FIRST, RATE, TOKENS = (float(os.environ[name]) for name in ("FIRST", "RATE", "TOKENS"))


async def answer(message: str, history: list[dict[str, str]]) -> AsyncGenerator[str, None]:
    await asyncio.sleep(FIRST)
    text = ""
    for number in range(int(TOKENS)):
        text += f"言葉{number} "
        yield text
        await asyncio.sleep(1 / RATE)


page = gr.ChatInterface(answer, api_name="chat", concurrency_limit=None)

if __name__ == "__main__":
    page.launch(ssr_mode=False, show_error=False, max_threads=100)
