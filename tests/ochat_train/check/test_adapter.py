"""What `ochat check` says of an adapter before a run would meet it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from ochat_train.check.adapter import check_adapter
from ochat_train.check.disk import check_disk
from ochat_train.check.findings import Finding, run_checks
from ochat_train.check.model import check_learning_rate, check_memory, layer_findings
from ochat_train.check.recipe_facts import RecipeFacts
from ochat_train.recipe.load import load_recipe
from tests.support.small_recipe import RecipeFactory

CHECKS = {
    "layers": layer_findings,
    "adapter": check_adapter,
    "learning rate": check_learning_rate,
    "memory": check_memory,
    "disk": check_disk,
}


def findings_of(path: Path, *overrides: str, areas: str = "adapter") -> list[Finding]:
    facts = RecipeFacts(recipe=load_recipe(path, overrides), num_gpus=1, gpu_memory_gib=79.0)
    return run_checks([(name, lambda name=name: CHECKS[name](facts)) for name in areas.split(",")])  # type: ignore[misc]


@pytest.fixture
def path(make_recipe: RecipeFactory) -> Path:
    return make_recipe(adapter={"type": "lora", "rank": 4, "alpha": 8}, optimizer={"learning_rate": "auto"})


def test_an_adapter_that_fits(path: Path) -> None:
    [found] = findings_of(path)
    assert found.level == "ok"
    assert "lora of rank 4, scale 2, on 14 modules (q_proj 2, k_proj 2, v_proj 2, o_proj 2" in found.finding
    [without] = findings_of(path, "adapter=null")
    assert (without.level, without.problem) == ("ok", "none: all weights are trained")


@pytest.mark.parametrize(
    ("change", "place", "part", "remedy"),
    [
        ("adapter.targets=[q_prog]", "adapter.targets", "is called `q_prog`", "q_proj"),
        ("adapter.targets=[lm_head]", "adapter.targets", "is called `lm_head`", "names: down_proj"),
        ("adapter.rank=64", "adapter.rank", "64 is more than", "smaller rank"),
    ],
)
def test_what_does_not_fit_is_a_problem(path: Path, change: str, place: str, part: str, remedy: str) -> None:
    found, later = findings_of(path, change, areas="adapter,memory")
    assert (found.level, found.place) == ("problem", place)
    assert part in found.problem
    assert remedy in found.remedy
    assert later.problem == "not checked: see the problem of adapter"


def test_missing_packages_are_problems(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def without_bitsandbytes(name: str, *rest: Any) -> Any:
        return None if name == "bitsandbytes" else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without_bitsandbytes)
    assert [finding.level for finding in findings_of(path)] == ["ok"], "lora does not need it"
    problem = findings_of(path, "adapter.type=qlora")[0]
    assert (problem.level, problem.place) == ("problem", "adapter.type")
    assert "pip install bitsandbytes" in problem.problem
    monkeypatch.setattr("ochat_train.adapter.installed.installed_version", lambda name: None)
    [problem] = findings_of(path)
    assert problem.level == "problem"
    assert "pip install" in problem.remedy


def test_qlora_names_what_only_the_gpu_host_can_say(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    warning, found = findings_of(path, "adapter.type=qlora")
    assert (warning.level, found.level) == ("warning", "ok")
    assert "were not tried" in warning.problem


@pytest.mark.parametrize("change", ["adapter.dropout=0.1", "adapter.dora=true"])
def test_layers_that_cannot_be_compiled_are_neither_wanted_nor_planned(path: Path, change: str) -> None:
    def check(*changes: str) -> list[str]:
        return [
            f.place for f in findings_of(path, "model.compile=true", *changes, areas="layers") if f.level == "problem"
        ]

    def planned(*changes: str) -> dict[str, float]:
        recipe = load_recipe(path, ["adapter.targets=[q_proj]", *changes])
        return vars(RecipeFacts(recipe=recipe, num_gpus=1, gpu_memory_gib=79.0).memory.parts)

    assert check() == []
    assert check(change) == ["model.compile"]
    assert planned(change) == planned(change, "model.compile=false")
    assert planned() != planned("model.compile=false"), "the control"


def test_rate_and_disk_are_those_of_the_adapter(path: Path) -> None:
    rate, disk = findings_of(path, areas="learning rate,disk")
    assert rate.problem == "auto, 0.0256: rule for adapters by width: 2e-4 * 4096 / 32"
    whole = findings_of(path, "adapter=null", areas="learning rate,disk")
    assert "where the rule ends" in whole[0].problem

    def checkpoint_mib(finding: Finding) -> float:
        return float(finding.problem.partition("checkpoint(s) ")[2].partition(" MiB")[0])

    trained = RecipeFacts(recipe=load_recipe(path), num_gpus=1, gpu_memory_gib=79.0).num_trained
    assert checkpoint_mib(disk) == pytest.approx((trained * 14 + 2**20) / 2**20, abs=0.05)
    assert checkpoint_mib(whole[1]) > checkpoint_mib(disk)
