"""`train.push_to_hub`: a process beside rank 0 exports checkpoints and pushes them; training never waits for the Hub.

    OUTPUT_DIR/
        hub/export/      the model that is pushed, a folder for `ochat push`
        hub/state.json   what the process is doing or has done (`PushState`)
        hub/log.txt      what the last of these processes printed

`push_state.next_action` decides what the run does about it: `BackgroundPush` does it, and `main` is the process. The
process chooses the checkpoint to push itself. When it has pushed one it looks again, so of several checkpoints that
were written meanwhile only the right one is pushed. It works at the lowest priority, on one core, and ends when the run
ends.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from data_pipeline.errors import UserError
from ochat_train.distributed.stop_request import StopRequest
from ochat_train.hub.push_process import PushProcess
from ochat_train.hub.push_state import (
    Action,
    Candidate,
    Phase,
    PushState,
    checkpoint_to_push,
    export_folder,
    failure,
    hub_folder,
    is_pushed,
    next_action,
    state_file,
)
from ochat_train.recipe.recipe import Recipe
from ochat_train.runs.folder import RunFolder, read_run_folder
from ochat_train.system.exits import NotPushedError, StoppedBySignalError
from ochat_train.system.messages import print_message, print_notice
from ochat_train.system.sizes import GIB

_PARENT_SECONDS = 1.0  # how often the process checks that its run is alive


def push_command(output_dir: Path, phase: Phase) -> list[str]:
    """How to start the process for a run; this process is its parent."""
    room = "leave-room" if phase is Phase.TRAINING else "use-all-room"
    return [sys.executable, "-m", "ochat_train.hub.background_push", str(output_dir), str(os.getpid()), room]


class BackgroundPush:
    """The run's side, on rank 0 of a run that pushes: starts the process, and waits for it at the end.

    command: how to start the process. poll_seconds, report_seconds: while it waits, how often it looks, and how often
    it prints what it waits for.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        command: Callable[[Path, Phase], Sequence[str]] = push_command,
        process: PushProcess | None = None,
        poll_seconds: float = 0.5,
        report_seconds: float = 15.0,
    ) -> None:
        assert recipe.train.push_to_hub is not None, "made for runs that push"
        self._repo, self._output_dir = recipe.train.push_to_hub, Path(recipe.output_dir)
        self._command, self._process = command, process or PushProcess()
        self._poll_seconds, self._report_seconds = poll_seconds, report_seconds
        self._log = hub_folder(self._output_dir) / "log.txt"
        self._reported: set[str] = set()

    def checkpoint_written(self) -> None:
        """Start the process, unless one is at work: that one finds the new checkpoint when it is done.

        Prints why the last process failed, or why none can be started; neither ends the training.
        """
        try:
            if self._next(checkpoint_to_push(self._output_dir), Phase.TRAINING) is Action.START:
                if (reason := self._failure()) is not None:
                    self._report_once(reason)
                self._start(Phase.TRAINING)
        except OSError as error:
            self._report_once(f"the process could not be started: {error}")

    def finish(self, stop_request: StopRequest) -> None:
        """Wait until the run's model is on the Hub. The training is done, and other ranks may have ended.

        Raises NotPushedError if it cannot be pushed, StoppedBySignalError if the run is asked to stop.
        """
        phase, waiting = Phase.FINISHED, _Waiting(self._poll_seconds, self._report_seconds)
        try:
            candidate = checkpoint_to_push(self._output_dir)
            while (action := self._next(candidate, phase)) is not Action.DONE:
                if action is Action.GIVE_UP:
                    raise self._not_pushed(self._failure() or f"the process ended early, see {self._log}")
                elif action is Action.CANCEL:
                    self._process.end()
                elif action is Action.START:
                    phase = Phase.LAST_TRY
                    self._start(phase)
                else:
                    self._stop_if_asked(stop_request)
                    waiting.wait(self._progress)
        except OSError as error:
            raise self._not_pushed(str(error)) from error
        state = PushState.load(self._output_dir)
        assert state is not None, "it was read just now"
        print_notice(f"pushed: step {state.step} is at {state.url} (commit {state.commit})")
        if state.note is not None:
            print_message(state.note)

    def close(self) -> None:
        """End the process if it still runs. What it has uploaded is not sent again."""
        self._process.end()

    def _next(self, candidate: Candidate | None, phase: Phase) -> Action:
        status = self._process.status  # before the state: what an ended process has written is complete
        return next_action(status, PushState.load(self._output_dir), candidate, repo=self._repo, phase=phase)

    def _failure(self) -> str | None:
        return failure(self._process.status, PushState.load(self._output_dir), log=self._log)

    def _start(self, phase: Phase) -> None:
        hub_folder(self._output_dir).mkdir(exist_ok=True)
        if (state := PushState.load(self._output_dir)) is not None and state.doing != "pushed":
            state_file(self._output_dir).unlink()  # of a process that has ended
        self._process.start(self._command(self._output_dir, phase), log=self._log)

    def _stop_if_asked(self, stop_request: StopRequest) -> None:
        stop_request.notice_ended_launcher()
        if stop_request.reason is not None:
            raise StoppedBySignalError(
                f"trained to the end; stopped by {stop_request.reason} before the model was on the "
                f"Hub\n{self._remedy()}"
            )

    def _progress(self) -> str:
        state = PushState.load(self._output_dir)
        doing = f"{state.doing} step {state.step}" if state is not None and state.is_working else "starting"
        return f"waiting for the Hub: {self._repo}: {doing}"

    def _report_once(self, reason: str) -> None:
        if reason not in self._reported:
            self._reported.add(reason)
            text = f"not on the Hub yet: {reason}; the run tries again after every checkpoint"
            print_message(text)

    def _not_pushed(self, reason: str) -> NotPushedError:
        return NotPushedError(f"trained to the end, but not on the Hub: {reason}\n{self._remedy()}")

    def _remedy(self) -> str:
        folder = export_folder(self._output_dir)
        by_hand = f", or: ochat push {shlex.quote(str(folder))} --repo {self._repo}" if folder.is_dir() else ""
        return f"start the run again{by_hand}"


class _Waiting:
    """Sleeps between looks, and prints every now and then what is waited for, and for how long."""

    def __init__(self, poll_seconds: float, report_seconds: float) -> None:
        self._poll_seconds, self._report_seconds = poll_seconds, report_seconds
        self._began = time.monotonic()
        self._next_report = self._began

    def wait(self, progress: Callable[[], str]) -> None:
        now = time.monotonic()
        if now >= self._next_report:
            self._next_report = now + self._report_seconds
            print_notice(f"{progress()} ({now - self._began:.0f} s)")
        time.sleep(self._poll_seconds)


# ---- the process ----


def main(arguments: list[str]) -> int:
    """Run the process: OUTPUT_DIR PARENT leave-room|use-all-room. 1 if a push failed (the state says why)."""
    output_dir, parent, room = Path(arguments[0]), int(arguments[1]), arguments[2]
    _end_with(parent)
    os.nice(19)
    return push_checkpoints(output_dir, leave_room=room == "leave-room")


def push_checkpoints(
    output_dir: Path,
    *,
    leave_room: bool,
    choose: Callable[[Path], Candidate | None] = checkpoint_to_push,
    free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
) -> int:
    """Push until the checkpoint that `choose` returns is on the Hub; 0, or 1 if that failed (the state says why).

    leave_room: fail rather than take the disk space that the run needs for its next checkpoint; free_bytes: how much
    is left where a folder is.
    """
    run = read_run_folder(output_dir)
    repo = run.recipe.train.push_to_hub
    assert repo is not None, "started by runs that push"
    while (candidate := choose(output_dir)) is not None:
        if is_pushed(PushState.load(output_dir), candidate, repo=repo):
            break
        try:
            if leave_room:
                _check_room(candidate, free_bytes(candidate.folder))
            _push(run, candidate, repo)
        except Exception as error:
            if not candidate.folder.exists():
                continue  # the run has deleted it meanwhile, because it has newer ones
            if not isinstance(error, UserError):
                raise
            _save_state(output_dir, candidate, repo, "failed", error=str(error))
            print_message(str(error))
            return 1
    return 0


def _push(run: RunFolder, candidate: Candidate, repo: str) -> None:
    from ochat_train.export.export import export_checkpoint
    from ochat_train.hub.push import push

    _save_state(run.path, candidate, repo, "exporting")
    out = export_checkpoint(run, candidate.folder, export_folder(run.path), overwrite=True)
    _save_state(run.path, candidate, repo, "uploading")
    pushed = push(out, repo, private=run.recipe.train.hub_private, message=f"Step {candidate.step}")
    note = "\n".join(pushed.notes) or None
    _save_state(run.path, candidate, repo, "pushed", url=pushed.url, commit=pushed.commit, note=note)


def _check_room(candidate: Candidate, free_bytes: int) -> None:
    """Raise UserError if an export and the run's next checkpoint might not both fit on the disk."""
    needed = 2 * candidate.num_bytes
    if free_bytes < needed:
        raise UserError(
            candidate.folder.parent,
            f"{free_bytes / GIB:.2f} GiB free; an export beside the next checkpoint needs up to {needed / GIB:.2f} GiB",
        )


def _save_state(
    output_dir: Path,
    candidate: Candidate,
    repo: str,
    doing: Literal["exporting", "uploading", "pushed", "failed"],
    **more: Any,
) -> None:
    state = PushState(repo=repo, step=candidate.step, checkpoint=candidate.sha256, doing=doing, **more)
    state.save(output_dir)


def _end_with(parent: int) -> None:
    """End this process soon after its parent: a run that is killed cannot end its push."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
