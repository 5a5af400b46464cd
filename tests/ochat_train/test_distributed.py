"""Real DeepSpeed processes on the CPU: same losses for every ZeRO stage and number of ranks, exact resume, exact export."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ochat_train.export import export, load_trained_weights
from ochat_train.prepare_data import prepare_recipe
from ochat_train.recipe import load_recipe
from tests.conftest import TINY_MODEL, RecipeFactory, deepspeed_train, metrics, ochat
from tests.ochat_train.reference import relative_error

TrainFunction = Callable[..., Path]


@pytest.fixture
def train(tmp_path: Path, make_recipe: RecipeFactory) -> TrainFunction:
    """Prepares, trains under the launcher and returns the run folder; keyword arguments change the recipe."""

    def run(name: str, *arguments: str, num_ranks: int = 2, **changes: Any) -> Path:
        output_dir = tmp_path / name
        recipe = make_recipe(output_dir=str(output_dir), **changes)
        prepare_recipe(load_recipe(recipe), num_workers=1, progress=lambda rows: None)
        finished = deepspeed_train(recipe, *arguments, num_ranks=num_ranks)
        assert finished.returncode == 0, finished.stderr[-4000:]
        return output_dir

    return run


def newest_weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_trained_weights(sorted((run_dir / "checkpoints").glob("step-*"))[-1])


def export_and_load(run_dir: Path) -> Any:
    import transformers

    out = export(run_dir, run_dir / "export", step=None)
    return transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto")


def test_zero_stages_and_rank_counts_take_the_same_steps(train: TrainFunction) -> None:
    """Losses, gradient norms and exported weights for ZeRO 0 to 3 on two ranks, and for one rank."""
    runs = {f"zero {stage}": train(f"zero{stage}", deepspeed__zero_stage=stage) for stage in range(4)}
    runs["one rank"] = train("one", num_ranks=1)
    expected = metrics(runs["zero 0"])
    assert len(expected) >= 12
    weights = newest_weights(runs["zero 0"])
    for name, run_dir in runs.items():
        for found, truth in zip(metrics(run_dir), expected, strict=True):
            assert found["loss"] == pytest.approx(truth["loss"], rel=2e-6), name
            assert found["grad_norm"] == pytest.approx(truth["grad_norm"], rel=1e-4), name
            assert found["classes"].keys() == {"expert", "suboptimal"}
        exported = export_and_load(run_dir).state_dict()
        for key, value in newest_weights(run_dir).items():
            assert relative_error(value, weights[key]) < 2e-4, (name, key)
            assert torch.equal(exported[key], value), (name, key)
    assert expected[-1]["loss"] < expected[0]["loss"] - 0.5


def test_tied_embeddings_under_zero_3(train: TrainFunction) -> None:
    """The loss reads a weight that belongs to the embedding; gradients from both uses must arrive."""
    config = {**TINY_MODEL, "tie_word_embeddings": True}
    runs = [train(f"tied{stage}", deepspeed__zero_stage=stage, model__config=config) for stage in (0, 3)]
    for found, truth in zip(metrics(runs[1]), metrics(runs[0]), strict=True):
        assert found["loss"] == pytest.approx(truth["loss"], rel=2e-6)
    model = export_and_load(runs[1])
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_resume_is_bit_equal_in_the_middle_of_an_epoch(train: TrainFunction) -> None:
    """ZeRO-2 with dropout, so that the random number states count too; the control resumes without them."""
    changes = {"model__config": {**TINY_MODEL, "attention_dropout": 0.1}, "checkpoint__save_every_steps": 5}
    changes |= {"checkpoint__keep_last": 9}
    straight = train("straight", **changes)
    assert metrics(straight)[4]["epoch"] == 0
    results = {}
    for name in ("resumed", "control"):
        run_dir = straight.parent / name
        shutil.copytree(straight, run_dir)
        for folder in (run_dir / "checkpoints").glob("step-*"):
            if folder.name != "step-00000005":
                shutil.rmtree(folder)
        if name == "control":
            give_fresh_random_states(run_dir / "checkpoints" / "step-00000005")
        train(name, **changes)
        results[name] = metrics(run_dir)
    expected = metrics(straight)
    assert [line["step"] for line in results["resumed"]] == [line["step"] for line in expected]
    assert [line["loss"] for line in results["resumed"]] == [line["loss"] for line in expected]
    weights = newest_weights(straight)
    assert all(torch.equal(value, weights[key]) for key, value in newest_weights(straight.parent / "resumed").items())
    assert [line["loss"] for line in results["control"][5:]] != [line["loss"] for line in expected[5:]]


def give_fresh_random_states(checkpoint: Path) -> None:
    """Replace the saved random number states by those of a new process, with a manifest that agrees."""
    import hashlib

    from safetensors.torch import save_file

    manifest = json.loads((checkpoint / "MANIFEST.json").read_text())
    for file in checkpoint.glob("rng-*.safetensors"):
        generator = torch.Generator().manual_seed(99)
        save_file({"cpu": generator.get_state()}, str(file))
        content = file.read_bytes()
        manifest["files"][file.name] = [len(content), hashlib.sha256(content).hexdigest()]
    (checkpoint / "MANIFEST.json").write_text(json.dumps(manifest))


def test_a_broken_checkpoint_is_passed_over_and_another_recipe_is_refused(tmp_path: Path, make_recipe: RecipeFactory) -> None:
    """One rank, without the launcher: `ochat train` alone."""
    changes: dict[str, Any] = {"checkpoint__save_every_steps": 5, "checkpoint__keep_last": 9, "train__max_steps": 10}
    recipe = make_recipe(**changes)
    assert ochat("prepare", str(recipe)).returncode == 0
    first = ochat("train", str(recipe))
    assert first.returncode == 0, first.stderr
    checkpoints = tmp_path / "run" / "checkpoints"
    shard = next((checkpoints / "step-00000010" / "state").glob("*optim_states.pt"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    before = metrics(tmp_path / "run")
    again = ochat("train", str(recipe))
    assert again.returncode == 0, again.stderr
    assert "resumes from" in again.stderr
    assert "step-00000005" in again.stderr
    assert [line["loss"] for line in metrics(tmp_path / "run")] == [line["loss"] for line in before]
    assert (checkpoints / "aside-1-step-00000010").is_dir()
    assert (checkpoints / "LATEST").read_text().strip() == "step-00000010"

    refused = ochat("train", str(make_recipe(**{**changes, "optimizer__learning_rate": 0.001})))
    assert refused.returncode == 2
    assert "optimizer.learning_rate (then 0.003, now 0.001)" in refused.stderr
    assert "Traceback" not in refused.stderr
    anew = ochat("train", str(make_recipe(**{**changes, "optimizer__learning_rate": 0.001})), "--resume", "never")
    assert anew.returncode == 0, anew.stderr
    assert (tmp_path / "run.previous-1" / "metrics.jsonl").is_file()
    assert len(metrics(tmp_path / "run")) == 10


def test_changed_data_is_refused(tmp_path: Path, make_recipe: RecipeFactory) -> None:
    recipe = make_recipe()
    missing = ochat("train", str(recipe))
    assert missing.returncode == 2
    assert "run `ochat prepare RECIPE` first" in missing.stderr
    assert ochat("prepare", str(recipe)).returncode == 0
    with (tmp_path / "expert.jsonl").open("a") as file:
        file.write((tmp_path / "expert.jsonl").read_text().splitlines()[0].replace("Question 0", "Question X") + "\n")
    changed = ochat("train", str(recipe))
    assert changed.returncode == 2
    assert "was prepared from other sources than this recipe names" in changed.stderr


def test_export_and_generate(tmp_path: Path, make_recipe: RecipeFactory) -> None:
    """The folder holds no path of this machine, loads in transformers, answers, and is never overwritten unasked."""
    import transformers

    recipe = make_recipe(train__max_steps=2)
    for verb in ("prepare", "train"):
        finished = ochat(verb, str(recipe))
        assert finished.returncode == 0, finished.stderr
    out = tmp_path / "export"
    exported = ochat("export", str(tmp_path / "run"), "--out", str(out))
    assert exported.returncode == 0, exported.stderr
    text = (out / "ochat.json").read_text() + (out / "config.json").read_text() + (out / "tokenizer_config.json").read_text()
    assert str(tmp_path) not in text
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|end_of_turn|>")
    row = json.loads(ochat("inspect", str(tmp_path / "prepared"), "--rows", "0:1", "--json").stdout)
    messages = [{"role": "user", "content": "Question 0.0: how are you?"}]
    prompt = tokenizer.apply_chat_template(messages, condition="GPT4 Correct", add_generation_prompt=True, return_dict=False)
    assert row["input_ids"][: len(prompt)] == prompt
    answered = ochat("generate", str(out), "--prompt", "Hello", "--condition", "GPT3", "--max-new-tokens", "4", "--json")
    assert json.loads(answered.stdout)["condition"] == "GPT3"
    refused = ochat("export", str(tmp_path / "run"), "--out", str(out))
    assert refused.returncode == 2
    assert "`--overwrite`" in refused.stderr
    assert ochat("export", str(tmp_path / "run"), "--out", str(out), "--overwrite").returncode == 0
