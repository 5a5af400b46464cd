"""Validation in real runs: right figures on any number of ranks, nothing of training touched, the best checkpoint
kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.errors import UserError
from data_pipeline.prepared.dataset import Manifest, PreparedSplit
from ochat_train.checkpoint.state import CheckpointManifest, best_checkpoint, list_checkpoints
from ochat_train.evaluation.inputs import validation_inputs
from ochat_train.evaluation.results import Sample, Validation
from ochat_train.export.export import export, export_checkpoint
from ochat_train.export.trained import load_trained_weights
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import prepare_recipe
from ochat_train.runs.folder import read_run_folder
from tests.support.processes import ochat, train_on_ranks
from tests.support.rows import write_jsonl
from tests.support.small_recipe import TINY_MODEL, RecipeFactory

Lines = list[dict[str, Any]]
HELD_OUT: dict[str, Any] = {"data__validation_ratio": 0.4, "train__epochs": 2, "validation__sample_tokens": 4}
STEPS = 6
DROPOUT = {"model__config": {**TINY_MODEL, "attention_dropout": 0.1}}


@pytest.fixture
def train_all(tmp_path: Path, make_recipe: RecipeFactory) -> Callable[..., list[Path]]:
    """Prepares and trains recipes (name -> changes) on ranks that are started once; returns their run folders."""

    def run(runs: dict[str, dict[str, Any]], *arguments: str, num_ranks: int = 2) -> list[Path]:
        commands: list[list[Any]] = []
        for name, changes in runs.items():
            own = {"output_dir": str(tmp_path / name), "data__prepared_dir": str(tmp_path / f"{name}-prepared")}
            recipe = make_recipe(**{**own, **HELD_OUT, "train__max_steps": STEPS, **changes})
            prepare_recipe(load_recipe(recipe), num_workers=1, progress=lambda rows: None)
            commands.append(["train", recipe.rename(tmp_path / f"{name}.yaml"), *arguments])
        train_on_ranks(*commands, num_ranks=num_ranks)
        return [tmp_path / name for name in runs]

    return run


@pytest.fixture
def train(train_all: Callable[..., list[Path]]) -> Callable[..., Path]:
    """Prepares and trains one recipe; returns its run folder."""

    def run(name: str, *arguments: str, num_ranks: int = 2, **changes: Any) -> Path:
        return train_all({name: changes}, *arguments, num_ranks=num_ranks)[0]

    return run


def lines(run_dir: Path, name: str = "validation.jsonl") -> Lines:
    return [json.loads(line) for line in (run_dir / name).read_text().splitlines()]


def exported(run_dir: Path) -> tuple[Any, Any]:
    import transformers

    out = export(run_dir, run_dir / "export", step=None, max_shard_size="5GB")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float64, attn_implementation="eager"
    ).eval()
    return model, transformers.AutoTokenizer.from_pretrained(out)


@torch.no_grad()
def nll_and_accuracy(model: Any, ids: list[int], weights: list[float]) -> tuple[float, float, int]:
    """Sums of one conversation alone, in float64, without any code under test."""
    logits = model(torch.tensor([ids])).logits[0, :-1]
    targets, supervised = torch.tensor(ids[1:]), torch.tensor(weights[1:]) > 0
    nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")[supervised]
    return float(nll.sum()), float((logits.argmax(-1) == targets)[supervised].sum()), int(supervised.sum())


@pytest.mark.parametrize(
    ("num_ranks", "changes"), [(1, {}), (2, {"deepspeed__zero_stage": 3}), (2, {"train__tokens_per_step": 256})]
)
def test_figures_are_those_of_each_conversation_alone(train: Any, num_ranks: int, changes: dict[str, Any]) -> None:
    run = train("run", num_ranks=num_ranks, **changes)
    found = lines(run)[-1]
    model, _ = exported(run)
    recipe = load_recipe(run.with_suffix(".yaml"))
    folder = Path(recipe.data.prepared_dir)
    manifest = Manifest.load(folder)
    assert manifest is not None
    validation, others = PreparedSplit(folder, "validation"), PreparedSplit(folder, "conditions")
    by_class: dict[str, list[tuple[float, float, int]]] = {"expert": [], "suboptimal": []}
    matrix: dict[tuple[str, str], list[float]] = {}
    for split, rows in ((validation, range(len(validation))), (others, range(len(others)))):
        for row in rows:
            tokens = split[row]
            sums = nll_and_accuracy(model, tokens.input_ids.tolist(), tokens.loss_weights.tolist())
            name, condition = manifest.classes[split.class_id[row]].name, manifest.conditions[split.condition_id[row]]
            matrix.setdefault((name, condition), []).append(sums[0])
            if split is validation:
                by_class[name].append(sums)
    weighted = weight = 0.0
    for name, sums in by_class.items():
        nll, correct, count = (sum(column) for column in zip(*sums, strict=True))
        assert found["classes"][name]["nll"] == pytest.approx(nll / count, rel=1e-5)
        assert found["classes"][name]["loss"] == pytest.approx(nll / count, rel=1e-5), "one weight in a class"
        assert found["classes"][name]["accuracy"] == pytest.approx(correct / count)
        assert found["classes"][name]["supervised_tokens"] == count
        assert found["classes"][name]["conversations"] == len(sums) > 3
        for column, condition in enumerate(found["conditions"]):
            assert found["matrix"][name][column] == pytest.approx(sum(matrix[name, condition]) / count, rel=1e-5)
        class_weight = 1.0 if name == "expert" else 0.1
        weighted, weight = weighted + class_weight * nll, weight + class_weight * count
    assert found["loss"] == pytest.approx(weighted / weight, rel=1e-5)
    assert found["step"] == STEPS
    assert Validation.from_json(found).to_json() == found
    samples = lines(run, "samples.jsonl")
    assert [Sample.from_json(sample).to_json() for sample in samples] == samples
    assert found["matrix"]["expert"][0] != found["matrix"]["expert"][1], "control: conditions change the figures"


def test_validation_and_samples_leave_training_as_it_is(train_all: Any) -> None:
    """With dropout on, bit for bit; the control with another seed differs."""
    often, never, other = train_all(
        {
            "often": {"validation__every_steps": 1, **DROPOUT},
            "never": {"validation__every_steps": 100, "validation__sample_tokens": 0, **DROPOUT},
            "other": {"seed": 2, **DROPOUT},
        }
    )
    weights = [load_trained_weights(list_checkpoints(run)[-1]) for run in (often, never, other)]
    assert len(lines(often)) == STEPS
    assert len(lines(never)) == 1, "at the end, before the checkpoint"
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_no_validation_split_means_no_validation(train: Any) -> None:
    run = train("run", num_ranks=1, data__validation_ratio=0.0)
    assert lines(run) == []
    assert lines(run, "samples.jsonl") == []
    with pytest.raises(UserError, match=r"--step best: no checkpoint of .* was validated"):
        export(run, run / "export", step="best", max_shard_size="5GB")


def test_resumed_run_has_the_lines_of_an_uninterrupted_one(train: Any) -> None:
    whole = train("whole", validation__every_steps=2, checkpoint__save_every_steps=3)
    recipe = whole.with_suffix(".yaml")
    before = [{k: v for k, v in line.items() if k != "seconds"} for line in lines(whole)]
    samples = lines(whole, "samples.jsonl")
    assert [line["step"] for line in before] == [2, 3, 4, 6], "every second step, and before checkpoints"
    newest = list_checkpoints(whole)[-1]
    newest.rename(newest.with_name("away"))
    train_on_ranks(["train", recipe])
    assert [{k: v for k, v in line.items() if k != "seconds"} for line in lines(whole)] == before
    assert lines(whole, "samples.jsonl") == samples


def test_best_checkpoint_is_kept_and_exported(train: Any) -> None:
    """A learning rate that is far too high after a good start: the loss rises, and an early checkpoint stays the
    best.
    """
    run = train(
        "run",
        num_ranks=1,
        optimizer__learning_rate=0.3,
        optimizer__warmup_ratio=0.9,
        checkpoint__save_every_steps=1,
        checkpoint__keep_last=1,
    )
    losses = {line["step"]: line["loss"] for line in lines(run)}
    best = min(losses, key=lambda step: losses[step])
    assert best < STEPS, losses
    kept = [CheckpointManifest.load(folder) for folder in list_checkpoints(run)]
    assert [(manifest.step, manifest.validation_loss) for manifest in kept] == [
        (step, losses[step]) for step in (best, STEPS)
    ]
    assert best_checkpoint(list_checkpoints(run)) == list_checkpoints(run)[0]
    out = export(run, run / "best", step="best", max_shard_size="5GB")
    mark = json.loads((out / "ochat.json").read_text())
    assert mark["step"] == best
    direct = export_checkpoint(read_run_folder(run), list_checkpoints(run)[0], run / "direct")
    assert json.loads((direct / "ochat.json").read_text()) == mark, "the checkpoint in hand, without a search"
    other = export_checkpoint(read_run_folder(run), list_checkpoints(run)[1], run / "direct", overwrite=True)
    assert json.loads((other / "ochat.json").read_text())["step"] == STEPS


def test_answers_are_those_of_greedy_generation(train: Any) -> None:
    """Three prompts by a user, and the control: another prompt gets another answer."""
    prompts = ["Question 1.0: how are you?", "Hello there.\n ", "42"]
    run = train(
        "run",
        "--set",
        f"validation.prompts={json.dumps(prompts)}",
        "--set",
        "validation.sample_tokens=12",
        optimizer__learning_rate=0.01,
        train__max_steps=12,
    )
    model, tokenizer = exported(run)
    model = model.float()
    samples = lines(run, "samples.jsonl")[-3:]
    assert [sample["prompt"] for sample in samples] == prompts
    texts = set()
    for sample in samples:
        assert [answer["condition"] for answer in sample["answers"]] == ["GPT4 Correct", "GPT3"]
        for answer in sample["answers"]:
            ids = tokenizer.apply_chat_template(
                [{"role": "user", "content": sample["prompt"]}],
                condition=answer["condition"],
                add_generation_prompt=True,
                return_dict=False,
            )
            new = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :].tolist()
            assert answer["finished"] == (tokenizer.eos_token_id in new)
            assert answer["text"] == tokenizer.decode(new, skip_special_tokens=True).removeprefix(" ")
            texts.add(answer["text"])
    assert len(texts) > 1


def test_held_out_prompts_stop_before_the_answer(train: Any) -> None:
    run = train("run", num_ranks=1)
    samples = lines(run, "samples.jsonl")
    assert len(samples) == 3
    for sample in samples:
        assert re.fullmatch(r"User: Question [0-9.]+: how are you\?\nAssistant:", sample["prompt"])
        assert [answer["condition"] for answer in sample["answers"]] == ["GPT4 Correct", "GPT3"]


def test_a_question_of_both_classes_is_one_prompt(make_recipe: RecipeFactory) -> None:
    """Both classes answered the same questions: two prompts, though four conversations are held out."""
    path = make_recipe(data__validation_ratio=0.35)
    for name in ("expert", "suboptimal"):
        rows = [
            {"messages": [{"role": "user", "content": f"Why {number}?"}, {"role": "assistant", "content": name}]}
            for number in range(6)
        ]
        write_jsonl(path.parent / f"{name}.jsonl", rows)
    recipe = load_recipe(path)
    manifest, _ = prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
    assert manifest.splits["validation"].conversations == 4
    texts = [prompt.text for prompt in validation_inputs(recipe, manifest).prompts]
    assert len(texts) == 2
    assert len(set(texts)) == 2


def test_prompt_that_does_not_fit_is_an_error(make_recipe: RecipeFactory) -> None:
    recipe = make_recipe(**HELD_OUT, validation__prompts=["short", "long " * 300])
    assert ochat("prepare", str(recipe)).returncode == 0
    found = ochat("train", str(recipe))  # in a separate process: joining a process group changes the environment
    assert found.returncode == 2
    assert "validation.prompts.1: " in found.stderr
