"""Processes that are there to be killed. Run by test_crash.py, not by pytest.

For each address of a database on its input it forks a child, which opens a lab on it and talks in
four conversations at a time until it is killed. Forking spares each the second of importing. What
the child says, a line of JSON each, is what a user would have seen: that a message was taken
("kept"), and that an answer was whole ("done").
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


def say(**what: Any) -> None:
    os.write(1, (json.dumps(what) + "\n").encode())


async def talk(url: str) -> None:
    settings = Settings(
        database_url=url, llm_provider="mock", llm_model=MODEL, requests_per_minute=0
    )
    async with open_lab(settings) as lab:
        lab.service.save_every = 0.05
        user = lab.store.create_user().id
        agent = lab.store.create_agent(user_id=user, name="さくら").id

        async def chat() -> None:
            where = {"user_id": user, "agent_id": agent}
            where["chat_id"] = lab.store.create_chat(**where).id
            for number in itertools.count():
                message = f"{number}番目のメッセージ 👩‍👩‍👧"
                async for event in lab.service.generate_streaming(message, **where):
                    if event.type == "start":
                        say(kept=event.metadata["user_message_id"], message=message, **where)
                    elif event.type == "done":
                        say(done=event.message_id, content=event.content, **where)

        await asyncio.gather(*(chat() for _ in range(4)))


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        asyncio.run(talk(line.strip()))
    say(pid=child)
    os.waitpid(child, 0)
    say(ended=child)
