"""Send one message to several contestants at once, each in its own task.

A slow contestant never delays a quick one: tasks fill cells, and the caller gets snapshots.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from persona_lab.db.tables import Agent
from persona_lab.errors import InputError
from persona_lab.pipeline.service import LLMService
from persona_lab.responses.changes import restore
from persona_lab.types import Language

MAX_COLUMNS = 8
"""Most contestants of one run."""

CellState = Literal["waiting", "streaming", "done", "failed", "stopped"]


@dataclass(frozen=True, slots=True)
class Contestant:
    """A model (``provider:name``; empty is the default model) that answers as a persona."""

    model: str
    agent: Agent


@dataclass(frozen=True, slots=True)
class Cell:
    """One column at one moment.

    ``error`` is the text to show for a failure, and ``text`` what arrived before it. The state
    "stopped" means that the column's task was cancelled by itself. ``raw`` is the text as the model
    wrote it.
    """

    text: str = ""
    state: CellState = "waiting"
    metadata: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    raw: str = ""


class Comparison:
    """Runs messages over several contestants. Times in seconds."""

    def __init__(self, service: LLMService, *, tick: float = 0.05, heartbeat: float = 1.0) -> None:
        """Set the shortest (``tick``) and longest (``heartbeat``) time between two snapshots.

        A closed page is noticed only at the next snapshot; the heartbeat bounds that time.
        """
        self._service = service
        self._tick = tick
        self._heartbeat = heartbeat

    async def run(
        self,
        message: str,
        contestants: Sequence[Contestant],
        user_id: str,
        *,
        language: Language | None = None,
        **options: Any,
    ) -> AsyncGenerator[list[Cell], None]:
        """Yield snapshots of all cells, in the contestants' order.

        In the last snapshot every cell has ended. Closing the generator stops every contestant.

        Args:
            message: The message to send.
            contestants: One to :data:`MAX_COLUMNS` contestants.
            user_id: The user of the run.
            language: The language of error texts; None takes the persona's.
            **options: Sampling options, and further arguments of ``LLMService.answer``.

        Raises:
            InputError: The message can't be sent, or the number of contestants is out of range.
        """
        if not 1 <= len(contestants) <= MAX_COLUMNS:
            raise InputError(f"{len(contestants)} contestants: between 1 and {MAX_COLUMNS} can run")
        text = self._service.input_validator.validate_message(message)
        cells = [Cell() for _ in contestants]
        changed = asyncio.Event()

        def show(column: int, cell: Cell) -> None:
            cells[column] = cell
            changed.set()

        async def fill(column: int, contestant: Contestant) -> None:
            events = self._service.answer(
                contestant.agent,
                text,
                user_id=user_id,
                model=contestant.model,
                kind="compare",
                language=language,
                pending=True,
                **options,
            )
            try:
                async with contextlib.aclosing(events):
                    async for event in events:
                        cell = cells[column]
                        if event.type == "done":
                            failed = "fallback" in event.metadata
                            changes = event.metadata.get("changes") or ()
                            show(
                                column,
                                Cell(
                                    cell.text if failed else event.content,
                                    "failed" if failed else "done",
                                    event.metadata,
                                    event.metadata.get("error", ""),
                                    cell.raw if failed else restore(event.content, changes),
                                ),
                            )
                        elif event.type == "delta" and "fallback" not in event.metadata:
                            text_so_far = cell.text + event.content
                            show(
                                column,
                                replace(cell, text=text_so_far, raw=event.raw, state="streaming"),
                            )
            except asyncio.CancelledError:
                show(column, replace(cells[column], state="stopped"))
                raise
            except Exception as error:  # noqa: BLE001 - an error of one column must not stop the others
                fallback = await self._service.error_handler.handle(
                    error, text, contestant.agent, language=language
                )
                failed_cell = replace(
                    cells[column],
                    state="failed",
                    metadata=fallback.metadata,
                    error=fallback.metadata["error"],
                )
                show(column, failed_cell)

        tasks = [asyncio.create_task(fill(*entry)) for entry in enumerate(contestants)]
        try:
            yield list(cells)
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._heartbeat):
                        await changed.wait()
                changed.clear()
                snapshot = list(cells)
                yield snapshot
                # A cell that ends while the caller is busy is in the next snapshot.
                if all(cell.state in ("done", "failed", "stopped") for cell in snapshot):
                    return
                await asyncio.wait(tasks, timeout=self._tick)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
