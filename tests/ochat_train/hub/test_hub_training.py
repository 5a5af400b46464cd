"""`train.push_to_hub`: refused before anything is loaded, never in the way of training, and finished by whoever comes
next.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ochat_train.ablation.arms import arm_recipe, arms_of
from ochat_train.checkpoint.state import CheckpointManifest, list_checkpoints
from ochat_train.cli.main import main
from ochat_train.distributed.stop_request import StopRequest
from ochat_train.hub import background_push
from ochat_train.hub.background_push import BackgroundPush, PushState, checkpoint_to_push, is_pushed, last_shown
from ochat_train.recipe.load import load_recipe
from ochat_train.runs.folder import RECIPE_FILE, read_run_folder
from ochat_train.system import exits
from ochat_train.system.exits import NotPushedError, StoppedBySignalError
from ochat_train.training import run as train_module
from tests.support.disturbed_runs import prepared
from tests.support.faults import wait_for
from tests.support.hub import client_of, content_of, content_on_hub, environment_of
from tests.support.hub_stand_in import Fault, HubStandIn
from tests.support.processes import finish, start_ranks, train_on_ranks
from tests.support.rank_processes import Rank
from tests.support.run_folder import metrics
from tests.support.small_recipe import RecipeFactory

REPO = "alice/run"
SHORT: dict[str, Any] = {
    "train__max_steps": 4,
    "checkpoint__save_every_steps": 2,
    "data__validation_ratio": 0.1,
    "validation__sample_tokens": 0,
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    with client_of(tmp_path / "hub", monkeypatch) as server:
        for name, value in environment_of(server).items():
            monkeypatch.setenv(name, value)  # for the process beside a run
        yield server


def start_training(recipe: Path, hub: HubStandIn, *options: str, num_ranks: int) -> list[Rank]:
    jobs = json.dumps([{"command": ["train", str(recipe), *options]}])
    return start_ranks("tests.support.hub_train_worker", jobs, num_ranks=num_ranks, **environment_of(hub))


# ---- whole runs, with the process beside them ----


def test_a_run_that_may_not_push_ends_at_once_on_all_ranks(
    hub: HubStandIn, tmp_path: Path, make_recipe: RecipeFactory
) -> None:
    recipe = prepared(make_recipe, tmp_path / "run", **SHORT)
    ranks = start_training(recipe, hub, "--set", "train.push_to_hub=bob/run", num_ranks=2)
    outputs, codes = finish(ranks)
    assert codes == [exits.USER_ERROR] * 2, outputs
    assert "bob/run: the token in HF_TOKEN belongs to alice, who cannot write to bob" in outputs[0]
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    assert {request.split()[0] for request in hub.requests} == {"GET"}


def test_killed_in_the_middle_of_an_upload_and_finished_by_the_next_start(
    hub: HubStandIn, tmp_path: Path, make_recipe: RecipeFactory
) -> None:
    run_dir = tmp_path / "run"
    recipe = prepared(make_recipe, run_dir, **SHORT, train__push_to_hub=REPO, checkpoint__keep_last=1)
    held = hub.add(Fault(request="PUT /objects/*", hold_after=1000))
    [rank] = start_training(recipe, hub, num_ranks=1)
    assert held.reached.wait(120)
    [child] = psutil.Process(rank.pid).children()
    wait_for(
        lambda: len(metrics(run_dir)) == 4 and len(list_checkpoints(run_dir)) >= 1, seconds=60
    )  # the Hub stops nothing
    rank.kill()
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, seconds=20)
    held.go_on.set()
    finish([rank])
    assert content_on_hub(hub, REPO) == {}

    steps = metrics(run_dir)
    outputs, codes = finish(start_training(recipe, hub, num_ranks=1))
    assert codes == [0], outputs
    assert metrics(run_dir) == steps  # nothing was trained again
    state = PushState.load(run_dir)
    assert state is not None
    assert (
        f"pushed: step {state.step} is at {hub.url}/{REPO} (commit {hub.repo(REPO)['branches']['main']})" in outputs[0]
    )
    on_hub = content_on_hub(hub, REPO)
    assert on_hub == content_of(run_dir / "hub" / "export")
    losses = {
        CheckpointManifest.load(folder).step: CheckpointManifest.load(folder).validation_loss
        for folder in list_checkpoints(run_dir)
    }
    assert losses[json.loads(on_hub["ochat.json"])["step"]] == min(loss for loss in losses.values() if loss is not None)
    said = "".join(outputs).encode() + b"".join(path.read_bytes() for path in run_dir.rglob("*") if path.is_file())
    assert b"hf_alice" not in said
    exported = b"".join(content for name, content in on_hub.items() if not name.endswith(".safetensors"))
    assert str(tmp_path).encode() not in exported


# ---- the run's side, with the process's work done here ----


@pytest.fixture(scope="module")
def trained_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def run_dir(trained_dir: Path, tmp_path: Path, make_recipe: RecipeFactory) -> Path:
    """A copy of a run of two checkpoints, that names a repository."""
    if not trained_dir.exists():
        train_on_ranks(
            ["train", prepared(make_recipe, trained_dir, **{**SHORT, "data__validation_ratio": 0.0})], num_ranks=1
        )
    copy = tmp_path / "copy"
    shutil.copytree(trained_dir, copy)
    values = json.loads((copy / RECIPE_FILE).read_text())
    values["output_dir"], values["train"]["push_to_hub"] = str(copy), REPO
    (copy / RECIPE_FILE).write_text(json.dumps(values))
    return copy


@pytest.fixture
def here(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> BackgroundPush:
    """A BackgroundPush whose process does its work in this one, when it is started."""
    started: list[Any] = []

    class Finished:
        def __init__(self, command: list[str], **_: Any) -> None:
            started.append(command)
            background_push.main(command[3:])

        def poll(self) -> int:
            return 0

    monkeypatch.setattr(background_push.subprocess, "Popen", Finished)
    monkeypatch.setattr(background_push, "_end_with", lambda parent: None)
    monkeypatch.setattr(background_push.os, "nice", lambda level: 0)
    return BackgroundPush(read_run_folder(run_dir).recipe)


def finish_push(push: BackgroundPush) -> None:
    request = StopRequest()
    request.listen()
    try:
        push.finish(request)
    finally:
        request.close()


def test_the_newest_checkpoint_is_pushed_once(hub: HubStandIn, here: BackgroundPush, run_dir: Path) -> None:
    here.checkpoint_written()
    assert is_pushed(run_dir, REPO)
    assert json.loads(hub.read(REPO, "ochat.json"))["step"] == 4
    requests = len(hub.requests)
    finish_push(here)
    assert len(hub.requests) == requests
    assert not is_pushed(run_dir, "alice/another")


def test_a_push_that_fails_says_so_at_the_end_and_a_later_one_mends_it(
    hub: HubStandIn, here: BackgroundPush, run_dir: Path
) -> None:
    fault = hub.add(Fault(request=f"POST /api/models/{REPO}/preupload/*", times=99, status=403))
    here.checkpoint_written()
    with pytest.raises(NotPushedError) as caught:
        finish_push(here)
    assert "trained to the end, but not on the Hub: alice/run: this token may not write there" in str(caught.value)
    command = str(caught.value).split("start the run again, or: ochat ")[1]
    fault.times = 0
    assert main(command.split()) == 0
    assert content_on_hub(hub, REPO) == content_of(run_dir / "hub" / "export")
    finish_push(here)
    assert is_pushed(run_dir, REPO)


def test_a_checkpoint_that_is_deleted_meanwhile_is_passed_over(
    hub: HubStandIn, here: BackgroundPush, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training keeps the newest two: what is read here may go, for newer ones."""
    newest = list_checkpoints(run_dir)[-1]
    real, looks = checkpoint_to_push, []

    def first_the_newest_that_goes(output_dir: Path) -> Path | None:
        looks.append(1)
        if len(looks) == 1:
            found = real(output_dir)
            shutil.rmtree(newest)
            return found
        return real(output_dir)

    monkeypatch.setattr(background_push, "checkpoint_to_push", first_the_newest_that_goes)
    here.checkpoint_written()
    assert json.loads(hub.read(REPO, "ochat.json"))["step"] == 2


def test_no_room_is_taken_from_the_next_checkpoint(
    hub: HubStandIn, here: BackgroundPush, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=1000))
    here.checkpoint_written()
    state = PushState.load(run_dir)
    assert state is not None
    assert "GiB free; an export beside the next checkpoint needs" in str(state.error)
    assert not (run_dir / "hub" / "export").exists()
    monkeypatch.setattr(shutil, "disk_usage", real)
    finish_push(here)
    assert is_pushed(run_dir, REPO)


class Working:
    """A process that does not end by itself."""

    ended = False

    def poll(self) -> int | None:
        return -signal.SIGTERM if self.ended else None

    def terminate(self) -> None:
        self.ended = True

    def wait(self, timeout: float | None = None) -> int:
        assert self.ended
        return -signal.SIGTERM


def test_a_failure_is_said_once_while_the_run_goes_on(
    hub: HubStandIn, here: BackgroundPush, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fault = hub.add(Fault(request=f"POST /api/models/{REPO}/preupload/*", times=99, status=403))
    for _ in range(3):
        here.checkpoint_written()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("not on the Hub yet: ")]
    assert len(lines) == 1
    assert "may not write there" in lines[0]
    fault.times = 0
    here.checkpoint_written()
    assert is_pushed(run_dir, REPO)


def test_a_process_that_dies_without_a_word_is_told(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    died = Working()
    died.terminate()
    monkeypatch.setattr(background_push.subprocess, "Popen", lambda command, **_: died)
    push = BackgroundPush(read_run_folder(run_dir).recipe)
    push.checkpoint_written()
    assert capsys.readouterr().err == ""
    push.checkpoint_written()
    assert f"ended early (code {-signal.SIGTERM}), see {run_dir}/hub/log.txt" in capsys.readouterr().err


@pytest.mark.parametrize("step", ["Popen", "mkdir", "log", "state"])
def test_a_process_that_cannot_be_started_does_not_end_the_training(
    step: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_dir / "hub"
    if step == "mkdir":
        folder.write_text("")
    elif step in ("log", "state"):
        (folder / f"{step}.{'txt' if step == 'log' else 'json'}").mkdir(parents=True)

    def no_memory(command: list[str], **_: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(background_push.subprocess, "Popen", no_memory)
    push = BackgroundPush(read_run_folder(run_dir).recipe)
    for _ in range(2):
        push.checkpoint_written()
    err = capsys.readouterr().err
    assert err.count("not on the Hub yet: the process could not be started: [Errno ") == 1
    with pytest.raises(NotPushedError, match=r"trained to the end, but not on the Hub: \[Errno "):
        finish_push(push)
    push.close()


def test_an_upload_that_is_obsolete_at_the_end_is_not_waited_for(
    hub: HubStandIn, here: BackgroundPush, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait would never end: that process does not."""
    working, finished = Working(), background_push.subprocess.Popen
    monkeypatch.setattr(background_push.subprocess, "Popen", lambda command, **_: working)
    here.checkpoint_written()
    old, newest = list_checkpoints(run_dir)
    background_push._state(run_dir, old, REPO, "uploading")
    monkeypatch.setattr(background_push.subprocess, "Popen", finished)
    finish_push(here)
    assert working.ended
    assert json.loads(hub.read(REPO, "ochat.json"))["step"] == CheckpointManifest.load(newest).step


def test_an_upload_of_the_right_checkpoint_is_waited_for(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    working = Working()
    monkeypatch.setattr(background_push.subprocess, "Popen", lambda command, **_: working)
    push = BackgroundPush(read_run_folder(run_dir).recipe)
    push.checkpoint_written()
    background_push._state(run_dir, list_checkpoints(run_dir)[-1], REPO, "uploading")

    def pushed_meanwhile(seconds: float) -> None:
        assert not working.ended
        background_push._state(run_dir, list_checkpoints(run_dir)[-1], REPO, "pushed", url="u", commit="c")
        working.ended = True

    monkeypatch.setattr(background_push.time, "sleep", pushed_meanwhile)
    finish_push(push)


def test_a_card_that_was_edited_on_the_hub_is_told_of_at_the_end(
    hub: HubStandIn, here: BackgroundPush, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here.checkpoint_written()
    hub.put(REPO, {"README.md": b"---\nlicense: mit\n---\n\n# By hand\n"})
    (run_dir / "hub" / "state.json").unlink()
    here.checkpoint_written()
    finish_push(here)
    assert hub.read(REPO, "README.md").endswith(b"# By hand\n")
    assert f"{REPO}: README.md was edited there and is left as it is" in capsys.readouterr().err


def test_a_run_that_is_stopped_while_it_waits_names_the_command(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push = BackgroundPush(read_run_folder(run_dir).recipe)
    monkeypatch.setattr(background_push.subprocess, "Popen", lambda command, **_: Working())
    push.checkpoint_written()
    request = StopRequest()
    request.listen()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StoppedBySignalError, match="trained to the end; stopped by SIGTERM"):
            push.finish(request)
    finally:
        request.close()


def test_one_process_at_a_time(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(
        background_push.subprocess, "Popen", lambda command, **_: (started.append(command), Working())[1]
    )
    push = BackgroundPush(read_run_folder(run_dir).recipe)
    for _ in range(3):
        push.checkpoint_written()
    assert len(started) == 1


def test_the_process_is_ended_with_the_run(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that does not listen."""
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
    process = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    monkeypatch.setattr(background_push, "_END_SECONDS", 0.1)
    monkeypatch.setattr(background_push.subprocess, "Popen", lambda command, **_: process)
    push = BackgroundPush(read_run_folder(run_dir).recipe)
    push.checkpoint_written()
    push.close()
    assert process.returncode == -signal.SIGKILL


def test_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, make_recipe: RecipeFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise NotPushedError("trained to the end, but not on the Hub")

    monkeypatch.setattr(train_module, "train", fail)
    assert main(["train", str(make_recipe())]) == exits.NOT_PUSHED == 77
    assert capsys.readouterr().err == "ochat train: trained to the end, but not on the Hub\n"


def test_what_a_terminal_would_show(tmp_path: Path) -> None:
    log = tmp_path / "log"
    shown: dict[bytes, str] = {
        b"": "",
        b"a\n": "a",
        b"a\rb\rc": "c",
        b"a: 7%\x1b[A\r": "a: 7%",
        b"x" * 9000 + b"\n  b: 45%\r\n\n": "b: 45%",
        b"\xff\xfe\n": "\ufffd\ufffd",
    }
    for content, expected in shown.items():
        log.write_bytes(content)
        assert last_shown(log) == expected


def test_arms_of_an_ablation_push_nothing(make_recipe: RecipeFactory, tmp_path: Path) -> None:
    recipe = load_recipe(make_recipe(train__push_to_hub=REPO))
    for arm in arms_of(recipe, inference_condition="GPT4 Correct"):
        values = arm_recipe(recipe, arm, folder=tmp_path, seed=0, max_steps=1, epochs=1, learning_rate=1e-3)
        assert values.train.push_to_hub is None
