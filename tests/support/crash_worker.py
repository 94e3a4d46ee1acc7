"""Worker processes for test_crash.py, which kills them.

For each database URL on standard input it forks a child. The child opens a lab and sends
messages in four chats at once until it is killed. A fork saves the second that the imports take.
The child writes what a user would have seen, a line of JSON each: a stored message ("kept"), or a
complete answer ("done").
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
from typing import Any

from persona_lab.lab import open_lab
from persona_lab.settings import Settings

MODEL = "echo?rate=400&tokens=120"


def write_line(**fields: Any) -> None:
    os.write(1, (json.dumps(fields) + "\n").encode())


async def run_chats(url: str) -> None:
    settings = Settings(
        database_url=url, llm_provider="mock", llm_model=MODEL, requests_per_minute=0
    )
    async with open_lab(settings) as lab:
        lab.service.save_every = 0.05
        user = lab.store.create_user().id
        agent = lab.store.create_agent(user_id=user, name="さくら").id

        async def run_chat() -> None:
            ids = {"user_id": user, "agent_id": agent}
            ids["chat_id"] = lab.store.create_chat(**ids).id
            for number in itertools.count():
                message = f"{number}番目のメッセージ 👩‍👩‍👧"
                async for event in lab.service.generate_streaming(message, **ids):
                    if event.type == "start":
                        write_line(kept=event.metadata["user_message_id"], message=message, **ids)
                    elif event.type == "done":
                        write_line(done=event.message_id, content=event.content, **ids)

        await asyncio.gather(*(run_chat() for _ in range(4)))


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        asyncio.run(run_chats(line.strip()))
    write_line(pid=child)
    os.waitpid(child, 0)
    write_line(ended=child)
