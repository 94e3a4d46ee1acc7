"""The engine: one worker, many sequences, prefill, and errors."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support import tiny_gguf as tiny_gguf
from support.app_process import wait_until
from support.llama import (
    FakeKVCache,
    GenerationListener,
    cached_length,
    pause_worker,
    reusable_length,
    submit,
    tokenize,
)

from persona_lab.errors import (
    BadRequest,
    ContextTooLong,
    ModelUnavailable,
    Overloaded,
)
from persona_lab.llama import (
    Engine,
    close_engines,
    open_engine,
    release_engines,
    running_engines,
)
from persona_lab.llama import engine as engine_module
from persona_lab.llama.bindings import BatchEntry
from persona_lab.llama.engine import MAX_QUEUED
from persona_lab.llama.kv_cache import (
    ALIGNMENT,
)
from persona_lab.llama.prefix_cache import BLOCK_TOKENS
from persona_lab.llama.sampling import Sampler
from persona_lab.llama.scheduler import MAX_RUNNING, PREFILL_CHUNK, SEQUENCES


def test_more_answers_than_cells_wait_and_all_are_finished(engine: Engine) -> None:
    answers = [
        submit(engine, tokenize(engine, chr(97 + n) * 60), max_tokens=100) for n in range(20)
    ]
    finished = [answer.wait() for answer in answers]
    assert {step.completion_tokens for step in finished} == {100}
    assert engine.cache.cells_used <= 512


def test_an_answer_that_was_put_back_goes_on_where_it_was(engine: Engine) -> None:
    """Both begin, and together they need more cells than there are."""
    long = [submit(engine, tokenize(engine, letter * 120), max_tokens=300) for letter in "ab"]
    for answer in long:
        assert answer.wait().completion_tokens == 300
    alone = submit(engine, tokenize(engine, "b" * 120), max_tokens=300)
    alone.wait()
    assert long[1].tokens == alone.tokens


def test_random_requests_and_cancels_leave_no_sequence_behind(engine: Engine) -> None:
    dice = random.Random(4)
    running: list[GenerationListener] = []
    over = 0
    for number in range(200):
        text = "persona " * dice.randint(0, 12) + str(number % 7)
        answer = submit(engine, tokenize(engine, text), max_tokens=dice.randint(1, 40))
        assert answer.generation is not None
        if dice.random() < 0.4:
            threading.Timer(dice.random() / 50, answer.generation.cancel).start()
        else:
            running.append(answer)
        while len(running) > 20:
            over += bool(running.pop(dice.randrange(len(running))).wait())
    for answer in running:
        answer.wait()
    submit(engine, tokenize(engine, "last"), max_tokens=1).wait()
    engine.close()
    assert engine.stats.live == engine.stats.waiting == 0
    assert not [s for s in engine.cache.sequences if s.live]


def test_books_agree_with_llama_cpp(engine: Engine) -> None:
    for n in range(40):
        submit(engine, tokenize(engine, "ab" * n + "c"), max_tokens=3).wait()
    wait_until(lambda: engine.idle)
    lengths = [len(sequence.tokens) for sequence in engine.cache.sequences]
    assert any(lengths)
    assert [engine.context.length(s.number) for s in engine.cache.sequences] == lengths


def test_cancelled_answer_says_no_more_and_frees_its_sequence(engine: Engine) -> None:
    answer = submit(engine, tokenize(engine, "Stop me"), max_tokens=400)
    answer.steps.get(timeout=60)
    assert answer.generation is not None
    answer.generation.cancel()
    after = submit(engine, tokenize(engine, "After"), max_tokens=2)
    after.wait()
    wait_until(lambda: engine.stats.live == 0)
    assert answer.generation.completion_tokens < 400


def test_queue_is_bounded(engine: Engine) -> None:
    answers: list[GenerationListener] = []
    with pytest.raises(Overloaded):
        for n in range(2 * (MAX_QUEUED + MAX_RUNNING)):
            answers.append(submit(engine, tokenize(engine, f"{n}"), max_tokens=200))
    for answer in answers:
        assert answer.generation is not None
        answer.generation.cancel()
    assert len(answers) >= MAX_QUEUED


def test_sequences_outnumber_running_answers() -> None:
    assert SEQUENCES > MAX_RUNNING


def test_queued_request_gets_its_position(engine: Engine) -> None:
    with pause_worker(engine):
        lengths = range(10, 10 + 2 * (MAX_RUNNING + 3), 2)
        answers = [submit(engine, tokenize(engine, f"{n}"), max_tokens=n) for n in lengths]
    for answer in answers:
        answer.wait()
    told: list[list[int]] = []
    for answer in answers:
        steps = [answer.steps.get() for _ in range(answer.steps.qsize())]
        assert not steps  # the last word was the end
        told.append(answer.queue_positions)
    assert told[0] == []
    assert told[-1][0] > told[-1][-1] == 1
    assert told[-1] == sorted(told[-1], reverse=True)


def test_engines_that_work_at_the_same_time_divide_the_threads(tiny: Path, tmp_path: Path) -> None:
    one = Engine(tiny, context=512, threads=4)
    other = Engine(tiny, context=512, threads=4)
    used: dict[str, list[int]] = {"one": [], "other": []}
    for name, each in (("one", one), ("other", other)):
        each.context.use_threads = used[name].append  # type: ignore[method-assign]
    with pause_worker(one, tokens=2):
        submit(other, tokenize(other, "together")).wait()
    for each in (one, other):
        wait_until(lambda: one.idle and other.idle)
        submit(each, tokenize(each, "alone")).wait()
    one.close()
    other.close()
    assert used["other"][0] == 2
    assert used["other"][-1] == 4
    assert [4, *used["one"]][-1] == 4


def test_an_engine_is_not_idle_while_news_is_on_its_way_to_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker has taken the request from the inbox, and has not queued it yet."""
    pin, taken, go = engine.cache.pin, threading.Event(), threading.Event()

    def slow_pin(tokens: list[int]) -> None:
        taken.set()
        assert go.wait(10)
        pin(tokens)

    monkeypatch.setattr(engine.cache, "pin", slow_pin)
    persona = tokenize(engine, "x" * 100)
    engine.prefill(persona)
    assert taken.wait(10)
    assert not engine.idle
    go.set()
    wait_until(lambda: engine.idle)
    assert cached_length(engine, persona) == reusable_length(persona)


def test_what_was_read_ahead_costs_a_request_nothing(engine: Engine) -> None:
    persona = tokenize(engine, "A long persona. " * 12)
    asked = [*persona, *engine.model.tokenize("Hello.")]
    cold = submit(engine, asked)
    assert cold.wait().cached_tokens == 0
    engine.cache.clear()
    engine.prefill(persona)
    wait_until(lambda: engine.idle)
    warm = submit(engine, asked)
    assert warm.wait().cached_tokens >= reusable_length(persona) - ALIGNMENT
    assert warm.tokens == cold.tokens


def test_reading_ahead_gives_way_to_a_request_within_a_step(engine: Engine) -> None:
    persona = tokenize(engine, "x" * 400)
    steps: list[int] = []
    decode = engine.context.decode

    def count(entries: Sequence[BatchEntry]) -> None:
        steps.append(sum(not entry.wants_logits for entry in entries))
        if len(steps) == 1:  # somebody asks while the first piece is being read
            answers.append(submit(engine, tokenize(engine, "Hello"), max_tokens=3))
        decode(entries)

    answers: list[GenerationListener] = []
    engine.context.decode = count  # type: ignore[method-assign]
    engine.prefill(persona)
    wait_until(lambda: answers)
    answers[0].wait()
    wait_until(lambda: engine.idle)
    assert steps[0] == PREFILL_CHUNK
    assert steps[1] < PREFILL_CHUNK  # the request's own tokens
    assert cached_length(engine, persona) == reusable_length(persona)


def test_a_request_takes_over_what_was_read_ahead_so_far(engine: Engine) -> None:
    persona = tokenize(engine, "y" * 400)
    with pause_worker(engine):
        engine.prefill(persona)
        early = submit(engine, [*persona, *engine.model.tokenize("?")], max_tokens=1)
    assert early.wait().prompt_tokens > len(persona)
    wait_until(lambda: engine.idle)
    assert cached_length(engine, persona) == reusable_length(persona)


def test_what_was_read_ahead_stays_though_much_comes_after_it(engine: Engine) -> None:
    persona = tokenize(engine, "z" * 127)
    engine.prefill(persona)
    wait_until(lambda: engine.idle)
    for letter in "abcdef":
        submit(engine, tokenize(engine, letter * 200), max_tokens=20).wait()
    assert cached_length(engine, persona) == 2 * BLOCK_TOKENS
    chat = submit(engine, [*persona, *engine.model.tokenize("Hello there, you!")], max_tokens=60)
    assert chat.wait().cached_tokens == 2 * BLOCK_TOKENS
    for letter in "abcdef":  # what hung on it goes, and it stays
        submit(engine, tokenize(engine, letter * 200), max_tokens=20).wait()
    assert cached_length(engine, persona) == 2 * BLOCK_TOKENS


def test_a_pin_gives_way_to_a_request_that_needs_its_cells(engine: Engine) -> None:
    engine.prefill(tokenize(engine, "z" * 200))
    wait_until(lambda: engine.idle)
    assert submit(engine, tokenize(engine, "a" * 480), max_tokens=10).wait().completion_tokens == 10


def test_pins_take_half_of_the_cells_and_the_oldest_give_way() -> None:
    memory = FakeKVCache(3)
    for number in range(4):
        memory.pin([number] * BLOCK_TOKENS + [0] * 36)
        memory.serve([number] * BLOCK_TOKENS)
    for number in (8, 9):
        memory.serve([number] * BLOCK_TOKENS)
    memory.save_idle()
    assert [n for n in range(10) if memory.prefix_cache.find([n] * BLOCK_TOKENS)[1]] == [2, 3, 9]


def test_request_fails_once_when_the_cache_raises(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    def broken(tokens: list[int]) -> None:
        nonlocal tries
        tries += 1
        raise IndexError

    with monkeypatch.context() as patch:
        patch.setattr(engine.cache, "acquire", broken)
        with pytest.raises(IndexError):
            submit(engine, tokenize(engine, "Hello")).wait()
    assert submit(engine, tokenize(engine, "Hello")).wait().finish
    assert tries == 1


def test_too_long_a_beginning_to_read_ahead_is_refused(engine: Engine) -> None:
    with pytest.raises(ContextTooLong):
        engine.prefill([5] * engine.context_limit)


def test_too_long_a_prompt_is_refused_with_numbers(engine: Engine) -> None:
    with pytest.raises(ContextTooLong) as refused:
        submit(engine, [5] * 600)
    assert refused.value.details["tokens"] == 600
    assert refused.value.details["limit"] == 511


def test_empty_prompt_is_refused(engine: Engine) -> None:
    with pytest.raises(BadRequest):
        submit(engine, [])


def test_every_text_becomes_tokens_and_back(engine: Engine) -> None:
    text = "spaces  take three bytes each here, 漢字 too 🍵"
    tokens = engine.model.tokenize(text)
    said = b"".join(engine.model.token_bytes(token) for token in tokens).decode()
    assert said.replace("\u2581", " ") == text


def test_an_answer_ends_where_the_context_does(engine: Engine) -> None:
    answer = submit(engine, [5] * 500, max_tokens=400)
    last = answer.wait()
    assert (last.finish, last.completion_tokens) == ("length", 12)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="no such file"):
        Engine(tmp_path / "none.gguf", context=512, threads=1)


@pytest.mark.parametrize("keep", [10, 5000, -4096])
def test_engine_reports_a_damaged_file_not_a_lack_of_memory(
    tiny: Path, tmp_path: Path, keep: int
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny.read_bytes()[:keep])
    with pytest.raises(ModelUnavailable) as refused:
        Engine(broken, context=512, threads=1)
    assert "damaged" in refused.value.details["reason"]


def test_worker_survives_a_failed_step(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = engine.context.decode

    def fail_once(entries: object) -> None:
        monkeypatch.setattr(engine.context, "decode", decode)
        raise MemoryError

    monkeypatch.setattr(engine.context, "decode", fail_once)
    with pytest.raises(MemoryError):
        submit(engine, tokenize(engine, "First")).wait()
    assert submit(engine, tokenize(engine, "Second")).wait().finish == "length"


def test_listener_whose_loop_is_closed_cancels_its_answer(engine: Engine) -> None:
    def gone(_: object) -> None:
        raise RuntimeError("Event loop is closed")

    generation = engine.submit(tokenize(engine, "Anyone?"), gone, max_tokens=300)
    submit(engine, tokenize(engine, "Next")).wait()
    assert generation.cancelled
    assert generation.completion_tokens < 300


def test_closing_ends_what_is_being_written(tiny: Path) -> None:
    engine = Engine(tiny, context=512, threads=1)
    answer = submit(engine, tokenize(engine, "Long"), max_tokens=500)
    engine.close()
    with pytest.raises(ModelUnavailable):
        answer.wait()
    with pytest.raises(ModelUnavailable):
        submit(engine, [1])


def test_request_is_refused_when_submitted_during_close(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(tiny, context=512, threads=1)
    tokens = tokenize(engine, "Race")
    closing = threading.Thread(target=engine.close)

    class Slow(Sampler):
        """Made after the look at whether the engine is closed, and while it is being closed."""

        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            closing.start()
            time.sleep(0.05)

    monkeypatch.setattr(engine_module, "Sampler", Slow)
    with pytest.raises(ModelUnavailable):
        submit(engine, tokens)
    closing.join()


def test_closed_model_raises_an_error_instead_of_crashing(tiny: Path) -> None:
    engine = Engine(tiny, context=512, threads=1)
    engine.close()
    engine.close()
    for use in (
        lambda: engine.model.tokenize("Anyone?"),
        lambda: engine.model.token_bytes(5),
        lambda: engine.model.is_end(5),
        lambda: engine.model.is_control(5),
        lambda: engine.model.bos,
        lambda: engine.model.eos,
        lambda: engine.model.metadata("general.name"),
    ):
        with pytest.raises(ModelUnavailable, match="closed"):
            use()


def test_a_file_has_one_engine_until_its_last_owner_leaves(tiny: Path) -> None:
    try:
        one = open_engine(tiny, context=512, threads=1, owner="A")
        other = open_engine(tiny.parent / "." / tiny.name, context=512, threads=1, owner="B")
        assert one is other
        assert [running.name for running in running_engines()].count(one.name) == 1
        release_engines("A")
        assert submit(one, tokenize(one, "Still?")).wait()
        release_engines("B")
        with pytest.raises(ModelUnavailable, match="closed"):
            one.model.tokenize("Still?")
        new = open_engine(tiny, context=512, threads=1, owner="A")
        assert submit(new, tokenize(new, "Again")).wait()
    finally:
        close_engines()
