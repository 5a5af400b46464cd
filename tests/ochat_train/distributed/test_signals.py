"""SIGTERM and Ctrl-C, to a rank and to the launcher: one checkpoint, the documented exit code, nobody left behind."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil
import pytest
import torch

from ochat_train.checkpoint.state import list_checkpoints, verify
from ochat_train.distributed import stop_request
from ochat_train.distributed.launch import free_port
from ochat_train.distributed.stop_request import StopRequest
from ochat_train.system import exits
from tests.support.disturbed_runs import prepared
from tests.support.faults import num_steps, release, same_run, start_slow_run
from tests.support.processes import finish, process_environment, start_ranks, train_on_ranks
from tests.support.rank_processes import start_rank, wait_for_output
from tests.support.run_folder import metrics
from tests.support.small_recipe import RecipeFactory
from tests.support.waiting import wait_for


def stopped_and_resumed(recipe: Path, run_dir: Path, undisturbed: Path, step: int) -> None:
    """One checkpoint at the step that was said, and a restart that ends like the undisturbed run."""
    newest = list_checkpoints(run_dir)[-1]
    assert newest.name == f"step-{step:08d}"
    assert verify(newest) is None
    assert len(metrics(run_dir)) == step
    train_on_ranks(["train", recipe])
    assert same_run(run_dir, undisturbed)


def test_sigterm_to_one_rank_stops_all_at_the_same_step(
    undisturbed: Path, tmp_path: Path, make_recipe: RecipeFactory
) -> None:
    recipe = prepared(make_recipe, tmp_path / "run")
    ranks = start_slow_run(recipe)
    wait_for(lambda: num_steps(tmp_path / "run") >= 4, seconds=60)
    ranks[1].terminate()
    release(recipe)
    outputs, codes = finish(ranks)
    assert codes == [exits.STOPPED] * 2, outputs
    said = outputs[0].split("stopped by a signal to another rank after step ")[1]
    stopped_and_resumed(recipe, tmp_path / "run", undisturbed, int(said.split()[0]))


def test_a_signal_in_a_validation_leaves_it_out(undisturbed: Path, tmp_path: Path, make_recipe: RecipeFactory) -> None:
    """Its answers would take half a minute. The signal goes to the rank that does not print; both stop."""
    recipe = prepared(
        make_recipe, tmp_path / "run", validation={"every_steps": 4, "prompts": ["why"], "sample_tokens": 90}
    )
    ranks = start_ranks("tests.support.slow_answers_ochat", str(recipe), num_ranks=2)
    beat = tmp_path / "run" / ".ranks" / "00001.json"
    wait_for(lambda: beat.exists() and "validating" in beat.read_text(), seconds=90)
    ranks[1].terminate()
    outputs, codes = finish(ranks)
    assert codes == [exits.STOPPED] * 2, outputs
    assert "the validation after step 4 is left out" in outputs[0]
    assert (tmp_path / "run" / "samples.jsonl").read_text() == ""
    stopped_and_resumed(recipe, tmp_path / "run", undisturbed, 4)


@pytest.mark.parametrize(("rank", "times"), [("0", 1), ("1", 0)])
def test_stopping_is_said_at_once_by_rank_0_alone(
    rank: str, times: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    request = StopRequest()
    request.listen()
    try:
        os.kill(os.getpid(), signal.SIGINT)
        assert capfd.readouterr().err.count("ochat train: stopping (SIGINT): ") == times
    finally:
        request.close()
    assert request.reason == "SIGINT"


INT, TERM = signal.SIGINT, signal.SIGTERM


@pytest.mark.parametrize(
    ("first", "second", "seconds", "quits"),
    [
        (TERM, TERM, 1.0, False),  # a scheduler sends it to all processes, and launchers pass it on
        (INT, TERM, 1.0, False),
        (TERM, INT, 1.0, False),
        (INT, INT, 1.0, True),
        (TERM, TERM, 3.0, True),
        (INT, TERM, 3.0, True),
    ],
)
def test_a_request_that_a_launcher_passes_on_is_one(
    first: int, second: int, seconds: float, quits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, now = [], 100.0
    monkeypatch.setattr(stop_request.os, "kill", lambda pid, number: killed.append(number))
    monkeypatch.setattr(stop_request.time, "monotonic", lambda: now)
    request = StopRequest()
    request.listen()
    try:
        request._handle(first, None)
        now += seconds
        request._handle(second, None)
    finally:
        request.close()
    assert killed == ([second] if quits else [])
    assert request.reason == signal.Signals(first).name


def test_a_second_signal_quits_at_once(tmp_path: Path, make_recipe: RecipeFactory) -> None:
    """The first one comes while the rank waits in a step; the second ends it there, without a checkpoint."""
    recipe = prepared(make_recipe, tmp_path / "run", checkpoint__save_every_steps=100)
    jobs = [{"command": ["train", str(recipe)], "fault": {"hold": [2, str(tmp_path / "never")]}}]
    [rank] = start_ranks("tests.support.train_worker", json.dumps(jobs), num_ranks=1)
    wait_for(lambda: num_steps(tmp_path / "run") == 1, seconds=90)
    rank.send_signal(signal.SIGINT)
    wait_for_output(rank, "ochat train: stopping (SIGINT): ")
    assert rank.poll() is None
    rank.send_signal(signal.SIGINT)
    rank.communicate(timeout=120)
    assert rank.returncode == -signal.SIGINT
    assert list_checkpoints(tmp_path / "run") == []


@pytest.mark.parametrize("whom", ["deepspeed", "everyone"])
def test_signals_to_the_launcher(whom: str, tmp_path: Path, make_recipe: RecipeFactory) -> None:
    """SIGTERM to the `deepspeed` command, which dies of it; or Ctrl-C, which reaches the whole foreground group: one
    rank of the two says at once that they stop.
    """
    recipe = prepared(make_recipe, tmp_path / "run", checkpoint__save_every_steps=100, train__max_steps=28)
    arguments = ["--num_gpus", "2", "--master_port", str(free_port())]
    launcher = start_rank(
        "tests.support.forked_deepspeed",
        [*arguments, "--module", "tests.support.slow_ochat", str(recipe)],
        process_environment({}),
        fork=not torch.cuda.is_available(),
    )
    wait_for(lambda: num_steps(tmp_path / "run") >= 4, seconds=90)
    family = psutil.Process(launcher.pid).children(recursive=True)
    assert len(family) >= 3
    if whom == "everyone":
        os.killpg(launcher.pid, signal.SIGINT)
    else:
        launcher.terminate()
        launcher.wait()
    release(recipe)
    _, alive = psutil.wait_procs(family, timeout=120)
    assert alive == []
    [newest] = list_checkpoints(tmp_path / "run")
    text = launcher.communicate(timeout=120)[0]
    assert f"stopped by {'SIGINT' if whom == 'everyone' else 'the end of the launcher'} after step" in text
    if whom == "everyone":
        assert text.count("ochat train: stopping (SIGINT): ") == 1
        assert text.index("stopping (SIGINT)") < text.index("stopped by SIGINT")
    assert verify(newest) is None
    assert newest.name < "step-00000028"
    assert newest.name == f"step-{len(metrics(tmp_path / 'run')):08d}"
