"""`ochat train` refuses every base that `ochat check` refuses, in the same words, and accepts what it accepts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.errors import Problem, UserError
from ochat_train.check.check import check
from ochat_train.check.findings import Finding
from ochat_train.model.attention.kernels import KERNELS
from ochat_train.model.build import build_model
from ochat_train.model.config import check_precision
from ochat_train.model.float8 import float8_error, use_float8
from ochat_train.model.proof.base import prove_base
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import prepare_recipe
from ochat_train.system import requirements
from ochat_train.system.requirements import check_requirements
from tests.support.base_configs import SHAPES, broken_kernel
from tests.support.processes import ochat
from tests.support.small_recipe import RecipeFactory

CPU = torch.device("cpu")
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    # name: changes of the config, part of what is said
    "keywords are not passed on": ({"model_type": "stablelm", "head_dim": 8}, "does not pass `cu_seqlens`"),
    "no positions": ({"model_type": "bloom"}, "takes no `position_ids`"),
    "attention of its own": ({"model_type": "gptj", "rotary_dim": 4}, "gptj"),
    "attention to later tokens": ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "gemma3_text"),
    "too short": ({"max_position_embeddings": 128}, "256 is more than the base's max_position_embeddings 128"),
    "a misspelled key": ({"hidden_sise": 64}, "`hidden_sise` is no key of a `mistral`"),
    "not a config": ({"hidden_size": 30, "head_dim": None, "num_attention_heads": 7}, "mistral"),
}


def problems_of(path: Path, *areas: str) -> list[Finding]:
    return [f for f in check(path, (), num_gpus=1, gpu_memory_gib=79.0) if f.level == "problem" and f.area in areas]


def refusal_of_training(path: Path) -> UserError:
    recipe = load_recipe(path)
    manifest, _ = prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
    with pytest.raises(UserError) as caught:
        build_model(recipe.model, manifest, device=CPU, seed=0)
    return caught.value


@pytest.mark.parametrize("name", REFUSED)
def test_a_base_is_refused_by_both_in_the_same_words(name: str, make_recipe: RecipeFactory) -> None:
    changes, text = REFUSED[name]
    path = make_recipe(model__config={"model_type": "mistral", **SHAPES, **changes})
    [finding] = problems_of(path, "base")
    error = refusal_of_training(path)
    assert text in finding.problem
    assert (finding.place, finding.problem, finding.remedy) == (error.place, error.problem, error.remedy)
    assert "the check itself failed" not in finding.problem


def test_a_base_that_is_computed_wrongly_is_refused_by_both(
    make_recipe: RecipeFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # of other trainings, this base may be proven
    monkeypatch.setitem(KERNELS, "sdpa", broken_kernel("sdpa", scale=lambda scale: 2 * scale))
    path = make_recipe()
    [finding], error = problems_of(path, "base"), refusal_of_training(path)
    assert finding.problem.startswith("mistral would be trained wrongly: hidden states on packs differ by")
    assert (finding.place, finding.problem, finding.remedy) == (error.place, error.problem, error.remedy)


def test_the_command_ends_before_it_writes_anything(make_recipe: RecipeFactory, tmp_path: Path) -> None:
    """The whole way, in another process."""
    changes = {"model_type": "gemma3_text", "use_bidirectional_attention": True}
    path = make_recipe(model__config={**SHAPES, **changes})
    prepare_recipe(load_recipe(path), num_workers=1, progress=lambda rows: None)
    ended = ochat("train", str(path))
    [finding] = problems_of(path, "base")
    assert (ended.returncode, f"{finding.finding}; {finding.remedy}" in ended.stderr) == (2, True), ended.stderr
    assert "Traceback" not in ended.stderr
    assert not [file.name for file in (tmp_path / "run").rglob("*") if file.is_file() and not file.name.startswith(".")]


def test_check_says_that_a_base_was_proven_and_how_well(make_recipe: RecipeFactory) -> None:
    findings = check(make_recipe(), (), num_gpus=1, gpu_memory_gib=79.0)
    [finding] = [f for f in findings if f.area == "base"]
    assert finding.level == "ok"
    assert "; packs are computed as each conversation alone: hidden states within " in finding.problem


def test_a_kernel_for_gpus_is_left_to_the_gpu_host(make_recipe: RecipeFactory) -> None:
    path = make_recipe(model__attention="varlen")
    assert not problems_of(path, "base", "gpu")
    assert "needs a CUDA GPU" in refusal_of_training(path).problem


def test_float8_and_precision_have_the_same_words(monkeypatch: pytest.MonkeyPatch, make_recipe: RecipeFactory) -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(16, 16))
    with pytest.raises(UserError) as caught:
        use_float8([layer], device=CPU, pack_length=16, compiled=True)
    assert caught.value.args == float8_error("it needs an Ada, Hopper or later GPU").args
    assert caught.value.remedy == "fix that, or remove model.float8"
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    settings = load_recipe(make_recipe()).model
    for run in (check_precision, lambda settings, device: prove_base(None, settings, device=device)):
        monkeypatch.setattr("ochat_train.model.proof.base.check_config", lambda config, settings: None)
        with pytest.raises(UserError, match=r"GPU 0: compute capability 7\.0: no bfloat16; use an Ampere GPU or later"):
            run(settings, gpu)
    check_precision(settings.model_copy(update={"precision": "float32"}), gpu)


def test_training_refuses_other_versions_as_check_does(monkeypatch: pytest.MonkeyPatch) -> None:
    check_requirements()
    wrong = Problem(place="torch", problem="1.0, but >=2 is needed", remedy='pip install "torch>=2"')
    monkeypatch.setattr(requirements, "unmet_requirements", lambda: [wrong])
    with pytest.raises(UserError) as caught:
        check_requirements()
    assert caught.value.problems == (wrong,)
