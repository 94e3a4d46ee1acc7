"""The cells of a context, and the prefixes that requests share."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import tiny_gguf as tiny_gguf
from support.app_process import wait_until
from support.llama import (
    PAGE_BYTES,
    FakeKVCache,
    cached_length,
    pause_worker,
    reusable_length,
    submit,
    tokenize,
)

from persona_lab.llama import (
    Engine,
)
from persona_lab.llama.kv_cache import (
    ALIGNMENT,
    BATCH_TOKENS,
    next_chunk_size,
)
from persona_lab.llama.prefix_cache import BLOCK_TOKENS, PrefixCache
from persona_lab.llama.scheduler import PREFILL_CHUNK


@pytest.fixture
def roomy(tiny: Path) -> Iterator[Engine]:
    """Cells for many long prompts at a time."""
    engine = Engine(tiny, context=4096, threads=1)
    yield engine
    engine.close()


def test_concurrent_requests_prefill_a_shared_prefix_once(
    roomy: Engine,
) -> None:
    persona = "x" * 300
    with pause_worker(roomy):
        answers = [submit(roomy, tokenize(roomy, f"{persona}{n}"), max_tokens=4) for n in range(8)]
    cached = sorted(answer.wait().cached_tokens for answer in answers)
    assert cached[0] == 0
    assert cached[1] >= 300 - 2 * ALIGNMENT


def test_long_prompt_is_prefilled_in_chunks_beside_an_answer(
    roomy: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = roomy.context.decode
    steps: list[int] = []

    def count(entries: list[object]) -> None:
        steps.append(len(entries))
        decode(entries)  # type: ignore[arg-type]

    with pause_worker(roomy, tokens=60):
        monkeypatch.setattr(roomy.context, "decode", count)
        reader = submit(roomy, tokenize(roomy, "y" * 400), max_tokens=1)
    reader.wait()
    assert steps[:6] == [1 + PREFILL_CHUNK] * 6  # the writer's token, and a piece of the prompt


def test_next_turn_reads_only_what_was_written_and_said_since(engine: Engine) -> None:
    first = tokenize(engine, "Persona. Hello.")
    answer = submit(engine, first)
    answer.wait()
    turn = first + answer.tokens + engine.model.tokenize("And now?")
    assert submit(engine, turn).wait().cached_tokens == reusable_length(first)


def test_an_engine_tells_what_was_read_reused_and_written(engine: Engine) -> None:
    assert (engine.stats.reuse_ratio, engine.stats.tokens_per_second) == (0, 0)
    first = tokenize(engine, "Persona. Hello.")
    one = submit(engine, first)
    one.wait()
    turn = first + one.tokens + engine.model.tokenize("And now?")
    two = submit(engine, turn)
    reused = two.wait().cached_tokens
    wait_until(lambda: engine.idle)
    told = engine.stats
    assert told.prompt_tokens == len(first) + len(turn)
    assert told.reused_tokens == reused
    assert told.written_tokens == len(one.tokens) + len(two.tokens)
    assert told.paced_tokens == told.written_tokens - 2  # the first of each came with its prompt
    assert told.tokens_per_second == told.paced_tokens / told.seconds > 0
    assert (told.cells, told.cells_used) == (512, engine.cache.cells_used)
    assert (told.live, told.waiting) == (0, 0)


def test_figures_are_had_while_the_worker_is_busy(engine: Engine) -> None:
    with pause_worker(engine, tokens=8):
        submit(engine, tokenize(engine, "Somebody who comes meanwhile"))
        assert (engine.stats.live, engine.stats.waiting) == (1, 1)


def test_memory_keeps_what_was_used_last(engine: Engine) -> None:
    prompts = [tokenize(engine, letter * 200) for letter in "abcde"]
    for tokens in prompts:
        submit(engine, tokens, max_tokens=1).wait()
    wait_until(lambda: engine.idle)
    assert cached_length(engine, prompts[-1]) == reusable_length(prompts[-1])
    assert cached_length(engine, prompts[-2]) == 3 * BLOCK_TOKENS
    assert cached_length(engine, prompts[0]) == 0


def test_shared_cells_are_counted_once_and_freed_by_their_last_holder() -> None:
    memory = FakeKVCache()
    one = memory.acquire([1] * 32)
    memory.append_read(one, [1] * 32)
    two = memory.acquire([1] * 24 + [2] * 9)
    assert len(two.tokens) == 24
    memory.append_read(two, [2])
    assert memory.cells_used == 33
    memory.release(one)
    assert memory.cells_used == 25
    memory.release(two)
    assert memory.cells_used == 0


def test_what_is_live_is_never_let_go() -> None:
    memory = FakeKVCache()
    live = memory.acquire([1] * 240)
    memory.append_read(live, [1] * 240)
    held = memory.acquire([2] * 128)
    memory.append_read(held, [2] * 128)
    memory.retain(held)
    assert not memory.ensure_free(161)
    assert memory.cells_used == 368
    assert memory.ensure_free(160)
    assert (memory.cells_used, len(live.tokens)) == (240, 240)


def test_idle_sequence_is_offloaded_and_restored() -> None:
    memory = FakeKVCache(8)
    memory.serve([1] * 180)
    memory.serve([2] * 100)
    assert memory.cells_used == 100
    assert memory.find_prefix([1] * 190)[1] == 180
    sequence = memory.acquire([1] * 190)
    assert (memory.cells_used, sequence.tokens) == (180, [1] * 180)


def test_full_prefix_cache_still_finds_correct_prefixes() -> None:
    dice = random.Random(2)
    memory = FakeKVCache(7)
    personas = [[n] * 150 for n in range(1, 6)]
    known = 0
    for turn in range(300):
        tokens = personas[dice.randrange(5)] + [100 + turn % 7] * dice.randrange(1, 60)
        known += memory.serve(tokens)
        assert len(memory.prefix_cache) <= 7
    assert known > 300 * 40


def test_prefix_cache_stores_a_shared_prefix_once() -> None:
    memory = FakeKVCache(20)
    for said in range(1, 6):
        memory.serve([9] * 4 * BLOCK_TOKENS + [said] * 40)
    memory.save_idle()
    assert len(memory.prefix_cache) == 4 + 5


def test_lone_request_reuses_only_bit_exact_tokens() -> None:
    memory = FakeKVCache(20)
    memory.serve([1] * BLOCK_TOKENS)
    other = memory.acquire([3] * 40)
    memory.append_read(other, [3] * 40)
    beside = memory.acquire([1] * 120)
    memory.append_read(
        beside, [1] * 56, bit_exact=True
    )  # in a batch of its own, among the other's cells
    assert memory.find_prefix([1] * 130)[1] == 120
    memory.retain(beside)
    memory.retain(other)
    assert memory.find_prefix([1] * 130)[1] == BLOCK_TOKENS
    taken = memory.acquire([1] * 130)
    assert (taken.tokens, taken.bit_exact) == ([1] * BLOCK_TOKENS, BLOCK_TOKENS)


def test_what_comes_back_beside_others_is_not_exact() -> None:
    memory = FakeKVCache(20)
    memory.serve([1] * 128)
    other = memory.acquire([3] * 40)
    memory.append_read(other, [3] * 40)
    back = memory.acquire([1] * 140)
    assert (len(back.tokens), back.bit_exact) == (128, 0)


def test_pages_that_others_replace_are_not_loaded_in_their_place() -> None:
    memory = FakeKVCache(20)
    persona, chat = [1] * 2 * BLOCK_TOKENS, [2] * 100
    memory.serve([9] * BLOCK_TOKENS)  # how large a page is
    other = memory.acquire([8] * 8)
    memory.append_read(other, [8] * 8)
    beside = memory.acquire(persona + chat)
    memory.append_read(beside, persona + chat)
    memory.retain(beside)
    memory.retain(other)
    memory.acquire([7] * 8).live = False  # all is put away
    alone = memory.acquire(persona + [3] * 80)
    assert alone.tokens == []
    memory.append_read(alone, persona + [3] * 80, bit_exact=True)
    joins = memory.acquire([6] * 8)
    memory.append_read(joins, [6] * 8)
    memory.retain(alone)
    back = memory.acquire(persona + chat + [4] * 20)
    assert memory.memory.read[back.number] == back.tokens
    assert len(back.tokens) >= len(persona)


def test_too_long_pin_is_cut_and_others_stay() -> None:
    memory = FakeKVCache(3)
    memory.pin([1] * BLOCK_TOKENS)
    memory.pin([2] * 300)
    assert [len(pin) for pin in memory.pins] == [BLOCK_TOKENS, 100]


@pytest.mark.parametrize("length", [516, 511, 510, 520, 504, 512, 7, 8, 13])
def test_reading_ahead_comes_to_an_end_at_any_length(roomy: Engine, length: int) -> None:
    tokens = tokenize(roomy, "q" * length)[:length]
    roomy.prefill(tokens)
    wait_until(lambda: roomy.idle)
    assert cached_length(roomy, tokens) == reusable_length(tokens)
    assert reusable_length(tokens) >= length - 12


def test_a_memory_that_cannot_be_cut_forgets_the_whole() -> None:
    memory = FakeKVCache()
    memory.serve([1] * 40)
    memory.memory.truncate = lambda sequence, length=0: not length  # type: ignore[method-assign]
    assert memory.acquire([1] * 20 + [2] * 20).tokens == []
    assert memory.cells_used == 0


@pytest.mark.parametrize(
    ("begun", "end", "most", "size"),
    [
        (0, 940, 512, 512),
        (512, 940, 512, 428),
        (504, 940, 512, 8),
        (0, 513, 512, 512),
        (512, 513, 512, 1),
        (0, 70, 64, 56),  # six would be left
        (0, 72, 64, 64),
        (0, 100, 61, 60),
        (0, 100, 3, 0),
    ],
)
def test_pieces_are_whole_grains(begun: int, end: int, most: int, size: int) -> None:
    assert next_chunk_size(begun, end, most) == size


@pytest.mark.parametrize(
    ("length", "known"),
    [
        (BATCH_TOKENS + 100, BATCH_TOKENS + 92),
        (BATCH_TOKENS + 1, BATCH_TOKENS),
        (BATCH_TOKENS + 12, BATCH_TOKENS + 4),
        (BATCH_TOKENS, BATCH_TOKENS - 8),
        (5, 0),
    ],
)
def test_remaining_chunk_is_never_below_the_minimum(length: int, known: int) -> None:
    memory = FakeKVCache(20)
    memory.serve([1] * 1000)
    assert memory.find_prefix([1] * length)[1] == known


def test_prefix_cache_evicts_least_recently_used_and_pins_last() -> None:
    shelf = PrefixCache(4 * PAGE_BYTES)

    def put(number: int, length: int = BLOCK_TOKENS) -> None:
        tokens = [number] * length

        def save(begin: int, end: int, into: memoryview) -> int:
            into[: end - begin] = bytes(tokens[begin:end])
            return end - begin

        shelf.insert(tokens, 0, save, now=next(clock), pinned=[[1] * BLOCK_TOKENS])

    clock = iter(range(100))
    put(8, BLOCK_TOKENS - 1)  # how large a page is isn't known yet
    assert len(shelf) == 0
    for number in (1, 2, 3, 4, 5):
        put(number)
    assert {n for n in range(9) if shelf.find([n] * BLOCK_TOKENS)[1]} == {1, 3, 4, 5}
    for number in (3, 6):
        put(number)
    assert {n for n in range(9) if shelf.find([n] * BLOCK_TOKENS)[1]} == {1, 3, 5, 6}
    put(7, 9 * BLOCK_TOKENS)  # more than there is: its beginning stays
    pages, known = shelf.find([7] * 9 * BLOCK_TOKENS)
    assert known == 4 * BLOCK_TOKENS
    assert all(bytes(shelf.data_of(page)) == bytes([7] * BLOCK_TOKENS) for page in pages)


def test_a_recurrent_state_is_taken_over_whole_or_not_at_all() -> None:
    memory = FakeKVCache(divisible=False)
    memory.serve([1] * 40)
    memory.serve([2] * 40)
    assert memory.find_prefix([1] * 39 + [2])[1] == 0
    assert memory.find_prefix([1] * 41)[1] == 40
    assert memory.acquire([1] * 41).tokens == [1] * 40
    for number in range(3, 30):  # the one used longest ago makes place
        memory.serve([number] * 8)
