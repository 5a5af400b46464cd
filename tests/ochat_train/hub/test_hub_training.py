"""`train.push_to_hub`: refused before anything is loaded, never in the way of training, finished by the next start."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest

from ochat_train.ablation.arms import arm_recipe, arms_of
from ochat_train.checkpoint.state import CheckpointManifest, list_checkpoints
from ochat_train.cli.main import main
from ochat_train.distributed.stop_request import StopRequest
from ochat_train.hub.background_push import BackgroundPush, push_checkpoints
from ochat_train.hub.push_process import PushProcess
from ochat_train.hub.push_state import (
    Candidate,
    Phase,
    ProcessStatus,
    PushState,
    checkpoint_to_push,
    export_folder,
    hub_folder,
    is_pushed,
    state_file,
)
from ochat_train.recipe.load import load_recipe
from ochat_train.runs.folder import RECIPE_FILE, read_run_folder
from ochat_train.system import exits
from ochat_train.system.exits import NotPushedError, StoppedBySignalError
from ochat_train.training import run as train_module
from tests.support.disturbed_runs import prepared
from tests.support.hub import client_of, content_of, content_on_hub, environment_of
from tests.support.hub_stand_in import Fault, HubStandIn
from tests.support.processes import finish, start_ranks, train_on_ranks
from tests.support.rank_processes import Rank
from tests.support.run_folder import metrics
from tests.support.small_recipe import RecipeFactory
from tests.support.waiting import wait_for

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


def is_at_work(push: BackgroundPush) -> bool:
    return push._process.status.is_running


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
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
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


# ---- the work of the process ----


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
    hub_folder(copy).mkdir()
    return copy


def step_on_hub(hub: HubStandIn) -> int:
    return int(json.loads(hub.read(REPO, "ochat.json"))["step"])


def test_the_newest_checkpoint_is_pushed_once(hub: HubStandIn, run_dir: Path) -> None:
    assert push_checkpoints(run_dir, leave_room=True) == 0
    assert step_on_hub(hub) == 4
    state = PushState.load(run_dir)
    assert state is not None
    assert is_pushed(state, checkpoint_to_push(run_dir), repo=REPO)
    assert not is_pushed(state, checkpoint_to_push(run_dir), repo="alice/another")
    requests = len(hub.requests)
    assert push_checkpoints(run_dir, leave_room=True) == 0
    assert len(hub.requests) == requests


def test_a_checkpoint_that_is_deleted_meanwhile_is_passed_over(hub: HubStandIn, run_dir: Path) -> None:
    """Training keeps the newest two: what is read here may be deleted when there are newer ones."""
    looks: list[Candidate] = []

    def first_the_newest_which_is_then_deleted(output_dir: Path) -> Candidate | None:
        found = checkpoint_to_push(output_dir)
        if not looks:
            assert found is not None
            looks.append(found)
            shutil.rmtree(found.folder)
        return found

    assert push_checkpoints(run_dir, leave_room=True, choose=first_the_newest_which_is_then_deleted) == 0
    assert looks[0].step == 4
    assert step_on_hub(hub) == 2


def test_no_room_is_taken_from_the_next_checkpoint(hub: HubStandIn, run_dir: Path) -> None:
    candidate = checkpoint_to_push(run_dir)
    assert candidate is not None
    too_little, enough = 2 * candidate.num_bytes - 1, 2 * candidate.num_bytes
    assert push_checkpoints(run_dir, leave_room=True, free_bytes=lambda folder: too_little) == 1
    state = PushState.load(run_dir)
    assert state is not None
    assert "GiB free; an export beside the next checkpoint needs" in str(state.error)
    assert not export_folder(run_dir).exists()
    assert push_checkpoints(run_dir, leave_room=False, free_bytes=lambda folder: too_little) == 0
    state_file(run_dir).unlink()
    assert push_checkpoints(run_dir, leave_room=True, free_bytes=lambda folder: enough) == 0


def test_a_damaged_checkpoint_is_not_pushed(run_dir: Path) -> None:
    candidate = checkpoint_to_push(run_dir)
    assert candidate is not None
    (candidate.folder / "MANIFEST.json").write_text("{")
    found = checkpoint_to_push(run_dir)
    assert found is not None
    assert (candidate.step, found.step) == (4, 2)
    shutil.rmtree(found.folder)
    assert checkpoint_to_push(run_dir) is None


# ---- the run's side, with real processes ----


def finish_push(push: BackgroundPush) -> None:
    request = StopRequest()
    request.notice_ended_launcher = lambda: None  # type: ignore[method-assign]  # whoever started the tests may end
    request.listen()
    try:
        push.finish(request)
    finally:
        request.close()
        push.close()


def a_push(run_dir: Path, *programs: str, started: list[Phase] | None = None) -> BackgroundPush:
    """A push whose processes are these Python programs, one after the other, and the last one again and again."""
    phases = [] if started is None else started

    def command(output_dir: Path, phase: Phase) -> list[str]:
        assert output_dir == run_dir
        phases.append(phase)
        return [sys.executable, "-c", programs[min(len(phases), len(programs)) - 1]]

    recipe = read_run_folder(run_dir).recipe
    return BackgroundPush(recipe, command=command, process=PushProcess(end_seconds=0.2), poll_seconds=0.02)


def leaves(run_dir: Path, *states: PushState, then: str = "", apart_seconds: float = 0.1) -> str:
    """A program that writes states one after the other, and then does something."""
    writes = "".join(
        f"import json, pathlib, os, time; time.sleep({apart_seconds})\n"
        f"new = pathlib.Path({str(run_dir / 'hub' / 'new')!r}); new.write_text({json.dumps(asdict(state))!r})\n"
        f"os.replace(new, {str(state_file(run_dir))!r})\n"
        for state in states
    )
    return writes + then


def state_of(run_dir: Path, doing: str, *, newest: bool = True, **more: Any) -> PushState:
    """A state of the checkpoint to push, or of another one."""
    candidate = checkpoint_to_push(run_dir)
    assert candidate is not None
    checkpoint = candidate.sha256 if newest else "0" * 64
    return PushState(repo=REPO, step=4 if newest else 2, checkpoint=checkpoint, doing=doing, **more)


HANGS = "import signal; signal.pause()"
IGNORES_SIGTERM = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"


def test_a_push_that_fails_ends_the_run_with_a_command_that_finishes_it(
    hub: HubStandIn, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the real process at the end of the run; then the work of that of a run that is started again."""
    fault = hub.add(Fault(request=f"POST /api/models/{REPO}/preupload/*", times=99, status=403))
    with pytest.raises(NotPushedError) as caught:
        finish_push(BackgroundPush(read_run_folder(run_dir).recipe))
    assert "trained to the end, but not on the Hub: alice/run: this token may not write there" in str(caught.value)
    assert re.search(rf"waiting for the Hub: {REPO}: starting \(\d+ s\)", capsys.readouterr().err)
    command = str(caught.value).split("start the run again, or: ochat ")[1]
    fault.times = 0
    assert main(command.split()) == 0
    assert content_on_hub(hub, REPO) == content_of(export_folder(run_dir))
    uploaded = hub.uploaded
    assert push_checkpoints(run_dir, leave_room=False) == 0
    assert hub.uploaded == uploaded  # the same files: none is sent again
    assert is_pushed(PushState.load(run_dir), checkpoint_to_push(run_dir), repo=REPO)


def test_a_failure_is_reported_once_while_the_run_trains(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed = leaves(run_dir, state_of(run_dir, "failed", error="no right"), then="raise SystemExit(1)")
    started: list[Phase] = []
    push = a_push(run_dir, failed, started=started)
    for _ in range(3):
        push.checkpoint_written()
        push.checkpoint_written()  # the process is at work: nothing more is started
        wait_for(lambda: not is_at_work(push))
    assert started == [Phase.TRAINING] * 3
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("not on the Hub yet: ")]
    assert lines == ["not on the Hub yet: no right; the run tries again after every checkpoint"]


def test_nothing_is_started_for_a_checkpoint_that_is_on_the_hub(run_dir: Path) -> None:
    started: list[Phase] = []
    push = a_push(run_dir, leaves(run_dir, state_of(run_dir, "pushed")), started=started)
    for _ in range(2):
        push.checkpoint_written()
        wait_for(lambda: not is_at_work(push))
    assert len(started) == 1


def test_a_process_that_dies_without_a_word_is_reported(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    push = a_push(run_dir, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    push.checkpoint_written()
    wait_for(lambda: not is_at_work(push))
    assert capsys.readouterr().err == ""
    push.checkpoint_written()
    said = f"ended early (code {-signal.SIGKILL}), see {run_dir}/hub/log.txt"
    assert said in capsys.readouterr().err
    with pytest.raises(NotPushedError, match=re.escape(said)):
        finish_push(push)


@pytest.mark.parametrize("obstacle", ["program", "folder", "log"])
def test_a_process_that_cannot_be_started_does_not_end_the_training(
    obstacle: str, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = hub_folder(run_dir)
    if obstacle == "folder":
        folder.rmdir()
        folder.write_text("")
    elif obstacle == "log":
        (folder / "log.txt").mkdir()
    command = [str(run_dir / "no program")] if obstacle == "program" else [sys.executable, "-c", ""]
    push = BackgroundPush(read_run_folder(run_dir).recipe, command=lambda output_dir, phase: command)
    for _ in range(2):
        push.checkpoint_written()
    assert capsys.readouterr().err.count("not on the Hub yet: the process could not be started: [Errno ") == 1
    with pytest.raises(NotPushedError, match=r"trained to the end, but not on the Hub: \[Errno "):
        finish_push(push)


def test_an_upload_that_is_obsolete_at_the_end_is_not_waited_for(run_dir: Path) -> None:
    """The wait would never end: that process does not."""
    started: list[Phase] = []
    obsolete = leaves(run_dir, state_of(run_dir, "uploading", newest=False), then=IGNORES_SIGTERM)
    push = a_push(run_dir, obsolete, leaves(run_dir, state_of(run_dir, "pushed")), started=started)
    push.checkpoint_written()
    wait_for(lambda: PushState.load(run_dir) is not None)
    finish_push(push)
    assert started == [Phase.TRAINING, Phase.LAST_TRY]


def test_an_upload_of_the_right_checkpoint_is_waited_for(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started: list[Phase] = []
    states = [state_of(run_dir, "uploading"), state_of(run_dir, "pushed", url="u", commit="c", note="a note")]
    push = a_push(run_dir, leaves(run_dir, *states, then=HANGS, apart_seconds=1.0), started=started)
    push.checkpoint_written()
    wait_for(lambda: PushState.load(run_dir) is not None)
    finish_push(push)
    assert started == [Phase.TRAINING]
    err = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"waiting for the Hub: {REPO}: uploading step 4 \(\d+ s\)", err[0])
    assert err[-2:] == ["pushed: step 4 is at u (commit c)", "a note"]


def test_a_card_that_was_edited_on_the_hub_is_kept_and_reported(hub: HubStandIn, run_dir: Path) -> None:
    push_checkpoints(run_dir, leave_room=True)
    hub.put(REPO, {"README.md": b"---\nlicense: mit\n---\n\n# By hand\n"})
    state_file(run_dir).unlink()
    push_checkpoints(run_dir, leave_room=True)
    assert hub.read(REPO, "README.md").endswith(b"# By hand\n")
    state = PushState.load(run_dir)
    assert state is not None
    assert str(state.note).startswith(f"{REPO}: README.md was edited there and is kept")


def test_a_run_that_is_stopped_while_it_waits_names_the_command(run_dir: Path) -> None:
    export_folder(run_dir).mkdir()
    push = a_push(run_dir, HANGS)
    push.checkpoint_written()
    request = StopRequest()
    request.listen()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StoppedBySignalError) as caught:
            push.finish(request)
    finally:
        request.close()
        push.close()
    command = f"start the run again, or: ochat push {export_folder(run_dir)} --repo {REPO}"
    assert str(caught.value).startswith("trained to the end; stopped by SIGTERM before the model was on the Hub\n")
    assert str(caught.value).endswith(command)
    assert not is_at_work(push)


@pytest.mark.parametrize(
    ("program", "number", "end_seconds"),
    [(HANGS, signal.SIGTERM, 60.0), (IGNORES_SIGTERM, signal.SIGKILL, 0.2)],
    ids=["hangs", "ignores"],
)
def test_the_process_is_ended_with_the_run(program: str, number: int, end_seconds: float, tmp_path: Path) -> None:
    process, log = PushProcess(end_seconds=end_seconds), tmp_path / "log.txt"
    assert not process.status.is_running
    process.start(
        [sys.executable, "-c", program.replace("signal.pause()", "print(flush=True); signal.pause()")], log=log
    )
    wait_for(lambda: log.read_bytes() != b"")
    assert process.status == ProcessStatus(is_running=True)
    process.end()
    assert process.status == ProcessStatus(is_running=False, exit_code=-number)
    process.end()  # the second one is nothing


def test_the_process_inherits_no_launcher_and_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "8", "LOCAL_RANK": "3", "CUDA_VISIBLE_DEVICES": "3", "KEPT": "1"}.items():
        monkeypatch.setenv(name, value)
    process, log = PushProcess(), tmp_path / "log.txt"
    names = ("WORLD_SIZE", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES", "KEPT")
    process.start([sys.executable, "-c", f"import os; print([os.environ.get(name) for name in {names}])"], log=log)
    wait_for(lambda: not process.status.is_running)
    assert log.read_text() == "[None, None, '', '1']\n"


def test_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, make_recipe: RecipeFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise NotPushedError("trained to the end, but not on the Hub")

    monkeypatch.setattr(train_module, "train", fail)
    assert main(["train", str(make_recipe())]) == exits.NOT_PUSHED == 77
    assert capsys.readouterr().err == "ochat train: trained to the end, but not on the Hub\n"


def test_arms_of_an_ablation_push_nothing(make_recipe: RecipeFactory, tmp_path: Path) -> None:
    recipe = load_recipe(make_recipe(train__push_to_hub=REPO))
    for arm in arms_of(recipe, inference_condition="GPT4 Correct"):
        values = arm_recipe(recipe, arm, folder=tmp_path, seed=0, max_steps=1, epochs=1, learning_rate=1e-3)
        assert values.train.push_to_hub is None
