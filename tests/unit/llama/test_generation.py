"""Answers: token for token those of the Llama class, whatever is reused."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from support import tiny_gguf as tiny_gguf
from support.app_process import wait_until
from support.llama import (
    PACKAGED_MODELS,
    find_packaged_weights,
    reusable_length,
    submit,
    tokenize,
)

from persona_lab.llama import (
    Engine,
    SamplerOptions,
)
from persona_lab.llama.kv_cache import (
    ALIGNMENT,
)


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
    tokens = tokenize(engine, "みさき：こんにちは。\nYou: Hello there!")
    answer = submit(engine, tokens, max_tokens=60)
    answer.wait()
    assert len(answer.tokens) == 60
    assert answer.tokens == greedy_by_llama(tiny, tokens, 60)


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("name", PACKAGED_MODELS)
def test_greedy_answer_of_a_packaged_model_is_the_llama_classes(name: str, flash: bool) -> None:
    path = find_packaged_weights(name)
    engine = Engine(path, context=512, threads=1, flash=flash)
    for said in ("Tell me about the sea.", "海について教えてください。"):
        tokens = tokenize(engine, f"User: {said}\nAI:")
        engine.cache.clear()  # alone: nothing was read before
        answer = submit(engine, tokens, max_tokens=40)
        answer.wait()
        wait_until(lambda: engine.idle)
        assert len(answer.tokens) > 10
        assert answer.tokens == greedy_by_llama(path, tokens, 40, flash=flash)
    engine.close()


def test_reuse_of_a_beginning_never_changes_the_answer(engine: Engine, tiny: Path) -> None:
    persona = "A persona that is long enough to be worth sharing with others. "
    texts = [persona + end for end in ("One", "Two?", "One more", "", "Three…")]
    for text in texts * 2:
        tokens = tokenize(engine, text)
        answer = submit(engine, tokens)
        last = answer.wait()
        assert answer.tokens == greedy_by_llama(tiny, tokens, 24)
    assert last.cached_tokens >= reusable_length(tokenize(engine, persona)) - ALIGNMENT


@pytest.mark.parametrize("name", PACKAGED_MODELS)
@pytest.mark.slow
def test_reuse_never_changes_an_answer_of_a_quantized_model(name: str) -> None:
    """Personas in turn, their chats, and what was read ahead, whole or broken off."""
    dice = random.Random(name)
    engine = Engine(find_packaged_weights(name), context=2048, threads=2)
    facts = (
        "She runs a small café by the sea. 海辺の小さなカフェの店主です。よく笑い、よく話します。"
    )
    length = {"Misaki": 4, "レン": 30, "Grace": 4}  # one is longer than a window and a batch
    personas = [tokenize(engine, f"{who}. " + facts * length[who])[:700] for who in length]
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
                wait_until(lambda: engine.idle)
        answer = submit(engine, tokens, max_tokens=16)
        asked.append((tokens, answer, answer.wait().cached_tokens))
        chats[who] = tokens + answer.tokens
    assert sum(cached for *_, cached in asked) > sum(len(tokens) for tokens, *_ in asked) / 2
    for tokens, answer, _ in asked:
        wait_until(lambda: engine.idle)
        engine.cache.clear()
        again = submit(engine, tokens, max_tokens=16)
        assert again.wait().cached_tokens == 0
        assert again.tokens == answer.tokens
    engine.close()


def test_same_seed_same_answer_and_another_seed_another(engine: Engine) -> None:
    tokens = tokenize(engine, "Dice")
    said = []
    for seed in (7, 7, 8):
        answer = submit(engine, tokens, options=SamplerOptions(temperature=1.5, min_p=0, seed=seed))
        answer.wait()
        said.append(answer.tokens)
    assert said[0] == said[1] != said[2]


def test_repetition_penalty_makes_an_answer_repeat_less(engine: Engine) -> None:
    tokens = tokenize(engine, "Again")
    kinds = []
    for penalty in (1.0, 3.0):
        answer = submit(
            engine, tokens, max_tokens=60, options=SamplerOptions(0, repeat_penalty=penalty)
        )
        answer.wait()
        kinds.append(len(set(answer.tokens)))
    assert kinds[1] > kinds[0]
