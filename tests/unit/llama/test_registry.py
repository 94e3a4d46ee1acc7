"""Engines that are shared, and unloaded for one another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support import tiny_gguf as tiny_gguf
from support.app_process import wait_until
from support.llama import (
    PACKAGED_MODELS,
    find_packaged_weights,
    pause_worker,
    submit,
    tokenize,
)

from persona_lab.errors import (
    ModelUnavailable,
)
from persona_lab.llama import (
    Engine,
    Model,
)
from persona_lab.llama import registry as engines


def test_idle_engine_is_unloaded_when_another_needs_memory(
    shelf: Callable[..., Engine],
) -> None:
    one, two = shelf("one"), shelf("two")
    submit(one, tokenize(one, "Hello")).wait()  # so that the other is the one used longest ago
    wait_until(lambda: one.idle and two.idle)
    shelf("three")
    assert two.unloaded
    assert not one.unloaded
    assert shelf("one") is one
    with pytest.raises(ModelUnavailable, match="closed"):
        submit(two, [1])
    again = shelf("two")
    assert again is not two
    assert submit(again, tokenize(again, "Hello")).wait().finish


def test_busy_engine_stays_and_the_error_names_the_memory(
    shelf: Callable[..., Engine],
) -> None:
    one, two = shelf("one"), shelf("two")
    with pause_worker(one), pause_worker(two):
        with pytest.raises(ModelUnavailable) as refused:
            shelf("three")
        assert submit(one, tokenize(one, "Still there?")) is not None
    assert refused.value.details["why"] == "no_room"
    assert refused.value.details["needed"] >= 250
    assert refused.value.details["free"] == 0
    assert not (one.unloaded or two.unloaded)


def test_model_that_never_fits_unloads_no_engine(shelf: Callable[..., Engine]) -> None:
    one = shelf("one")
    wait_until(lambda: one.idle)
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


@pytest.mark.parametrize(
    ("name", "size"), [(PACKAGED_MODELS[0], 18 * 1024), (PACKAGED_MODELS[1], 30 * 768)]
)
def test_cell_bytes_match_the_header_of_a_packaged_model(name: str, size: int) -> None:
    model = Model(find_packaged_weights(name), vocab_only=True)
    assert model.cell_bytes == size
    model.close()


def test_loading_tells_how_far_it_is(tiny: Path) -> None:
    heard: list[float] = []
    Engine(tiny, context=512, threads=1, progress=heard.append).close()
    assert heard == sorted(heard)
    assert heard[-1] == 1
