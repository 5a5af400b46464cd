"""NaN, infinity and spikes on one rank: no rank updates, the conversations are named, the run stops after some in a
row.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch

from data_pipeline.plan.plan import deal
from data_pipeline.prepared.dataset import PreparedSplit
from ochat_train.checkpoint.state import CheckpointManifest, Progress, checkpoint_dir
from ochat_train.export.trained import load_trained_weights
from ochat_train.planning.steps import training_plan
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import prepare_recipe
from ochat_train.training.anomalies import SPIKE_FACTOR, progressed
from tests.support.processes import run_jobs
from tests.support.run_folder import metrics
from tests.support.small_recipe import RecipeFactory

FAULTY_STEP = 2
CASES = {
    "nan_weight_0": {"do": "nan_weight", "deepspeed__zero_stage": 0},
    "nan_weight_1": {"do": "nan_weight", "deepspeed__zero_stage": 1},
    "nan_weight_2": {"do": "nan_weight", "deepspeed__zero_stage": 2},
    "nan_weight_3": {"do": "nan_weight", "deepspeed__zero_stage": 3},
    "nan_weight_bfloat16_1": {"do": "nan_weight", "deepspeed__zero_stage": 1, "model__precision": "bfloat16"},
    "nan_weight_bfloat16_2": {"do": "nan_weight", "deepspeed__zero_stage": 2, "model__precision": "bfloat16"},
    "infinite_weight_2": {"do": "infinite_weight", "deepspeed__zero_stage": 2},
    "nan_gradient_0": {"do": "nan_gradient", "deepspeed__zero_stage": 0},
    "nan_gradient_2": {"do": "nan_gradient", "deepspeed__zero_stage": 2},
    "nan_gradient_3": {"do": "nan_gradient", "deepspeed__zero_stage": 3},
}


def test_a_step_that_is_not_finite_on_one_rank_updates_nothing(tmp_path: Path, make_recipe: RecipeFactory) -> None:
    jobs = []
    for name, changes in CASES.items():
        changes = {"train__max_steps": 4, **changes}
        fault = {"rank": 1, "step": FAULTY_STEP, "do": changes.pop("do")}
        jobs.append(
            {
                "command": ["train", recipe_named(name, tmp_path, make_recipe, **changes)],
                "fault": fault,
            }
        )
    outputs, codes = run_jobs(*jobs)
    assert codes == [0, 0], outputs[0][-6000:]
    for name, changes in CASES.items():
        run_dir = tmp_path / name
        lines = metrics(run_dir)
        assert [line["step"] for line in lines] == [1, 2, 3, 4], name
        assert [line["nonfinite_steps"] for line in lines] == [0, 1, 1, 1], name
        assert [line["grad_norm"] is None for line in lines] == [False, True, False, False], name
        assert (lines[1]["loss"] is None) == ("gradient" not in changes["do"]), name
        before, after, later = (load_trained_weights(checkpoint_dir(run_dir, step)) for step in (1, 2, 3))
        assert all(torch.equal(value, after[key]) for key, value in before.items()), name
        assert any(not torch.equal(value, later[key]) for key, value in before.items()), name
        assert all(value.isfinite().all() for value in later.values()), name
        [anomaly] = read_anomalies(run_dir)
        assert (anomaly["event"], anomaly["step"]) == ("nonfinite", FAULTY_STEP)
        assert [rank["rank"] for rank in anomaly["ranks"]] == [0, 1]
        finite = [[pack["loss_is_finite"] for pack in rank["packs"]] for rank in anomaly["ranks"]]
        assert finite == [[True, True], [True, "gradient" in changes["do"]]], name
        if "gradient" not in changes["do"]:
            assert anomaly["ranks"][1]["packs"][1]["conversations"] == conversations_of(
                tmp_path / f"{name}.yaml", rank=1, pack=1
            )
    assert "the loss is not finite on rank 1, pack 1 (" in outputs[0]
    assert (
        "all losses are finite, but the gradient is not; the model was not updated (1 in a row, 1 in all)" in outputs[0]
    )


def test_all_packs_of_a_micro_batch_that_is_not_finite_are_named(tmp_path: Path, make_recipe: RecipeFactory) -> None:
    """Two micro-batches of two packs: a weight that is NaN in the second one can be in pack 2 or in pack 3."""
    recipe = recipe_named("joined", tmp_path, make_recipe, train__packs_per_micro_batch=2)
    fault = {"rank": 0, "step": FAULTY_STEP, "do": "nan_weight"}
    [output], codes = run_jobs({"command": ["train", recipe], "fault": fault}, num_ranks=1)
    assert codes == [0], output[-6000:]
    [anomaly] = read_anomalies(tmp_path / "joined")
    [rank] = anomaly["ranks"]
    assert [pack["loss_is_finite"] for pack in rank["packs"]] == [True, True, False, False]
    expected = [conversations_of(recipe, rank=0, pack=pack, num_ranks=1) for pack in range(4)]
    assert [pack["conversations"] for pack in rank["packs"]] == expected
    assert re.search(r"the loss is not finite on rank 0, pack 2 \(.+\); rank 0, pack 3 \(", output)


def test_too_many_in_a_row_stop_the_run_and_a_spike_is_named(tmp_path: Path, make_recipe: RecipeFactory) -> None:
    in_a_row = {"rank": 1, "step": 3, "times": 3, "do": "nan_weight"}
    spike = {"rank": 0, "step": 11, "do": "large_gradient"}
    outputs, codes = run_jobs(
        {
            "command": ["train", recipe_named("in_a_row", tmp_path, make_recipe, train__max_nonfinite_steps=3)],
            "fault": in_a_row,
        },
        {"command": ["train", recipe_named("spike", tmp_path, make_recipe, train__max_steps=12)], "fault": spike},
    )
    assert codes == [0, 0], outputs[0][-6000:]
    assert [line for line in outputs[1].splitlines() if line.startswith("exit code")] == ["exit code 2", "exit code 0"]
    assert "step 5: loss or gradient was not finite 3 times in a row (train.max_nonfinite_steps)" in outputs[0]
    newest = checkpoint_dir(tmp_path / "in_a_row", 4)
    assert not checkpoint_dir(tmp_path / "in_a_row", 5).exists()
    assert all(value.isfinite().all() for value in load_trained_weights(newest).values())
    assert CheckpointManifest.load(newest).progress.nonfinite_in_a_row == 2
    [anomaly] = read_anomalies(tmp_path / "spike")
    assert (anomaly["event"], anomaly["step"]) == ("spike", 11)
    assert "step 11: gradient norm" in outputs[0]


def test_the_history_of_gradient_norms() -> None:
    """A spike is 10 times the median of at least 8 norms; a spike joins the history as the limit, NaN does not."""
    progress = Progress()
    for norm in [1.0, 2.0, 3.0, 2.0] * 2:
        progress, anomaly = progressed(progress, norm)
        assert anomaly is None
    _, at_the_border = progressed(progress, 2.0 * SPIKE_FACTOR)
    assert at_the_border is None
    after, anomaly = progressed(progress, 1e9)
    assert anomaly == "spike"
    assert after.grad_norms == (*progress.grad_norms, 2.0 * SPIKE_FACTOR)
    for bad in (math.nan, math.inf):
        before, (after, anomaly) = after, progressed(after, bad)
        assert anomaly == "nonfinite"
        assert after.grad_norms == before.grad_norms
    assert (after.step, after.nonfinite_steps, after.nonfinite_in_a_row) == (11, 2, 2)
    after, anomaly = progressed(after, 2.0 * SPIKE_FACTOR * 1.01)  # neither the spike nor NaN has made the test blind
    assert anomaly == "spike"
    assert after.nonfinite_in_a_row == 0
    kinds = []
    for _ in range(100):
        after, anomaly = progressed(after, 50.0)
        kinds.append(anomaly)
    assert kinds[0] == "spike"
    assert kinds[-50:] == [None] * 50, "a level that stays is no longer a spike"
    assert len(after.grad_norms) == 64


def recipe_named(name: str, tmp_path: Path, make_recipe: RecipeFactory, **changes: Any) -> Path:
    short = {"train__max_steps": 6, "checkpoint__save_every_steps": 1, "checkpoint__keep_last": 99, **changes}
    path = make_recipe(output_dir=str(tmp_path / name), **short)
    prepare_recipe(load_recipe(path), num_workers=1, progress=lambda rows: None)
    return path.rename(tmp_path / f"{name}.yaml")


def read_anomalies(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "anomalies.jsonl").read_text().splitlines()]


def conversations_of(recipe_path: Path, *, rank: int, pack: int, num_ranks: int = 2) -> list[str]:
    """Conversation ids of a rank's pack in the faulty step, from the plan."""
    recipe = load_recipe(recipe_path)
    split = PreparedSplit(Path(recipe.data.prepared_dir), "train")
    plan = training_plan(recipe, split).epoch(0)
    number = deal(plan, FAULTY_STEP - 1, num_ranks=num_ranks)[rank, pack]
    return [split.conversation_id(int(row)) for row in plan.rows(int(number))]
