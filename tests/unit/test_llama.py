"""The engine: one worker, many sequences."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support import tiny_gguf as tiny_gguf
from support.app_process import missing, until

from persona_lab.clients.catalog import Catalog
from persona_lab.clients.weights import find_weights
from persona_lab.errors import (
    BadRequest,
    ContextTooLong,
    ModelUnavailable,
    Overloaded,
)
from persona_lab.llama import (
    Engine,
    Generation,
    Model,
    SamplerOptions,
    Step,
    close_engines,
    open_engine,
    release_engines,
    running_engines,
)
from persona_lab.llama import engine as engine_module
from persona_lab.llama import registry as engines
from persona_lab.llama.bindings import BatchEntry
from persona_lab.llama.engine import MAX_QUEUED
from persona_lab.llama.kv_cache import (
    ALIGNMENT,
    BATCH_TOKENS,
    MIN_CHUNK,
    KVCache,
    next_chunk_size,
    prefillable_length,
)
from persona_lab.llama.prefix_cache import BLOCK_TOKENS, PrefixCache
from persona_lab.llama.sampling import Sampler, grammar_from_schema
from persona_lab.llama.scheduler import MAX_RUNNING, PREFILL_CHUNK, SEQUENCES
from persona_lab.llama.stream_decoder import StreamDecoder
from persona_lab.settings import ROOT, Settings

GREEDY = SamplerOptions(temperature=0)


class Answer:
    """Listens to a generation until it is over."""

    def __init__(self) -> None:
        self.news: queue.SimpleQueue[Step | Exception] = queue.SimpleQueue()
        self.pieces: list[str] = []
        self.ahead: list[int] = []
        self.generation: Generation | None = None

    def wait(self) -> Step:
        while True:
            news = self.news.get(timeout=60)
            if isinstance(news, Exception):
                raise news
            self.pieces.append(news.text)
            if news.queue_position is not None:
                self.ahead.append(news.queue_position)
            if news.finish:
                return news

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def tokens(self) -> list[int]:
        assert self.generation is not None
        return self.generation.tokens[self.generation.prompt_tokens :]


def ask(engine: Engine, prompt: list[int], **options: object) -> Answer:
    answer = Answer()
    options = {"options": GREEDY, "max_tokens": 24} | options
    answer.generation = engine.submit(prompt, answer.news.put, **options)  # type: ignore[arg-type]
    return answer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("weights") / "tiny.gguf")


@pytest.fixture
def engine(tiny: Path) -> Iterator[Engine]:
    engine = Engine(tiny, context=512, threads=1)
    yield engine
    engine.close()


@pytest.fixture
def roomy(tiny: Path) -> Iterator[Engine]:
    """Cells for many long prompts at a time."""
    engine = Engine(tiny, context=4096, threads=1)
    yield engine
    engine.close()


@contextlib.contextmanager
def held_up(engine: Engine, tokens: int = 1) -> Iterator[None]:
    """The worker waits inside while it writes an answer of ``tokens``, and then goes on with it.

    What is asked for meanwhile arrives together.
    """
    there, go = threading.Event(), threading.Event()

    def wait(_: object) -> None:
        there.set()
        assert go.wait(60)

    engine.submit(engine.model.tokenize("wait"), wait, max_tokens=tokens, options=GREEDY)
    assert there.wait(60)
    try:
        yield
    finally:
        go.set()


def prompt(engine: Engine, text: str) -> list[int]:
    return engine.model.tokenize(text, bos=True)


def whole(tokens: Sequence[int]) -> int:
    """How many of ``tokens`` can be taken over by what begins with them."""
    return prefillable_length(len(tokens))


def known(engine: Engine, tokens: Sequence[int]) -> int:
    """How many of ``tokens`` a request that begins with them needn't read."""
    return engine.cache.find_prefix([*tokens, *[-1] * MIN_CHUNK])[1]


# ── the answer is the model's ─────────────────────────────────────────────────────────────


def greedy_by_llama(path: Path, tokens: list[int], count: int, *, flash: bool = False) -> list[int]:
    from llama_cpp import Llama

    model = Llama(
        str(path), n_ctx=512, n_threads=1, n_threads_batch=1, flash_attn=flash, verbose=False
    )
    answer: list[int] = []
    for token in model.generate(tokens, temp=0):
        if token == model.token_eos() or len(answer) == count:
            break
        answer.append(token)
    model.close()
    return answer


def test_greedy_answer_is_the_llama_classes_token_for_token(engine: Engine, tiny: Path) -> None:
    tokens = prompt(engine, "みさき：こんにちは。\nYou: Hello there!")
    answer = ask(engine, tokens, max_tokens=60)
    answer.wait()
    assert len(answer.tokens) == 60
    assert answer.tokens == greedy_by_llama(tiny, tokens, 60)


PACKAGED = ("gemma-3-270m", "smollm2-135m-instruct")


def packaged(name: str) -> Path:
    info = Catalog(ROOT / "data" / "models.yaml").find(f"local:{name}")
    if importlib.util.find_spec(info.source.removeprefix("package:")) is None:
        missing(info.source)
    return find_weights(info, Settings())


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("name", PACKAGED)
def test_greedy_answer_of_a_packaged_model_is_the_llama_classes(name: str, flash: bool) -> None:
    path = packaged(name)
    engine = Engine(path, context=512, threads=1, flash=flash)
    for said in ("Tell me about the sea.", "海について教えてください。"):
        tokens = prompt(engine, f"User: {said}\nAI:")
        engine.cache.clear()  # alone: nothing was read before
        answer = ask(engine, tokens, max_tokens=40)
        answer.wait()
        until(lambda: engine.idle)
        assert len(answer.tokens) > 10
        assert answer.tokens == greedy_by_llama(path, tokens, 40, flash=flash)
    engine.close()


def test_reuse_of_a_beginning_never_changes_the_answer(engine: Engine, tiny: Path) -> None:
    persona = "A persona that is long enough to be worth sharing with others. "
    texts = [persona + end for end in ("One", "Two?", "One more", "", "Three…")]
    for text in texts * 2:
        tokens = prompt(engine, text)
        answer = ask(engine, tokens)
        last = answer.wait()
        assert answer.tokens == greedy_by_llama(tiny, tokens, 24)
    assert last.cached_tokens >= whole(prompt(engine, persona)) - ALIGNMENT


@pytest.mark.parametrize("name", PACKAGED)
@pytest.mark.slow
def test_reuse_never_changes_an_answer_of_a_quantized_model(name: str) -> None:
    """Personas in turn, their chats, and what was read ahead, whole or broken off."""
    dice = random.Random(name)
    engine = Engine(packaged(name), context=2048, threads=2)
    facts = (
        "She runs a small café by the sea. 海辺の小さなカフェの店主です。よく笑い、よく話します。"
    )
    length = {"Misaki": 4, "レン": 30, "Grace": 4}  # one is longer than a window and a batch
    personas = [prompt(engine, f"{who}. " + facts * length[who])[:700] for who in length]
    chats, asked = list(personas), []
    for turn in range(12):
        who = dice.randrange(3)
        said = dice.choice(
            ["Hello!", "自己紹介をしてください。", "What did you do today? Tell me."]
        )
        tokens = [*dice.choice([chats, personas])[who], *engine.model.tokenize(f"\nA: {said}\nB:")]
        if turn % 3 == 1:
            engine.prefill(tokens[: dice.randrange(20, len(tokens))])
            if dice.random() < 0.5:
                until(lambda: engine.idle)
        answer = ask(engine, tokens, max_tokens=16)
        asked.append((tokens, answer, answer.wait().cached_tokens))
        chats[who] = tokens + answer.tokens
    assert sum(cached for *_, cached in asked) > sum(len(tokens) for tokens, *_ in asked) / 2
    for tokens, answer, _ in asked:
        until(lambda: engine.idle)
        engine.cache.clear()
        again = ask(engine, tokens, max_tokens=16)
        assert again.wait().cached_tokens == 0
        assert again.tokens == answer.tokens
    engine.close()


def test_same_seed_same_answer_and_another_seed_another(engine: Engine) -> None:
    tokens = prompt(engine, "Dice")
    said = []
    for seed in (7, 7, 8):
        answer = ask(engine, tokens, options=SamplerOptions(temperature=1.5, min_p=0, seed=seed))
        answer.wait()
        said.append(answer.tokens)
    assert said[0] == said[1] != said[2]


def test_repetition_penalty_makes_an_answer_repeat_less(engine: Engine) -> None:
    tokens = prompt(engine, "Again")
    kinds = []
    for penalty in (1.0, 3.0):
        answer = ask(
            engine, tokens, max_tokens=60, options=SamplerOptions(0, repeat_penalty=penalty)
        )
        answer.wait()
        kinds.append(len(set(answer.tokens)))
    assert kinds[1] > kinds[0]


# ── sharing ───────────────────────────────────────────────────────────────────────────────


def test_requests_that_begin_alike_and_arrive_together_read_the_beginning_once(
    roomy: Engine,
) -> None:
    persona = "x" * 300
    with held_up(roomy):
        answers = [ask(roomy, prompt(roomy, f"{persona}{n}"), max_tokens=4) for n in range(8)]
    cached = sorted(answer.wait().cached_tokens for answer in answers)
    assert cached[0] == 0
    assert cached[1] >= 300 - 2 * ALIGNMENT


def test_a_long_prompt_is_read_in_pieces_beside_who_is_writing(
    roomy: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = roomy.context.decode
    steps: list[int] = []

    def count(entries: list[object]) -> None:
        steps.append(len(entries))
        decode(entries)  # type: ignore[arg-type]

    with held_up(roomy, tokens=60):
        monkeypatch.setattr(roomy.context, "decode", count)
        reader = ask(roomy, prompt(roomy, "y" * 400), max_tokens=1)
    reader.wait()
    assert steps[:6] == [1 + PREFILL_CHUNK] * 6  # the writer's token, and a piece of the prompt


def test_next_turn_reads_only_what_was_written_and_said_since(engine: Engine) -> None:
    first = prompt(engine, "Persona. Hello.")
    answer = ask(engine, first)
    answer.wait()
    turn = first + answer.tokens + engine.model.tokenize("And now?")
    assert ask(engine, turn).wait().cached_tokens == whole(first)


def test_an_engine_tells_what_was_read_reused_and_written(engine: Engine) -> None:
    assert (engine.stats.reuse_ratio, engine.stats.tokens_per_second) == (0, 0)
    first = prompt(engine, "Persona. Hello.")
    one = ask(engine, first)
    one.wait()
    turn = first + one.tokens + engine.model.tokenize("And now?")
    two = ask(engine, turn)
    reused = two.wait().cached_tokens
    until(lambda: engine.idle)
    told = engine.stats
    assert told.prompt_tokens == len(first) + len(turn)
    assert told.reused_tokens == reused
    assert told.written_tokens == len(one.tokens) + len(two.tokens)
    assert told.paced_tokens == told.written_tokens - 2  # the first of each came with its prompt
    assert told.tokens_per_second == told.paced_tokens / told.seconds > 0
    assert (told.cells, told.cells_used) == (512, engine.cache.cells_used)
    assert (told.live, told.waiting) == (0, 0)


def test_figures_are_had_while_the_worker_is_busy(engine: Engine) -> None:
    with held_up(engine, tokens=8):
        ask(engine, prompt(engine, "Somebody who comes meanwhile"))
        assert (engine.stats.live, engine.stats.waiting) == (1, 1)


def test_memory_keeps_what_was_used_last(engine: Engine) -> None:
    prompts = [prompt(engine, letter * 200) for letter in "abcde"]
    for tokens in prompts:
        ask(engine, tokens, max_tokens=1).wait()
    until(lambda: engine.idle)
    assert known(engine, prompts[-1]) == whole(prompts[-1])
    assert known(engine, prompts[-2]) == 3 * BLOCK_TOKENS
    assert known(engine, prompts[0]) == 0


class Paper:
    """Cells that only exist on paper: what each sequence has read, an entry for each token."""

    cells = 400

    def __init__(self) -> None:
        self.read: dict[int, list[int]] = {}

    def copy(self, source: int, target: int, length: int) -> None:
        self.read[target] = self.read[source][:length]

    def truncate(self, sequence: int, length: int = 0) -> bool:
        self.read[sequence] = self.read.get(sequence, [])[:length]
        return True

    def clear(self) -> None:
        self.read.clear()

    def rewind(self) -> None:
        assert not any(self.read.values())

    def intact(self, sequence: int, length: int) -> bool:
        return True

    def save(self, sequence: int, begin: int, end: int, into: memoryview) -> int:
        data = bytes(self.read[sequence][begin:end])
        if len(data) > len(into):
            return 0
        into[: len(data)] = data
        return len(data)

    def load(self, sequence: int, begin: int, end: int, data: memoryview) -> bool:
        assert len(self.read.setdefault(sequence, [])) == begin
        self.read[sequence] += list(data)
        return True


PAGES = 1024 + BLOCK_TOKENS
"""Bytes that a page takes, where a token's are one."""


class Books(KVCache):
    """The books of cells on paper, and a shelf of so many pages."""

    def __init__(self, pages: int = 0, *, divisible: bool = True) -> None:
        self.paper = Paper()
        super().__init__(self.paper, 6, prefix_cache_bytes=pages * PAGES, partial_reuse=divisible)

    def reads(self, sequence: Any, tokens: list[int], **how: bool) -> None:
        self.paper.read.setdefault(sequence.number, []).extend(tokens)
        self.append(sequence, tokens, **how)

    def serve(self, tokens: list[int]) -> int:
        """Somebody comes with ``tokens``, reads what isn't known, and goes; how many were known."""
        sequence = self.acquire(tokens)
        known = len(sequence.tokens)
        self.reads(sequence, tokens[known:], bit_exact=True)
        assert self.paper.read[sequence.number] == sequence.tokens == tokens
        self.retain(sequence)
        return known


def test_shared_cells_are_counted_once_and_freed_by_their_last_holder() -> None:
    memory = Books()
    one = memory.acquire([1] * 32)
    memory.reads(one, [1] * 32)
    two = memory.acquire([1] * 24 + [2] * 9)
    assert len(two.tokens) == 24
    memory.reads(two, [2])
    assert memory.cells_used == 33
    memory.release(one)
    assert memory.cells_used == 25
    memory.release(two)
    assert memory.cells_used == 0


def test_what_is_live_is_never_let_go() -> None:
    memory = Books()
    live = memory.acquire([1] * 240)
    memory.reads(live, [1] * 240)
    held = memory.acquire([2] * 128)
    memory.reads(held, [2] * 128)
    memory.retain(held)
    assert not memory.ensure_free(161)
    assert memory.cells_used == 368
    assert memory.ensure_free(160)
    assert (memory.cells_used, len(live.tokens)) == (240, 240)


def test_what_nobody_uses_leaves_the_context_and_comes_back() -> None:
    memory = Books(8)
    memory.serve([1] * 180)
    memory.serve([2] * 100)
    assert memory.cells_used == 100
    assert memory.find_prefix([1] * 190)[1] == 180
    sequence = memory.acquire([1] * 190)
    assert (memory.cells_used, sequence.tokens) == (180, [1] * 180)


def test_whoever_comes_finds_their_own_though_the_shelf_is_full() -> None:
    dice = random.Random(2)
    memory = Books(7)
    personas = [[n] * 150 for n in range(1, 6)]
    known = 0
    for turn in range(300):
        tokens = personas[dice.randrange(5)] + [100 + turn % 7] * dice.randrange(1, 60)
        known += memory.serve(tokens)
        assert len(memory.prefix_cache) <= 7
    assert known > 300 * 40


def test_what_begins_alike_stands_on_the_shelf_once() -> None:
    memory = Books(20)
    for said in range(1, 6):
        memory.serve([9] * 4 * BLOCK_TOKENS + [said] * 40)
    memory.save_idle()
    assert len(memory.prefix_cache) == 4 + 5


def test_who_comes_alone_takes_over_only_what_was_read_alone() -> None:
    memory = Books(20)
    memory.serve([1] * BLOCK_TOKENS)
    other = memory.acquire([3] * 40)
    memory.reads(other, [3] * 40)
    beside = memory.acquire([1] * 120)
    memory.reads(beside, [1] * 56, bit_exact=True)  # in a batch of its own, among the other's cells
    assert memory.find_prefix([1] * 130)[1] == 120
    memory.retain(beside)
    memory.retain(other)
    assert memory.find_prefix([1] * 130)[1] == BLOCK_TOKENS
    taken = memory.acquire([1] * 130)
    assert (taken.tokens, taken.bit_exact) == ([1] * BLOCK_TOKENS, BLOCK_TOKENS)


def test_what_comes_back_beside_others_is_not_exact() -> None:
    memory = Books(20)
    memory.serve([1] * 128)
    other = memory.acquire([3] * 40)
    memory.reads(other, [3] * 40)
    back = memory.acquire([1] * 140)
    assert (len(back.tokens), back.bit_exact) == (128, 0)


def test_pages_that_others_replace_are_not_loaded_in_their_place() -> None:
    memory = Books(20)
    persona, chat = [1] * 2 * BLOCK_TOKENS, [2] * 100
    memory.serve([9] * BLOCK_TOKENS)  # how large a page is
    other = memory.acquire([8] * 8)
    memory.reads(other, [8] * 8)
    beside = memory.acquire(persona + chat)
    memory.reads(beside, persona + chat)
    memory.retain(beside)
    memory.retain(other)
    memory.acquire([7] * 8).live = False  # all is put away
    alone = memory.acquire(persona + [3] * 80)
    assert alone.tokens == []
    memory.reads(alone, persona + [3] * 80, bit_exact=True)
    joins = memory.acquire([6] * 8)
    memory.reads(joins, [6] * 8)
    memory.retain(alone)
    back = memory.acquire(persona + chat + [4] * 20)
    assert memory.paper.read[back.number] == back.tokens
    assert len(back.tokens) >= len(persona)


def test_the_pins_of_others_survive_one_that_is_longer_than_all_may_be() -> None:
    memory = Books(3)
    memory.pin([1] * BLOCK_TOKENS)
    memory.pin([2] * 300)
    assert [len(pin) for pin in memory.pins] == [BLOCK_TOKENS, 100]


@pytest.mark.parametrize("length", [516, 511, 510, 520, 504, 512, 7, 8, 13])
def test_reading_ahead_comes_to_an_end_at_any_length(roomy: Engine, length: int) -> None:
    tokens = prompt(roomy, "q" * length)[:length]
    roomy.prefill(tokens)
    until(lambda: roomy.idle)
    assert known(roomy, tokens) == whole(tokens)
    assert whole(tokens) >= length - 12


def test_a_memory_that_cannot_be_cut_forgets_the_whole() -> None:
    memory = Books()
    memory.serve([1] * 40)
    memory.paper.truncate = lambda sequence, length=0: not length  # type: ignore[method-assign]
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
def test_what_is_left_to_read_is_no_shorter_than_llama_cpps_own_piece(
    length: int, known: int
) -> None:
    memory = Books(20)
    memory.serve([1] * 1000)
    assert memory.find_prefix([1] * length)[1] == known


def test_the_shelf_lets_go_of_what_was_used_longest_ago_and_of_pins_last() -> None:
    shelf = PrefixCache(4 * PAGES)

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
    memory = Books(divisible=False)
    memory.serve([1] * 40)
    memory.serve([2] * 40)
    assert memory.find_prefix([1] * 39 + [2])[1] == 0
    assert memory.find_prefix([1] * 41)[1] == 40
    assert memory.acquire([1] * 41).tokens == [1] * 40
    for number in range(3, 30):  # the one used longest ago makes place
        memory.serve([number] * 8)


# ── many at a time ────────────────────────────────────────────────────────────────────────


def test_more_answers_than_cells_wait_and_all_are_finished(engine: Engine) -> None:
    answers = [ask(engine, prompt(engine, chr(97 + n) * 60), max_tokens=100) for n in range(20)]
    finished = [answer.wait() for answer in answers]
    assert {step.completion_tokens for step in finished} == {100}
    assert engine.cache.cells_used <= 512


def test_an_answer_that_was_put_back_goes_on_where_it_was(engine: Engine) -> None:
    """Both begin, and together they need more cells than there are."""
    long = [ask(engine, prompt(engine, letter * 120), max_tokens=300) for letter in "ab"]
    for answer in long:
        assert answer.wait().completion_tokens == 300
    alone = ask(engine, prompt(engine, "b" * 120), max_tokens=300)
    alone.wait()
    assert long[1].tokens == alone.tokens


def test_random_requests_and_cancels_leave_no_sequence_behind(engine: Engine) -> None:
    dice = random.Random(4)
    running: list[Answer] = []
    over = 0
    for number in range(200):
        text = "persona " * dice.randint(0, 12) + str(number % 7)
        answer = ask(engine, prompt(engine, text), max_tokens=dice.randint(1, 40))
        assert answer.generation is not None
        if dice.random() < 0.4:
            threading.Timer(dice.random() / 50, answer.generation.cancel).start()
        else:
            running.append(answer)
        while len(running) > 20:
            over += bool(running.pop(dice.randrange(len(running))).wait())
    for answer in running:
        answer.wait()
    ask(engine, prompt(engine, "last"), max_tokens=1).wait()
    engine.close()
    assert engine.stats.live == engine.stats.waiting == 0
    assert not [s for s in engine.cache.sequences if s.live]


def test_books_agree_with_llama_cpp(engine: Engine) -> None:
    for n in range(40):
        ask(engine, prompt(engine, "ab" * n + "c"), max_tokens=3).wait()
    until(lambda: engine.idle)
    lengths = [len(sequence.tokens) for sequence in engine.cache.sequences]
    assert any(lengths)
    assert [engine.context.length(s.number) for s in engine.cache.sequences] == lengths


def test_cancelled_answer_says_no_more_and_frees_its_sequence(engine: Engine) -> None:
    answer = ask(engine, prompt(engine, "Stop me"), max_tokens=400)
    answer.news.get(timeout=60)
    assert answer.generation is not None
    answer.generation.cancel()
    after = ask(engine, prompt(engine, "After"), max_tokens=2)
    after.wait()
    until(lambda: engine.stats.live == 0)
    assert answer.generation.completion_tokens < 400


def test_queue_is_bounded(engine: Engine) -> None:
    answers: list[Answer] = []
    with pytest.raises(Overloaded):
        for n in range(2 * (MAX_QUEUED + MAX_RUNNING)):
            answers.append(ask(engine, prompt(engine, f"{n}"), max_tokens=200))
    for answer in answers:
        assert answer.generation is not None
        answer.generation.cancel()
    assert len(answers) >= MAX_QUEUED


def test_there_is_always_a_sequence_for_who_begins() -> None:
    assert SEQUENCES > MAX_RUNNING


def test_who_waits_hears_how_many_come_first(engine: Engine) -> None:
    with held_up(engine):
        lengths = range(10, 10 + 2 * (MAX_RUNNING + 3), 2)
        answers = [ask(engine, prompt(engine, f"{n}"), max_tokens=n) for n in lengths]
    for answer in answers:
        answer.wait()
    told: list[list[int]] = []
    for answer in answers:
        steps = [answer.news.get() for _ in range(answer.news.qsize())]
        assert not steps  # the last word was the end
        told.append(answer.ahead)
    assert told[0] == []
    assert told[-1][0] > told[-1][-1] == 1
    assert told[-1] == sorted(told[-1], reverse=True)


def test_engines_that_work_at_the_same_time_divide_the_threads(tiny: Path, tmp_path: Path) -> None:
    one = Engine(tiny, context=512, threads=4)
    other = Engine(tiny, context=512, threads=4)
    used: dict[str, list[int]] = {"one": [], "other": []}
    for name, each in (("one", one), ("other", other)):
        each.context.use_threads = used[name].append  # type: ignore[method-assign]
    with held_up(one, tokens=2):
        ask(other, prompt(other, "together")).wait()
    for each in (one, other):
        until(lambda: one.idle and other.idle)
        ask(each, prompt(each, "alone")).wait()
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
    persona = prompt(engine, "x" * 100)
    engine.prefill(persona)
    assert taken.wait(10)
    assert not engine.idle
    go.set()
    until(lambda: engine.idle)
    assert known(engine, persona) == whole(persona)


# ── read ahead ────────────────────────────────────────────────────────────────────────────


def test_what_was_read_ahead_costs_a_request_nothing(engine: Engine) -> None:
    persona = prompt(engine, "A long persona. " * 12)
    asked = [*persona, *engine.model.tokenize("Hello.")]
    cold = ask(engine, asked)
    assert cold.wait().cached_tokens == 0
    engine.cache.clear()
    engine.prefill(persona)
    until(lambda: engine.idle)
    warm = ask(engine, asked)
    assert warm.wait().cached_tokens >= whole(persona) - ALIGNMENT
    assert warm.tokens == cold.tokens


def test_reading_ahead_gives_way_to_a_request_within_a_step(engine: Engine) -> None:
    persona = prompt(engine, "x" * 400)
    steps: list[int] = []
    decode = engine.context.decode

    def count(entries: Sequence[BatchEntry]) -> None:
        steps.append(sum(not entry.wants_logits for entry in entries))
        if len(steps) == 1:  # somebody asks while the first piece is being read
            answers.append(ask(engine, prompt(engine, "Hello"), max_tokens=3))
        decode(entries)

    answers: list[Answer] = []
    engine.context.decode = count  # type: ignore[method-assign]
    engine.prefill(persona)
    until(lambda: answers)
    answers[0].wait()
    until(lambda: engine.idle)
    assert steps[0] == PREFILL_CHUNK
    assert steps[1] < PREFILL_CHUNK  # the request's own tokens
    assert known(engine, persona) == whole(persona)


def test_a_request_takes_over_what_was_read_ahead_so_far(engine: Engine) -> None:
    persona = prompt(engine, "y" * 400)
    with held_up(engine):
        engine.prefill(persona)
        early = ask(engine, [*persona, *engine.model.tokenize("?")], max_tokens=1)
    assert early.wait().prompt_tokens > len(persona)
    until(lambda: engine.idle)
    assert known(engine, persona) == whole(persona)


def test_what_was_read_ahead_stays_though_much_comes_after_it(engine: Engine) -> None:
    persona = prompt(engine, "z" * 127)
    engine.prefill(persona)
    until(lambda: engine.idle)
    for letter in "abcdef":
        ask(engine, prompt(engine, letter * 200), max_tokens=20).wait()
    assert known(engine, persona) == 2 * BLOCK_TOKENS
    chat = ask(engine, [*persona, *engine.model.tokenize("Hello there, you!")], max_tokens=60)
    assert chat.wait().cached_tokens == 2 * BLOCK_TOKENS
    for letter in "abcdef":  # what hung on it goes, and it stays
        ask(engine, prompt(engine, letter * 200), max_tokens=20).wait()
    assert known(engine, persona) == 2 * BLOCK_TOKENS


def test_a_pin_gives_way_to_a_request_that_needs_its_cells(engine: Engine) -> None:
    engine.prefill(prompt(engine, "z" * 200))
    until(lambda: engine.idle)
    assert ask(engine, prompt(engine, "a" * 480), max_tokens=10).wait().completion_tokens == 10


def test_pins_take_half_of_the_cells_and_the_oldest_give_way() -> None:
    memory = Books(3)
    for number in range(4):
        memory.pin([number] * BLOCK_TOKENS + [0] * 36)
        memory.serve([number] * BLOCK_TOKENS)
    for number in (8, 9):
        memory.serve([number] * BLOCK_TOKENS)
    memory.save_idle()
    assert [n for n in range(10) if memory.prefix_cache.find([n] * BLOCK_TOKENS)[1]] == [2, 3, 9]


def test_a_request_that_breaks_the_books_is_told_and_not_tried_for_ever(
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
            ask(engine, prompt(engine, "Hello")).wait()
    assert ask(engine, prompt(engine, "Hello")).wait().finish
    assert tries == 1


def test_too_long_a_beginning_to_read_ahead_is_refused(engine: Engine) -> None:
    with pytest.raises(ContextTooLong):
        engine.prefill([5] * engine.context_limit)


# ── grammar ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_an_answer_by_a_grammar_is_one_of_its_words(engine: Engine, temperature: float) -> None:
    options = SamplerOptions(temperature, seed=1, grammar='root ::= ("yes" | "no") "!"')
    for number in range(5):
        answer = ask(engine, prompt(engine, f"Question {number}?"), options=options)
        assert answer.wait().finish == "stop"
        assert answer.text in ("yes!", "no!")


def test_an_answer_by_a_schema_is_json_that_keeps_to_it(engine: Engine) -> None:
    schema = {
        "type": "object",
        "properties": {"polite": {"type": "boolean"}, "level": {"enum": [1, 2, 3, 4]}},
        "required": ["polite", "level"],
        "additionalProperties": False,
    }
    options = SamplerOptions(1.0, seed=3, grammar=grammar_from_schema(schema))
    answer = ask(engine, prompt(engine, "How polite?"), options=options, max_tokens=200)
    assert answer.wait().finish == "stop"
    said = json.loads(answer.text)
    assert (type(said["polite"]), said["level"] in (1, 2, 3, 4), len(said)) == (bool, True, 2)


@pytest.mark.parametrize("grammar", ["root ::= (", "nonsense", 'other ::= "x"'])
def test_what_is_no_grammar_is_refused(engine: Engine, grammar: str) -> None:
    with pytest.raises(BadRequest):
        ask(engine, prompt(engine, "Hello"), options=SamplerOptions(grammar=grammar))
    assert ask(engine, prompt(engine, "Hello")).wait().finish


def _alike(depth: int) -> dict[str, Any]:
    """Arrays in arrays, each in two ways that begin alike."""
    ways = {f"a{depth}": {"type": "integer"}}
    for level in range(depth):
        inner = {"type": "array", "minItems": 1, "items": {"$ref": f"#/$defs/a{level + 1}"}}
        ways[f"a{level}"] = {"anyOf": [inner, dict(inner)]}
    return {"properties": {"x": {"$ref": "#/$defs/a0"}}, "required": ["x"], "$defs": ways}


def test_a_schema_whose_ways_multiply_is_refused_before_anybody_waits_for_it() -> None:
    assert grammar_from_schema(_alike(3))
    circle = {"$ref": "#/$defs/a0"}
    for schema in (
        _alike(20),
        _alike(1) | {"$defs": {"a0": {"anyOf": [{"items": circle}, circle]}}},
    ):
        with pytest.raises(BadRequest):
            grammar_from_schema(schema)


def test_what_is_no_schema_is_refused() -> None:
    with pytest.raises(BadRequest):
        grammar_from_schema({"$ref": "#/nowhere"})


# ── text ──────────────────────────────────────────────────────────────────────────────────


def cut_at_random(data: bytes, dice: random.Random) -> list[bytes]:
    cuts = sorted(dice.randrange(len(data) + 1) for _ in range(dice.randint(0, 8)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@pytest.mark.parametrize(
    ("said", "stop", "shown"),
    [
        ("はい、🍵です。\n\nユーザー：次", ("\n\n", "ユーザー："), "はい、🍵です。"),
        ("はい、ユー", ("ユーザー：",), "はい、ユー"),
        ("aab", ("ab",), "a"),
        ("one\ntwo", ("\n\n",), "one\ntwo"),
        ("plain", (), "plain"),
    ],
)
def test_stop_strings_and_characters_survive_any_cut(
    said: str, stop: tuple[str, ...], shown: str
) -> None:
    dice = random.Random(1)
    for _ in range(200):
        text = StreamDecoder(stop)
        pieces = [text.feed(part) for part in cut_at_random(said.encode(), dice)]
        pieces.append(text.feed(b"", final=True))
        assert "".join(pieces) == shown
        assert not any("\ufffd" in piece for piece in pieces)
        assert text.stopped == (shown != said)


def test_a_stop_string_ends_the_answer_before_it(engine: Engine) -> None:
    tokens = prompt(engine, "Where to stop")
    whole = ask(engine, tokens, max_tokens=60)
    whole.wait()
    stop = whole.text[7:10]
    answer = ask(engine, tokens, max_tokens=60, stop=(stop,))
    assert answer.wait().finish == "stop"
    assert answer.text == whole.text[: whole.text.index(stop)]


# ── what can go wrong ─────────────────────────────────────────────────────────────────────


def test_too_long_a_prompt_is_refused_with_numbers(engine: Engine) -> None:
    with pytest.raises(ContextTooLong) as refused:
        ask(engine, [5] * 600)
    assert refused.value.details["tokens"] == 600
    assert refused.value.details["limit"] == 511


def test_empty_prompt_is_refused(engine: Engine) -> None:
    with pytest.raises(BadRequest):
        ask(engine, [])


def test_every_text_becomes_tokens_and_back(engine: Engine) -> None:
    text = "spaces  take three bytes each here, 漢字 too 🍵"
    tokens = engine.model.tokenize(text)
    said = b"".join(engine.model.token_bytes(token) for token in tokens).decode()
    assert said.replace("\u2581", " ") == text


def test_an_answer_ends_where_the_context_does(engine: Engine) -> None:
    answer = ask(engine, [5] * 500, max_tokens=400)
    last = answer.wait()
    assert (last.finish, last.completion_tokens) == ("length", 12)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="no such file"):
        Engine(tmp_path / "none.gguf", context=512, threads=1)


@pytest.mark.parametrize("keep", [10, 5000, -4096])
def test_damaged_file_is_told_from_a_lack_of_memory(tiny: Path, tmp_path: Path, keep: int) -> None:
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
        ask(engine, prompt(engine, "First")).wait()
    assert ask(engine, prompt(engine, "Second")).wait().finish == "length"


def test_listener_whose_loop_is_closed_cancels_its_answer(engine: Engine) -> None:
    def gone(_: object) -> None:
        raise RuntimeError("Event loop is closed")

    generation = engine.submit(prompt(engine, "Anyone?"), gone, max_tokens=300)
    ask(engine, prompt(engine, "Next")).wait()
    assert generation.cancelled
    assert generation.completion_tokens < 300


def test_closing_ends_what_is_being_written(tiny: Path) -> None:
    engine = Engine(tiny, context=512, threads=1)
    answer = ask(engine, prompt(engine, "Long"), max_tokens=500)
    engine.close()
    with pytest.raises(ModelUnavailable):
        answer.wait()
    with pytest.raises(ModelUnavailable):
        ask(engine, [1])


def test_what_is_submitted_in_the_midst_of_closing_is_told_so(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(tiny, context=512, threads=1)
    tokens = prompt(engine, "Race")
    closing = threading.Thread(target=engine.close)

    class Slow(Sampler):
        """Made after the look at whether the engine is closed, and while it is being closed."""

        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            closing.start()
            time.sleep(0.05)

    monkeypatch.setattr(engine_module, "Sampler", Slow)
    with pytest.raises(ModelUnavailable):
        ask(engine, tokens)
    closing.join()


def test_a_closed_model_is_a_clear_error_and_not_the_end_of_the_process(tiny: Path) -> None:
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
        assert ask(one, prompt(one, "Still?")).wait()
        release_engines("B")
        with pytest.raises(ModelUnavailable, match="closed"):
            one.model.tokenize("Still?")
        new = open_engine(tiny, context=512, threads=1, owner="A")
        assert ask(new, prompt(new, "Again")).wait()
    finally:
        close_engines()


# ── memory ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    """``shelf("a")``: the engine of a file of its own, where all may take what two take."""
    names: dict[str, Path] = {}
    two = 2 * (
        300_000 + engines.ENGINE_OVERHEAD_BYTES
    )  # a tiny file with its cells and shelf has less than 0.3 MB

    def opened(name: str, most: int = two) -> Engine:
        path = names.setdefault(name, tiny_gguf.write(tmp_path / f"{name}.gguf"))
        return open_engine(path, context=512, threads=1, owner="shelf", max_bytes=most)

    yield opened
    release_engines("shelf")


def test_an_engine_that_nobody_uses_is_unloaded_when_another_needs_its_memory(
    shelf: Callable[..., Engine],
) -> None:
    one, two = shelf("one"), shelf("two")
    ask(one, prompt(one, "Hello")).wait()  # so that the other is the one used longest ago
    until(lambda: one.idle and two.idle)
    shelf("three")
    assert two.unloaded
    assert not one.unloaded
    assert shelf("one") is one
    with pytest.raises(ModelUnavailable, match="closed"):
        ask(two, [1])
    again = shelf("two")
    assert again is not two
    assert ask(again, prompt(again, "Hello")).wait().finish


def test_an_engine_in_use_is_not_unloaded_and_who_finds_no_room_is_told_how_much_there_is(
    shelf: Callable[..., Engine],
) -> None:
    one, two = shelf("one"), shelf("two")
    with held_up(one), held_up(two):
        with pytest.raises(ModelUnavailable) as refused:
            shelf("three")
        assert ask(one, prompt(one, "Still there?")) is not None
    assert refused.value.details["why"] == "no_room"
    assert refused.value.details["needed"] >= 250
    assert refused.value.details["free"] == 0
    assert not (one.unloaded or two.unloaded)


def test_what_never_fits_unloads_nobody(shelf: Callable[..., Engine]) -> None:
    one = shelf("one")
    until(lambda: one.idle)
    with pytest.raises(ModelUnavailable):
        shelf("two", most=1_000_000)
    assert not one.unloaded


def test_a_context_that_does_not_fit_gives_its_weights_back(
    shelf: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[Path] = []
    close = Model.close
    monkeypatch.setattr(Model, "close", lambda model: (closed.append(model.path), close(model)))
    monkeypatch.setattr(Model, "cell_bytes", 10**9)
    with pytest.raises(ModelUnavailable) as refused:
        shelf("one")
    assert refused.value.details["why"] == "no_room"
    assert [path.stem for path in closed] == ["one"]


def test_a_container_has_what_its_bound_leaves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("4000000\n")
    (tmp_path / "memory.stat").write_text("anon 1500000\nfile 2500000\n")
    monkeypatch.setattr(engines, "_CGROUP_FOLDER", tmp_path)
    assert engines.available_memory() == 3_500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert engines.available_memory() > 5_000_000


@pytest.mark.parametrize(("name", "size"), [(PACKAGED[0], 18 * 1024), (PACKAGED[1], 30 * 768)])
def test_a_cell_of_a_packaged_model_is_as_large_as_its_header_says(name: str, size: int) -> None:
    model = Model(packaged(name), vocab_only=True)
    assert model.cell_bytes == size
    model.close()


def test_loading_tells_how_far_it_is(tiny: Path) -> None:
    heard: list[float] = []
    Engine(tiny, context=512, threads=1, progress=heard.append).close()
    assert heard == sorted(heard)
    assert heard[-1] == 1
