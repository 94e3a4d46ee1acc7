import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

import pytest
from support.fakes import ChatUser, reply_with
from support.texts import FALLBACKS

from persona_lab.comparison.runner import MAX_COLUMNS, Cell, Comparison, Contestant
from persona_lab.db.tables import Agent
from persona_lab.errors import EmptyMessage, InputError, Offline
from persona_lab.lab import Lab
from persona_lab.types import Chunk, Options, Prompt

MakeLab = Callable[..., Lab]


class Script:
    """Contestants that send pieces on command: ``say(name, piece)``, None to end."""

    def __init__(self, *names: str) -> None:
        self.lines: dict[str, asyncio.Queue[str | Exception | None]] = {
            name: asyncio.Queue() for name in names
        }
        self.left: list[str] = []
        self.tasks: dict[str, asyncio.Task[object] | None] = {}
        self.someone_left = asyncio.Event()

    def say(self, name: str, *pieces: str | Exception | None) -> None:
        for piece in pieces:
            self.lines[name].put_nowait(piece)

    async def play(self, prompt: Prompt, options: Options) -> AsyncGenerator[Chunk, None]:
        name = next(name for name in self.lines if name in prompt)
        self.tasks[name] = asyncio.current_task()
        try:
            while (piece := await self.lines[name].get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield Chunk(piece)
            yield Chunk(finish_reason="stop")
        finally:
            self.left.append(name)
            self.someone_left.set()

    def contestants(self) -> list[Contestant]:
        return [Contestant("", Agent(name=name)) for name in self.lines]


async def until(
    snapshots: AsyncGenerator[list[Cell], None], wanted: Callable[[list[Cell]], bool]
) -> list[Cell]:
    async with asyncio.timeout(10):
        async for cells in snapshots:
            if wanted(cells):
                return cells
    raise AssertionError("the run ended before that")


def run(lab: Lab, script: Script, visitor: ChatUser) -> AsyncGenerator[list[Cell], None]:
    comparison = Comparison(lab.service, tick=0)
    return comparison.run("やあ", script.contestants(), visitor.user_id)


async def test_column_is_not_delayed_when_another_is_slow(make_lab: MakeLab) -> None:
    script = Script("かめ", "うさぎ")
    lab = make_lab(script.play)
    async with contextlib.aclosing(run(lab, script, ChatUser(lab))) as snapshots:
        script.say("うさぎ", "はやい", "よ", None)
        cells = await until(snapshots, lambda cells: cells[1].state == "done")
        assert (cells[1].text, cells[0].state, cells[0].text) == ("はやいよ", "waiting", "")
        script.say("かめ", "おそい", None)
        cells = await until(snapshots, lambda cells: cells[0].state == "done")
        assert [cell.text for cell in cells] == ["おそい", "はやいよ"]


async def test_column_shows_partial_answer_while_streaming(make_lab: MakeLab) -> None:
    script = Script("はな")
    lab = make_lab(script.play)
    async with contextlib.aclosing(run(lab, script, ChatUser(lab))) as snapshots:
        assert await anext(snapshots) == [Cell()]
        script.say("はな", "はい")
        cells = await until(snapshots, lambda cells: cells[0].text == "はい")
        assert cells[0].state == "streaming"


async def test_last_snapshot_has_every_cell_ended(make_lab: MakeLab) -> None:
    visitor = ChatUser(make_lab(reply_with("はい")))
    contestants = [Contestant("", Agent(name=name)) for name in ("はな", "たろう")]
    comparison = Comparison(visitor.lab.service, tick=0)
    snapshots = [cells async for cells in comparison.run("やあ", contestants, visitor.user_id)]
    for cell in snapshots[-1]:
        assert (cell.text, cell.state, cell.error) == ("はい", "done", "")
        assert cell.metadata["usage"]["total_tokens"] == 13
    kinds = [record.kind for record in visitor.lab.store.records(user_id=visitor.user_id)]
    assert kinds == ["compare", "compare"]


async def test_last_snapshot_is_complete_when_reader_is_busy(make_lab: MakeLab) -> None:
    script = Script("はな")
    lab = make_lab(script.play)
    async with contextlib.aclosing(run(lab, script, ChatUser(lab))) as snapshots:
        script.say("はな", "はい")
        await until(snapshots, lambda cells: cells[0].state == "streaming")
        script.say("はな", "、どうぞ", None)
        async with asyncio.timeout(10):
            await script.someone_left.wait()
        [cell] = [cells async for cells in snapshots][-1]
    assert (cell.text, cell.state) == ("はい、どうぞ", "done")


async def test_column_failure_does_not_affect_others(
    make_lab: MakeLab,
) -> None:
    script = Script("かめ", "うさぎ")
    lab = make_lab(script.play)
    async with contextlib.aclosing(run(lab, script, ChatUser(lab))) as snapshots:
        script.say("かめ", "半分", Offline())
        script.say("うさぎ", "はい", None)
        ended = {"done", "failed"}
        cells = await until(snapshots, lambda cells: {c.state for c in cells} <= ended)
    failed, done = cells
    assert (failed.state, failed.text, failed.metadata["error_type"]) == (
        "failed",
        "半分",
        "offline",
    )
    assert failed.error == FALLBACKS("offline", "ja")
    assert (done.state, done.text) == ("done", "はい")


async def test_column_fails_alone_when_model_is_unknown(lab: Lab) -> None:
    visitor = ChatUser(lab)
    contestants = [Contestant("nobody:x", visitor.agent), Contestant("mock:echo", visitor.agent)]
    run = Comparison(lab.service, tick=0).run("やあ", contestants, visitor.user_id, language="en")
    *_, last = [cells async for cells in run]
    assert [cell.state for cell in last] == ["failed", "done"]
    assert "nobody:x" in last[0].error


async def test_run_stops_and_records_contestants_when_closed(make_lab: MakeLab) -> None:
    script = Script("かめ", "うさぎ", "とり")
    lab = make_lab(script.play)
    visitor = ChatUser(lab)
    snapshots = run(lab, script, visitor)
    for name in script.lines:
        script.say(name, "はい")
    await until(snapshots, lambda cells: all(cell.text for cell in cells))
    await snapshots.aclose()
    assert sorted(script.left) == sorted(script.lines)
    statuses = [record.status for record in lab.store.records(user_id=visitor.user_id)]
    assert statuses == ["stopped"] * 3


async def test_run_stops_contestants_when_reader_is_cancelled(make_lab: MakeLab) -> None:
    script = Script("かめ", "うさぎ")
    lab = make_lab(script.play)
    snapshots = run(lab, script, ChatUser(lab))
    for name in script.lines:
        script.say(name, "はい")
    await until(snapshots, lambda cells: all(cell.text for cell in cells))

    async def watch() -> None:
        async with contextlib.aclosing(snapshots):
            async for _ in snapshots:
                pass

    watcher = asyncio.create_task(watch())
    await asyncio.sleep(0)
    watcher.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watcher
    assert sorted(script.left) == sorted(script.lines)


async def test_column_keeps_text_when_its_task_is_cancelled(
    make_lab: MakeLab,
) -> None:
    script = Script("かめ", "うさぎ")
    lab = make_lab(script.play)
    async with contextlib.aclosing(run(lab, script, ChatUser(lab))) as snapshots:
        script.say("かめ", "半分")
        await until(snapshots, lambda cells: cells[0].text == "半分" and len(script.tasks) == 2)
        task = script.tasks["かめ"]
        assert task is not None
        task.cancel()
        cells = await until(snapshots, lambda cells: cells[0].state != "streaming")
        assert (cells[0].state, cells[0].text, cells[1].state) == ("stopped", "半分", "waiting")
        script.say("うさぎ", "はい", None)
        async with asyncio.timeout(10):
            *_, last = [cells async for cells in snapshots]
    assert [cell.state for cell in last] == ["stopped", "done"]


async def test_run_yields_heartbeat_when_idle(make_lab: MakeLab) -> None:
    script = Script("かめ")
    lab = make_lab(script.play)
    comparison = Comparison(lab.service, tick=0, heartbeat=0)
    snapshots = comparison.run("やあ", script.contestants(), ChatUser(lab).user_id)
    async with contextlib.aclosing(snapshots), asyncio.timeout(10):
        for _ in range(5):
            assert await anext(snapshots) == [Cell()]


@pytest.mark.parametrize("count", [0, MAX_COLUMNS + 1])
async def test_run_takes_one_to_eight_contestants(lab: Lab, count: int) -> None:
    visitor = ChatUser(lab)
    with pytest.raises(InputError):
        await anext(
            lab.comparison.run("やあ", [Contestant("", visitor.agent)] * count, visitor.user_id)
        )


async def test_run_refuses_invalid_message_before_any_call(lab: Lab) -> None:
    visitor = ChatUser(lab)
    with pytest.raises(EmptyMessage):
        await anext(lab.comparison.run(" ", [Contestant("", visitor.agent)], visitor.user_id))
