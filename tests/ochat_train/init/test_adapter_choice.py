"""Whether `ochat init` writes an adapter: by the flag, by what fits on the GPU here, or by a person."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ochat_train.init.adapter import gpu_memory_gib
from ochat_train.init.init import init
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.recipe import Recipe
from tests.ochat_train.init.test_init import answers, here, options  # noqa: F401  (a fixture)
from tests.ochat_train.planning.test_memory_plan import MISTRAL_7B

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def large_base(here: Path) -> None:  # noqa: F811
    """The base's configuration becomes that of a 7B."""
    config = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], **MISTRAL_7B}
    Path("base/config.json").write_text(json.dumps(config), encoding="utf-8")


def gpu_of(memory_gib: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ochat_train.init.init.gpu_memory_gib", lambda: memory_gib)


def written(ask: Any = None, **changes: Any) -> tuple[Recipe, str]:
    said: list[str] = []
    out = init(options(max_length=2048, gpus=1, **changes), ask=ask, say=said.append)
    return load_recipe(out), "\n".join(said)


@pytest.mark.usefixtures("large_base")
@pytest.mark.parametrize(
    ("memory_gib", "adapter", "reason"),
    [
        (None, None, "there is no GPU here"),
        (
            79.6,
            "lora",
            r"needs \d+\.\d GiB each on 1 GPU\(s\) of 80 GiB \(\d+\.\d with optimizer\.states: 8bit .*; lora needs",
        ),
        (16.0, "qlora", r"qlora needs \d+"),
        (4.0, None, "no adapter fits either"),
        (200.0, None, r"all weights fit on 1 GPU\(s\) of 200 GiB"),
    ],
)
def test_the_first_that_fits_is_written(
    memory_gib: float | None, adapter: str | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu_of(memory_gib, monkeypatch)
    recipe, said = written()
    assert (recipe.adapter.type if recipe.adapter else None) == adapter
    assert recipe.optimizer.learning_rate == "auto"
    assert re.search(reason, said), said


@pytest.mark.usefixtures("large_base")
def test_the_flag_decides_whatever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_of(24.0, monkeypatch)
    recipe, said = written(adapter="none")
    assert recipe.adapter is None
    assert "from --adapter" in said
    recipe, _ = written(adapter="lora", overwrite=True)
    assert recipe.adapter is not None
    assert recipe.adapter.type == "lora"


@pytest.mark.usefixtures("large_base")
def test_a_person_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_of(24.0, monkeypatch)
    conditions = ("GPT4 Correct", "1", "GPT3", "0")
    for typed, expected in (("", "lora"), ("qlora", "qlora"), ("none", None)):
        ask = answers(*conditions, "wrong", typed)
        recipe, _ = written(ask, classes=[], overwrite=True)
        assert (recipe.adapter.type if recipe.adapter else None) == expected
        assert "Adapter to train instead (none, lora, qlora) [lora]" in ask.questions[-1]  # type: ignore[attr-defined]


def test_a_small_base_is_trained_whole_and_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_of(24.0, monkeypatch)
    ask = answers("GPT4 Correct", "1", "GPT3", "0")
    recipe, said = written(ask, classes=[])
    assert recipe.adapter is None
    assert "all weights fit" in said


def test_a_base_that_is_not_here_is_trained_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_of(24.0, monkeypatch)
    recipe, said = written(base="someone/unheard-7b")
    assert recipe.adapter is None
    assert "the base is not on this machine" in said


@pytest.mark.parametrize(
    ("printed", "memory_gib"), [("81559\n", 79.65), ("24564\n81559\n", 23.99), ("", None), ("No devices\n", None)]
)
def test_the_smallest_gpu_by_the_driver(
    printed: str, memory_gib: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\nprintf '{printed}'\n", encoding="utf-8")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = gpu_memory_gib()
    assert found == (None if memory_gib is None else pytest.approx(memory_gib, abs=0.01))


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert gpu_memory_gib() is None


def test_a_base_without_a_width_gets_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_of(24.0, monkeypatch)
    Path("base/config.json").write_text(json.dumps({"model_type": "unheard", "vocab_size": 400}), encoding="utf-8")
    recipe, said = written(adapter="lora")
    assert recipe.optimizer.learning_rate == 2e-4
    recipe, said = written(overwrite=True)
    assert recipe.adapter is None
    assert "what fits is not known" in said
