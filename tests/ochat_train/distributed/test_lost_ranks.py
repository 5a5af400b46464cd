"""Ranks that are killed, stopped or in error: nothing is lost, nobody waits for ever, nobody is left behind."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from ochat_train.checkpoint.state import list_checkpoints
from ochat_train.system import exits
from tests.support.disturbed_runs import prepared
from tests.support.faults import kill_and_resume, num_steps, same_run, start_slow_run
from tests.support.processes import finish, start_ranks
from tests.support.small_recipe import RecipeFactory
from tests.support.waiting import wait_for

# ---- kill ----


def test_a_run_that_is_killed_twice_ends_like_one_that_is_not(
    undisturbed: Path, tmp_path: Path, make_recipe: RecipeFactory
) -> None:
    recipe = prepared(make_recipe, tmp_path / "run")
    kills = kill_and_resume(recipe, tmp_path / "run", kills=2, rng=random.Random(5))
    assert same_run(tmp_path / "run", undisturbed)
    assert {kill["rank"] for kill in kills} == {0, 1}, "each rank is killed once"
    for kill in kills:
        survivor = 1 - kill["rank"]
        assert kill["exit_codes"][kill["rank"]] == -signal.SIGKILL
        assert kill["exit_codes"][survivor] in (exits.LOST_RANKS, -signal.SIGKILL), kill


# ---- ranks that die or hang ----


@pytest.mark.parametrize(
    ("fault", "codes", "said"),
    [
        ({"do": "kill"}, {exits.LOST_RANKS, -signal.SIGKILL}, "rank 1 has ended or is stopped, last seen"),
        (
            {"do": "stop"},
            {exits.LOST_RANKS, -signal.SIGKILL},
            "no progress for 10 s (train.hang_timeout_seconds)",
        ),
    ],
    ids=lambda value: value.get("do", "") if isinstance(value, dict) else "",
)
def test_a_rank_that_is_gone_or_hangs_is_named_and_ends_the_run(
    fault: dict[str, Any], codes: set[int], said: str, tmp_path: Path, make_recipe: RecipeFactory
) -> None:
    timeout = 10.0 if fault["do"] == "stop" else 120.0
    recipe = prepared(make_recipe, tmp_path / "run", train__hang_timeout_seconds=timeout, train__max_steps=8)
    jobs = [{"command": ["train", str(recipe)], "fault": {"rank": 1, "step": 5, **fault}}]
    ranks = start_ranks("tests.support.train_worker", json.dumps(jobs), num_ranks=2)
    output = ranks[0].communicate(timeout=120)[0]
    if ranks[1].poll() is None:
        ranks[1].kill()  # a stopped rank is the launcher's to kill
    ranks[1].communicate()
    assert {ranks[0].returncode, ranks[1].returncode} == codes, output[-3000:]
    assert said in output
    assert "at step 5, training" in output
    assert "restart to resume from the newest checkpoint" in output
    assert "Traceback" not in output
    assert list_checkpoints(tmp_path / "run")[-1].name == "step-00000003"


def test_a_rank_without_memory_says_so_itself(tmp_path: Path, make_recipe: RecipeFactory) -> None:
    recipe = prepared(make_recipe, tmp_path / "run", train__max_steps=8)
    fault = {"rank": 1, "step": 5, "do": "out_of_memory"}
    jobs = [{"command": ["train", str(recipe)], "fault": fault}]
    ranks = start_ranks("tests.support.train_worker", json.dumps(jobs), num_ranks=2)
    outputs, codes = finish(ranks, seconds=120)
    assert codes == [exits.LOST_RANKS, exits.USER_ERROR], outputs
    assert "rank 1 has ended or is stopped, last seen" in outputs[0]
    assert "at step 5, training" in outputs[0]
    assert "Traceback" not in outputs[0]
    assert "ochat train: GPU memory: more was needed than the" in outputs[1]
    assert (
        "next safer: model.activation_checkpointing: {layers: 1}, and start again (CUDA out of memory. Tried"
        in outputs[1]
    )
    assert "Traceback" not in outputs[1]
    assert list_checkpoints(tmp_path / "run")[-1].name == "step-00000003"


def test_two_runs_never_share_a_folder(tmp_path: Path, make_recipe: RecipeFactory) -> None:
    recipe = prepared(make_recipe, tmp_path / "run")
    first = start_slow_run(recipe, num_ranks=1)
    wait_for(lambda: num_steps(tmp_path / "run") > 0, seconds=60)
    for arguments in ([], ["--resume", "never"]):
        [output], [code] = finish(start_slow_run(recipe, *arguments, num_ranks=1))
        assert code == exits.USER_ERROR
        assert "another process trains there" in output
    assert not (tmp_path / "run.previous-1").exists()
    os.kill(first[0].pid, signal.SIGKILL)
    finish(first)
