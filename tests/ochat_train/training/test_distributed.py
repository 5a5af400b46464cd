"""Real DeepSpeed processes on the CPU: same losses for every ZeRO stage and number of ranks, exact resume, exact
export.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

from data_pipeline.prepared.dataset import PreparedSplit
from ochat_train.checkpoint.state import STATE, CheckpointManifest
from ochat_train.cli.main import main
from ochat_train.export.export import export
from ochat_train.export.trained import load_trained_weights
from ochat_train.model.batch import pack_batch
from ochat_train.model.build import build_model
from ochat_train.planning.steps import training_plan
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import check_prepared, prepare_recipe
from ochat_train.training.batches import run_shape
from tests.support.faults import give_fresh_random_states
from tests.support.measured import Measured
from tests.support.processes import ochat, run_jobs, train_on_ranks
from tests.support.reference import flat, relative_error
from tests.support.run_folder import metrics
from tests.support.small_recipe import TINY_MODEL, RecipeFactory
from tests.support.training_runs import Runs, train_runs

TrainFunction = Callable[..., dict[str, Path]]


@pytest.fixture
def train(tmp_path: Path, make_recipe: RecipeFactory) -> TrainFunction:
    """Prepares and trains runs on ranks that are started once; returns their run folders by name."""
    return partial(train_runs, folder=tmp_path, make_recipe=make_recipe)


def newest_weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_trained_weights(sorted((run_dir / "checkpoints").glob("step-*"))[-1])


def export_and_load(run_dir: Path) -> Any:
    import transformers

    out = export(run_dir, run_dir / "export", step=None, max_shard_size="20KB")
    assert len(list(out.glob("model-*-of-*.safetensors"))) > 1
    return transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto", attn_implementation="eager").eval()


@torch.no_grad()
def logits_difference(run_dir: Path, exported: Any) -> float:
    """Largest difference between the training model on a whole pack and the export on each conversation alone."""
    recipe = load_recipe(run_dir.with_suffix(".yaml"))
    model = build_model(recipe.model, check_prepared(recipe), device=torch.device("cpu"), seed=99).model
    model.causal_lm.load_state_dict(newest_weights(run_dir), strict=not model.causal_lm.config.tie_word_embeddings)
    split = PreparedSplit(Path(recipe.data.prepared_dir), "train")
    rows = training_plan(recipe, split).epoch(0).rows(0)
    hidden = []
    model.loss.register_forward_pre_hook(lambda module, arguments: hidden.append(arguments[0]))
    model.eval()(pack_batch(split, rows, run_shape(split, training_plan(recipe, split))))
    packed = hidden[0] @ model.loss.head_weight.T
    alone = torch.cat([exported(torch.tensor(split[int(row)].input_ids.astype(int))[None]).logits[0] for row in rows])
    assert len(rows) > 1
    return float((packed[: len(alone)] - alone).abs().max())


def test_zero_stages_and_rank_counts_take_the_same_steps(train: TrainFunction, measured: Measured) -> None:
    """Losses, gradient norms and exported weights for ZeRO 0 to 3 on two ranks, and for one rank."""
    runs = train({f"zero{stage}": {"deepspeed__zero_stage": stage} for stage in range(4)})
    runs |= train({"one_rank": {}, "joined": {"train__packs_per_micro_batch": 2}}, num_ranks=1)
    expected = metrics(runs["zero0"])
    assert len(expected) >= 12
    weights = newest_weights(runs["zero0"])
    for name, run_dir in runs.items():
        for found, truth in zip(metrics(run_dir), expected, strict=True):
            measured("losses of ZeRO 0 to 3 and of one rank, relative", abs(found["loss"] / truth["loss"] - 1))
            measured("gradient norms of the same, relative", abs(found["grad_norm"] / truth["grad_norm"] - 1))
            assert found["loss"] == pytest.approx(truth["loss"], rel=2e-6), name
            assert found["grad_norm"] == pytest.approx(truth["grad_norm"], rel=1e-4), name
            assert found["classes"].keys() == {"expert", "suboptimal"}
        model = export_and_load(run_dir)
        difference = logits_difference(run_dir, model)
        measured("logits of the export (alone) against the training model (packed), float32, absolute", difference)
        assert difference < 1e-5, name
        exported = model.state_dict()
        for key, value in newest_weights(run_dir).items():
            assert relative_error(value, weights[key]) < 2e-4, (name, key)
            assert torch.equal(exported[key], value), (name, key)
    assert expected[-1]["loss"] < expected[0]["loss"] - 0.5


def test_bfloat16_exports_are_the_weights_of_the_forward_pass(train: TrainFunction) -> None:
    """ZeRO 2 saves them unchanged, ZeRO 3 only as float32 master copies in pieces, which an export has to round.

    The two stages add up gradients in different orders, so on some processors a few weights are one step of bfloat16
    apart. The control, master copies cut off instead of rounded, differs everywhere.
    """
    short = {"model__precision": "bfloat16", "train__max_steps": 3}
    runs = train({f"bfloat16_{stage}": {**short, "deepspeed__zero_stage": stage} for stage in (1, 2, 3)})
    losses = [[line["loss"] for line in metrics(run_dir)] for run_dir in runs.values()]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    assert losses[2] == pytest.approx(losses[1], rel=2e-3)
    del runs["bfloat16_1"]
    weights = [export_and_load(run_dir).state_dict() for run_dir in runs.values()]
    assert all(value.dtype == torch.bfloat16 for value in weights[0].values())
    stage_2, stage_3 = (torch.cat([value.flatten() for value in state.values()]) for state in weights)
    assert bool(((stage_2.float() - stage_3.float()).abs() <= 2.0**-7 * stage_2.float().abs()).all())
    assert (stage_2 != stage_3).float().mean() < 1e-3
    [checkpoint] = (runs["bfloat16_3"] / "checkpoints").glob("step-*")
    masters = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=STATE)
    cut = torch.cat([masters[f"causal_lm.{name}"].flatten() for name in weights[0]]).view(torch.int16)[1::2]
    assert (cut.view(torch.bfloat16) != stage_2).float().mean() > 0.1
    trained = newest_weights(runs["bfloat16_2"])
    assert [name for name, value in trained.items() if not torch.equal(value, weights[0][name])] == []


def test_stage_2_adds_up_gradients_in_float32_whatever_the_recipe_says(train: TrainFunction) -> None:
    """So a run with `bfloat16` equals one with `float32` bit for bit. The control: under stage 1 it does not.

    Four packs per rank: the sum of two is rounded once either way.
    """
    short = {"model__precision": "bfloat16", "train__max_steps": 2, "train__tokens_per_step": 2048}
    runs = train(
        {
            f"{dtype}_{stage}": {**short, "train__gradient_dtype": dtype, "deepspeed__zero_stage": stage}
            for stage in (1, 2)
            for dtype in ("float32", "bfloat16")
        }
    )
    norms = {name: [line["grad_norm"] for line in metrics(run_dir)] for name, run_dir in runs.items()}
    assert norms["float32_2"] == norms["bfloat16_2"]
    assert norms["float32_1"] != norms["bfloat16_1"]


def test_heads_under_zero_3(train: TrainFunction, measured: Measured) -> None:
    """The loss reads weights of another module, which stage 3 must gather; gradients from all uses must arrive.

    Tied embeddings, also with soft-capped scores and logits (Gemma 2), and a head with a bias (Phi). The embedding of
    Gemma computes a scale that is not saved, as rotary frequencies are.
    """
    tied = {**TINY_MODEL, "tie_word_embeddings": True}
    capped = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 2.0, "sliding_window": 32}
    short = {
        "capped": {**tied, "model_type": "gemma2", **capped},
        "biased": {**TINY_MODEL, "model_type": "phi"},
    }
    cases: Runs = {}
    for name, config in {"tied": tied, **short}.items():
        changes = {"train__max_steps": 4 if name == "tied" else 2, "model__config": config}
        cases |= {f"{name}{stage}": {"deepspeed__zero_stage": stage, **changes} for stage in (0, 3)}
    # DeepSpeed's own linear function adds biases in place, into products that are kept
    cases["kept3"] = {**cases["biased3"], "model__activation_checkpointing": "matmuls"}
    runs = train({**cases, "gemma": {"train__max_steps": 2, "model__config": {**tied, "model_type": "gemma"}}})
    for name in ("tied", *short, "kept"):
        alone = runs["biased0" if name == "kept" else f"{name}0"]
        for found, truth in zip(metrics(runs[f"{name}3"]), metrics(alone), strict=True):
            assert found["loss"] == pytest.approx(truth["loss"], rel=2e-6)
            assert found["grad_norm"] == pytest.approx(truth["grad_norm"], rel=1e-4)
    biases = [newest_weights(runs[f"biased{stage}"])["lm_head.bias"] for stage in (0, 3)]
    assert relative_error(biases[1], biases[0]) < 2e-4
    assert biases[0].abs().max() > 0  # it was trained: it started from zeros
    for name in ("tied0", "tied3", "gemma"):
        model = export_and_load(runs[name])
        difference = logits_difference(runs[name], model)
        measured(
            "logits of the export (alone) against the training model (packed), float32, tied, absolute", difference
        )
        assert difference < 1e-5
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_resume_is_bit_equal_in_the_middle_of_an_epoch(train: TrainFunction, tmp_path: Path) -> None:
    """ZeRO 0 to 3 with dropout, so that random states count too; the control, of ZeRO 2, resumes without them."""
    changes = {"model__config": {**TINY_MODEL, "attention_dropout": 0.1}, "checkpoint__save_every_steps": 5}
    changes |= {"checkpoint__keep_last": 9, "train__max_steps": 8}
    straight = train({f"straight{stage}": {**changes, "deepspeed__zero_stage": stage} for stage in range(4)})
    assert metrics(straight["straight0"])[4]["epoch"] == 0
    again = {**{f"resumed{stage}": stage for stage in range(4)}, "control": 2}
    for name, stage in again.items():
        run_dir = shutil.copytree(straight[f"straight{stage}"], tmp_path / name)
        shutil.rmtree(run_dir / "checkpoints" / "step-00000008")
    give_fresh_random_states(tmp_path / "control" / "checkpoints" / "step-00000005")
    train({name: {**changes, "deepspeed__zero_stage": stage} for name, stage in again.items()})
    for stage in range(4):
        resumed, expected = (metrics(tmp_path / f"{kind}{stage}") for kind in ("resumed", "straight"))
        assert [line["step"] for line in resumed] == [line["step"] for line in expected] == list(range(1, 9))
        for key in ("loss", "learning_rate", "grad_norm", "epoch", "tokens", "classes"):
            assert [line[key] for line in resumed] == [line[key] for line in expected], (key, stage)
        weights = newest_weights(tmp_path / f"straight{stage}")
        assert all(
            torch.equal(value, weights[key]) for key, value in newest_weights(tmp_path / f"resumed{stage}").items()
        )
    control, expected = (metrics(tmp_path / name)[5:] for name in ("control", "straight2"))
    assert [line["loss"] for line in control] != [line["loss"] for line in expected]


def test_a_run_of_the_first_release_resumes_bit_equal(train: TrainFunction, tmp_path: Path) -> None:
    """Its checkpoints know no `train.plan`, and the recipe names none; the control takes the usual plan from the start.

    All conversations are in one window, where the plans differ.
    """
    changes: dict[str, Any] = {"checkpoint__save_every_steps": 2, "train__max_steps": 4, "deepspeed__zero_stage": 0}
    straight = train({"straight": {**changes, "train__plan": "first"}, "control": changes}, num_ranks=1)
    run_dir = shutil.copytree(straight["straight"], tmp_path / "resumed")
    shutil.rmtree(run_dir / "checkpoints" / "step-00000004")
    checkpoint = run_dir / "checkpoints" / "step-00000002"
    manifest = CheckpointManifest.load(checkpoint)
    del manifest.recipe["train"]["plan"]
    manifest.write(checkpoint)
    train({"resumed": changes}, num_ranks=1)
    resumed, control, expected = (metrics(tmp_path / name) for name in ("resumed", "control", "straight"))
    assert [line["loss"] for line in resumed] == [line["loss"] for line in expected]
    assert [line["loss"] for line in control] != [line["loss"] for line in expected]
    weights = newest_weights(tmp_path / "straight")
    assert all(torch.equal(value, weights[key]) for key, value in newest_weights(run_dir).items())
    assert json.loads((run_dir / "recipe.json").read_text(encoding="utf-8"))["train"]["plan"] == "first"


def test_another_number_of_ranks_or_stage_goes_on_with_the_same_steps(
    train: TrainFunction, tmp_path: Path, measured: Measured
) -> None:
    """2 -> 1 -> 2 ranks in float32 and bfloat16, and ZeRO 1 -> 2: the same conversations in every step, the same
    losses.
    """
    changes = {"train__max_steps": 9, "checkpoint__save_every_steps": 3, "checkpoint__keep_last": 9}
    cases = {
        "ranks2": {"deepspeed__zero_stage": 2},
        "ranks3": {"deepspeed__zero_stage": 3},
        "stage1": {"deepspeed__zero_stage": 1},
        "bfloat16": {"deepspeed__zero_stage": 2, "model__precision": "bfloat16"},
        "bfloat16_stage1": {"deepspeed__zero_stage": 1, "model__precision": "bfloat16"},
    }
    straight = train({f"straight_{name}": {**changes, **case} for name, case in cases.items()})
    for name in cases:
        shutil.copytree(straight[f"straight_{name}"], tmp_path / name)
        forget_checkpoints(tmp_path / name, 6, 9)
    train({name: {**changes, **case} for name, case in cases.items()}, num_ranks=1)
    for name in cases:
        check_same_steps(tmp_path / name, straight[f"straight_{name}"], measured)
        forget_checkpoints(tmp_path / name, 9)
    cases["stage1"]["deepspeed__zero_stage"] = 2
    train({name: {**changes, **case} for name, case in cases.items()})
    for name in cases:
        check_same_steps(tmp_path / name, straight[f"straight_{name}"], measured)
        assert not list((tmp_path / name / "checkpoints").glob(".universal*"))


def test_parameters_in_many_groups_take_the_same_steps_and_resume(tmp_path: Path, make_recipe: RecipeFactory) -> None:
    """Large models are updated in groups; here groups of 3,000 elements, against one, and resumed in the middle."""
    changes = {"deepspeed__zero_stage": 1, "train__max_steps": 6, "checkpoint__save_every_steps": 3}
    recipes = {}
    for name in ("one", "many", "resumed"):
        recipe = make_recipe(output_dir=str(tmp_path / name), **changes)
        prepare_recipe(load_recipe(recipe), num_workers=1, progress=lambda rows: None)
        recipes[name] = recipe.rename(tmp_path / f"{name}.yaml")
    many = {"group_elements": 3000}
    _, codes = run_jobs({"command": ["train", recipes["one"]]}, {"command": ["train", recipes["many"]], **many})
    assert codes == [0, 0]
    shutil.copytree(tmp_path / "many", tmp_path / "resumed")
    forget_checkpoints(tmp_path / "resumed", 6)
    _, codes = run_jobs({"command": ["train", recipes["resumed"]], **many})
    assert codes == [0, 0]
    weights = {name: newest_weights(tmp_path / name) for name in recipes}
    assert relative_error(flat(weights["many"]), flat(weights["one"])) < 1e-5
    assert all(torch.equal(value, weights["resumed"][name]) for name, value in weights["many"].items())


def forget_checkpoints(run_dir: Path, *steps: int) -> None:
    for step in steps:
        shutil.rmtree(run_dir / "checkpoints" / f"step-{step:08d}", ignore_errors=True)


def check_same_steps(run_dir: Path, expected_dir: Path, measured: Measured) -> None:
    bound = 2e-3 if "bfloat16" in run_dir.name else 2e-6
    for found, expected in zip(metrics(run_dir), metrics(expected_dir), strict=True):
        for key in ("step", "epoch", "tokens", "supervised_tokens", "weight", "learning_rate"):
            assert found[key] == expected[key], key
        error = abs(found["loss"] / expected["loss"] - 1)
        measured(f"losses on other ranks and stages after resuming, {'bfloat16' if bound > 1e-3 else 'float32'}", error)
        assert error < bound, (run_dir.name, found["step"])
    assert relative_error(*(flat(newest_weights(run)) for run in (run_dir, expected_dir))) < bound


def test_a_broken_checkpoint_is_passed_over_and_another_recipe_is_refused(
    tmp_path: Path, make_recipe: RecipeFactory
) -> None:
    changes: dict[str, Any] = {"checkpoint__save_every_steps": 5, "checkpoint__keep_last": 9, "train__max_steps": 10}
    recipe = make_recipe(**changes)
    prepare_recipe(load_recipe(recipe), num_workers=1, progress=lambda rows: None)
    recipe = recipe.rename(tmp_path / "first.yaml")
    train_on_ranks(["train", recipe, "--resume", "never"], num_ranks=1)  # in a folder that does not exist yet
    checkpoints = tmp_path / "run" / "checkpoints"
    shard = next((checkpoints / "step-00000010" / "state").glob("*optim_states.pt"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    before = metrics(tmp_path / "run")
    other = make_recipe(**{**changes, "optimizer__learning_rate": 0.001})
    commands = [
        ["train", recipe],
        ["train", other],
        ["train", other, "--accept-changes"],
        ["train", other, "--resume", "never"],
    ]
    [output], _ = run_jobs(*({"command": command} for command in commands), num_ranks=1)
    assert [line for line in output.splitlines() if line.startswith("exit code")] == [
        f"exit code {code}" for code in (0, 2, 0, 0)
    ]
    again, refused, accepted, fresh = output.split("exit code")[:4]
    assert (
        "step-00000010 is not intact: state/zero_pp_rank_0_mp_rank_00_optim_states.pt has changed since it was written"
        in again
    )
    assert re.search(r"resumes from \S+step-00000005", again)
    assert (tmp_path / "run.previous-1" / "checkpoints" / "aside-1-step-00000010").is_dir()
    assert [line["loss"] for line in metrics(tmp_path / "run.previous-1")] == [line["loss"] for line in before]
    assert (tmp_path / "run.previous-1" / "checkpoints" / "LATEST").read_text().strip() == "step-00000010"
    assert "changed since this checkpoint was written: optimizer.learning_rate (0.003 -> 0.001)" in refused
    assert "or accept the change with `--accept-changes`" in refused
    assert "resuming with accepted changes: optimizer.learning_rate (0.003 -> 0.001)" in accepted
    assert "the earlier run is moved to" in fresh
    assert len(metrics(tmp_path / "run")) == 10
    assert "Traceback" not in output


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


def test_one_rank_reads_the_raw_sources_for_all(tmp_path: Path, make_recipe: RecipeFactory) -> None:
    """Reading them takes a second per GB: rank 0 opens each to see that it may be read, and to read it. If they have
    changed, all ranks stop with one message.
    """
    recipe = make_recipe(train__max_steps=1)
    prepare_recipe(load_recipe(recipe), num_workers=1, progress=lambda rows: None)
    sources = [tmp_path / "expert.jsonl", tmp_path / "suboptimal.jsonl"]
    job = {"command": ["train", recipe], "count_reads": [str(path) for path in sources]}
    outputs, codes = run_jobs(job)
    assert codes == [0, 0], outputs[0][-4000:]
    for output, num_reads in zip(outputs, (2, 0), strict=True):
        for path in sources:
            assert f"opened {num_reads} times: {path}" in output
    with sources[0].open("a") as file:
        file.write(sources[0].read_text().splitlines()[0].replace("Question 0", "Question X") + "\n")
    outputs, codes = run_jobs(job)
    assert codes == [2, 2]
    message = f"data.prepared_dir: {tmp_path}/prepared was prepared from other sources than this recipe"
    assert [message in output for output in outputs] == [True, False], "rank 0 speaks for all"


def test_training_on_a_cpu_needs_no_compiler(tmp_path: Path, make_recipe: RecipeFactory) -> None:
    """DeepSpeed would build an extension for a minute, and fail where there is no compiler or no ninja."""
    recipe = make_recipe(train__max_steps=1)
    prepare_recipe(load_recipe(recipe), num_workers=1, progress=lambda rows: None)
    extensions = tmp_path / "extensions"
    found = ochat("train", str(recipe), PATH="", CUDA_VISIBLE_DEVICES="", TORCH_EXTENSIONS_DIR=str(extensions))
    assert found.returncode == 0, found.stderr
    assert len(metrics(tmp_path / "run")) == 1
    assert not extensions.exists()


def test_export_and_generate(tmp_path: Path, make_recipe: RecipeFactory, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder holds no path of this machine, loads in transformers, answers, and is never overwritten unasked."""
    import transformers

    recipe = make_recipe(train__max_steps=2)
    prepare_recipe(load_recipe(recipe), num_workers=1, progress=lambda rows: None)
    train_on_ranks(["train", recipe], num_ranks=1)
    out = tmp_path / "export"
    exported = ochat("export", str(tmp_path / "run"), "--out", str(out))
    assert exported.returncode == 0, exported.stderr
    text = (
        (out / "ochat.json").read_text()
        + (out / "config.json").read_text()
        + (out / "tokenizer_config.json").read_text()
    )
    assert str(tmp_path) not in text
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|end_of_turn|>")
    row = json.loads(ochat("inspect", str(tmp_path / "prepared"), "--rows", "0:1", "--json").stdout)
    messages = [{"role": "user", "content": "Question 0.0: how are you?"}]
    prompt = tokenizer.apply_chat_template(
        messages, condition="GPT4 Correct", add_generation_prompt=True, return_dict=False
    )
    assert row["input_ids"][: len(prompt)] == prompt
    answered = ochat(
        "generate", str(out), "--prompt", "Hello", "--condition", "GPT3", "--max-new-tokens", "4", "--json"
    )
    assert json.loads(answered.stdout)["condition"] == "GPT3"
    assert "warning" not in answered.stderr
    misspelt = ochat("generate", str(out), "--prompt", "Hello", "--condition", "GPT4 Corect", "--max-new-tokens", "4")
    assert "no class was trained under 'GPT4 Corect'; trained: 'GPT4 Correct', 'GPT3'" in misspelt.stderr
    assert misspelt.returncode == 2
    assert main(["export", str(tmp_path / "run"), "--out", str(out)]) == 2
    assert "`--overwrite`" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "run"), "--out", str(out), "--overwrite"]) == 0
