"""``python -m bench.samples``: writes into docs/models.md what the packaged models say.

The demo personas are asked the messages that the page itself suggests for them, along the
whole path that a message takes. No answer is chosen; the sampling was tuned by reading answers of
these personas, so this is a sample and no test.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path

from persona_lab.db.tables import Agent
from persona_lab.lab import Lab, open_lab
from persona_lab.personas.demos import load_messages
from persona_lab.settings import ROOT, Settings
from persona_lab.types import Language

SEED = 2026
BEGIN, END = "<!-- samples -->", "<!-- /samples -->"
"""Where they stand in docs/models.md."""
COUNT = 10
MODELS: dict[str, tuple[Language, ...]] = {
    "local:gemma-3-270m": ("ja", "en"),
    "local:smollm2-135m-instruct": ("en",),
}
"""Each model and the languages that it is asked in."""


def questions(
    agents: list[Agent], messages: dict[str, list[str]], languages: tuple[Language, ...]
) -> list[tuple[Agent, str]]:
    """Every persona's first message, then second ones, until there are enough."""
    speaking = [agent for agent in agents if agent.language in languages]
    rounds = [
        (agent, messages[agent.seed or ""][number]) for number in (0, 1) for agent in speaking
    ]
    return rounds[:COUNT]


async def answered(lab: Lab, agent: Agent, message: str, model: str, user_id: str) -> str:
    events = lab.service.answer(agent, message, user_id=user_id, model=model, seed=SEED)
    async with contextlib.aclosing(events):
        async for event in events:
            if event.type == "done":
                return event.content
    raise AssertionError("a stream ends with done or an error")


async def report(lab: Lab) -> str:
    user = lab.store.create_user()
    agents = lab.store.list_agents(user_id=user.id)
    messages = load_messages(lab.settings.data_dir / "personas.yaml")
    lines = [
        "<details><summary>Ten sample answers of each</summary>",
        "",
        "To the messages that the page suggests for the demo personas, as they came, with seed "
        f"{SEED} and the sampling of `data/models.yaml`,",
        "which was tuned by reading answers of these same personas. `python -m bench.samples` "
        "writes this part anew.",
        "Don't take what they say for facts.",
    ]
    for model, languages in MODELS.items():
        info = lab.clients.info(model)
        lines += ["", f"**{info.label}**", "", "| persona | message | answer |", "|---|---|---|"]
        for agent, message in questions(agents, messages, languages):
            answer = await answered(lab, agent, message, model, user.id)
            row = (agent.name, message, answer)
            lines.append(f"| {' | '.join(cell.replace(chr(10), '<br>') for cell in row)} |")
    return "\n".join([*lines, "", "</details>"])


async def main() -> None:
    with tempfile.TemporaryDirectory() as room:
        settings = Settings(database_url=f"sqlite:///{Path(room) / 'samples.db'}", llm_timeout=120)
        async with open_lab(settings) as lab:
            page = await report(lab)
    target = ROOT / "docs" / "models.md"
    before, rest = target.read_text("utf-8").split(BEGIN)
    _, after = rest.split(END)
    target.write_text(f"{before}{BEGIN}\n{page}\n{END}{after}", "utf-8")
    print(page)


if __name__ == "__main__":
    asyncio.run(main())
