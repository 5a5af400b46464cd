"""`train.push_to_hub`: a process beside rank 0 exports checkpoints and pushes them; training never waits for the Hub.

    OUTPUT_DIR/
        hub/export/      the model that is pushed, a folder for `ochat push`
        hub/state.json   what the process is doing or has done (`PushState`)
        hub/log.txt      what the last of these processes printed

The process looks for the checkpoint to push itself: the one with the lowest validation loss, or the newest. When it has
pushed one it looks again, so of several checkpoints written meanwhile only the last one counts. It works at the lowest
priority, on the CPU, in a session of its own (signals for the run's process group do not reach it), and ends when the
run ends.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from ochat_train.checkpoint.state import MANIFEST, CheckpointManifest, best_checkpoint, list_checkpoints
from ochat_train.distributed.stop_request import StopRequest
from ochat_train.recipe.sections import Recipe
from ochat_train.runs.folder import RunFolder, read_run_folder
from ochat_train.system.durable import replace_text
from ochat_train.system.exits import NotPushedError, StoppedBySignalError

_POLL_SECONDS = 0.5
_SAY_SECONDS = 15.0
_END_SECONDS = 5.0
_CURSOR_MOVE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, kw_only=True)
class PushState:
    """How far the process is. doing: `exporting`, `uploading`, `pushed` or `failed`. checkpoint: sha256 of its
    manifest.

    url, commit, note: of a finished push; error: of a failed one.
    """

    repo: str
    step: int
    checkpoint: str
    doing: str
    url: str | None = None
    commit: str | None = None
    note: str | None = None
    error: str | None = None

    @staticmethod
    def load(output_dir: Path) -> PushState | None:
        """The state of a run, None where nothing was begun."""
        try:
            return PushState(**json.loads(_state_file(output_dir).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def save(self, output_dir: Path) -> None:
        """Write the state; readers see the old one or the new one."""
        replace_text(_state_file(output_dir), json.dumps(asdict(self), indent=1) + "\n")


def hub_folder(output_dir: Path) -> Path:
    """Where everything for the Hub lies in a run folder."""
    return output_dir / "hub"


def export_folder(output_dir: Path) -> Path:
    """The export that is pushed."""
    return hub_folder(output_dir) / "export"


def _state_file(output_dir: Path) -> Path:
    return hub_folder(output_dir) / "state.json"


def checkpoint_to_push(output_dir: Path) -> Path | None:
    """The one with the lowest validation loss, the newest where nothing is validated, None where there is none."""
    folders = [folder for folder in list_checkpoints(output_dir) if _is_readable(folder)]
    return best_checkpoint(folders) or (folders[-1] if folders else None)


def _is_readable(checkpoint: Path) -> bool:
    try:
        CheckpointManifest.load(checkpoint)
    except UserError:  # deleted while we look, or damaged
        return False
    return True


def is_pushed(output_dir: Path, repo: str) -> bool:
    """Whether the checkpoint to push is on the Hub."""
    checkpoint, state = checkpoint_to_push(output_dir), PushState.load(output_dir)
    return checkpoint is not None and state is not None and _is_done(state, repo, checkpoint)


def _is_done(state: PushState, repo: str, checkpoint: Path) -> bool:
    return (state.doing, state.repo, state.checkpoint) == ("pushed", repo, _identity(checkpoint))


def _identity(checkpoint: Path) -> str:
    return hashlib.sha256((checkpoint / MANIFEST).read_bytes()).hexdigest()


class BackgroundPush:
    """The run's side: starts the process, and waits for it at the end. Rank 0 of a run that names a repository has
    one.
    """

    def __init__(self, recipe: Recipe) -> None:
        assert recipe.train.push_to_hub is not None, "made for runs that push"
        self._repo, self._output_dir = recipe.train.push_to_hub, Path(recipe.output_dir)
        self._process: subprocess.Popen[bytes] | None = None
        self._said: set[str] = set()

    def checkpoint_written(self) -> None:
        """Start the process, unless it is at work: then it finds the new checkpoint when it is done with the one
        before.

        Says why the process before failed, or why there can be none; neither is the end of the training.
        """
        if self._is_at_work():
            return
        if (failure := self._failure()) is not None:
            self._say_once(failure)
        try:
            self._start(while_training=True)
        except OSError as error:
            self._say_once(f"the process could not be started: {error}")

    def finish(self, stop_request: StopRequest) -> None:
        """Wait until the run's model is on the Hub. The training is done, and other ranks may be gone.

        Raises NotPushedError where it could not be brought there, StoppedBySignalError where the run was asked to stop.
        """
        try:
            if self._is_at_work() and self._is_obsolete():
                self.close()
            if self._process is not None:
                self._wait(stop_request)
            # begun after the last checkpoint, so with all that it needs
            if not is_pushed(self._output_dir, self._repo):
                self._start(while_training=False)
                self._wait(stop_request)
            state = PushState.load(self._output_dir)
            is_done = is_pushed(self._output_dir, self._repo)
        except OSError as error:
            raise self._not_pushed(str(error)) from error
        if state is None or not is_done:
            raise self._not_pushed(self._failure() or f"the process ended early, see {self._log_file()}")
        print(f"pushed: step {state.step} is at {state.url} (commit {state.commit})", file=sys.stderr, flush=True)
        if state.note is not None:
            print(state.note, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the process, if it still runs; what it has uploaded is not lost."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _is_at_work(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _is_obsolete(self) -> bool:
        """Whether the process works on another checkpoint than the one to push."""
        checkpoint, state = checkpoint_to_push(self._output_dir), PushState.load(self._output_dir)
        if checkpoint is None or state is None or state.doing not in ("exporting", "uploading"):
            return False  # it looks for the right one
        return state.checkpoint != _identity(checkpoint)

    def _failure(self) -> str | None:
        """Why the process that has ended did not push; None where it did, or where there was none."""
        code = None if self._process is None else self._process.poll()
        state = PushState.load(self._output_dir)
        if code is None or (state is not None and state.doing == "pushed"):
            return None
        if state is not None and state.error is not None:
            return state.error
        return f"the process ended early (code {code}), see {self._log_file()}" if code else None

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            print(f"not on the Hub yet: {text}; tried again at every checkpoint", file=sys.stderr, flush=True)

    def _not_pushed(self, reason: str) -> NotPushedError:
        return NotPushedError(f"trained to the end, but not on the Hub: {reason}\n{self._remedy()}")

    def _start(self, *, while_training: bool) -> None:
        hub_folder(self._output_dir).mkdir(exist_ok=True)
        if (state := PushState.load(self._output_dir)) is not None and state.doing != "pushed":
            _state_file(self._output_dir).unlink()  # what an earlier process was doing
        environment = {name: value for name, value in os.environ.items() if name not in _LAUNCHER_VARIABLES}
        environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        environment["TQDM_POSITION"] = "-1"  # huggingface_hub: show bars also in a file, for `last_shown`
        purpose = "while-training" if while_training else "at-the-end"
        command = [
            sys.executable,
            "-m",
            "ochat_train.hub.background_push",
            str(self._output_dir),
            str(os.getpid()),
            purpose,
        ]
        with self._log_file().open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def _wait(self, stop_request: StopRequest) -> None:
        assert self._process is not None
        said = 0.0
        while self._process.poll() is None:
            stop_request.notice_ended_launcher()
            if stop_request.reason is not None:
                raise StoppedBySignalError(
                    f"trained to the end; stopped by {stop_request.reason} before the model was on the "
                    f"Hub\n{self._remedy()}"
                )
            if time.monotonic() - said > _SAY_SECONDS:
                said = time.monotonic()
                print(f"waiting for the Hub: {self._progress()}", file=sys.stderr, flush=True)
            time.sleep(_POLL_SECONDS)

    def _progress(self) -> str:
        state = PushState.load(self._output_dir)
        if state is None or state.doing not in ("exporting", "uploading"):
            return f"{self._repo}: starting"
        last = last_shown(self._log_file()) if state.doing == "uploading" else ""
        return f"{self._repo}: {state.doing} step {state.step}{f' ({last})' if last else ''}"

    def _remedy(self) -> str:
        folder = export_folder(self._output_dir)
        return (
            f"start the run again, or: ochat push {folder} --repo {self._repo}"
            if folder.is_dir()
            else "start the run again"
        )

    def _log_file(self) -> Path:
        return hub_folder(self._output_dir) / "log.txt"


def last_shown(log: Path) -> str:
    """What a terminal would show as the last line of a log with progress bars."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        text = file.read().decode("utf-8", "replace")
    lines = [line.strip() for line in _CURSOR_MOVE.sub("", text).replace("\r", "\n").split("\n")]
    return next((line for line in reversed(lines) if line), "")


# ---- the process ----


def main(arguments: list[str]) -> int:
    """Push until the run's checkpoint to push is on the Hub; 1 where that failed (the state says why)."""
    output_dir, while_training = Path(arguments[0]), arguments[2] == "while-training"
    _end_with(int(arguments[1]))
    os.nice(19)
    run = read_run_folder(output_dir)
    repo = run.recipe.train.push_to_hub
    assert repo is not None, "started by runs that push"
    while (checkpoint := checkpoint_to_push(output_dir)) is not None and not is_pushed(output_dir, repo):
        try:
            _push(run, checkpoint, repo, while_training=while_training)
        except Exception as error:
            if not checkpoint.exists():
                continue  # the run has deleted it meanwhile, for newer ones
            if not isinstance(error, UserError):
                raise
            _state(output_dir, checkpoint, repo, "failed", error=str(error))
            print(error, file=sys.stderr)
            return 1
    return 0


def _push(run: RunFolder, checkpoint: Path, repo: str, *, while_training: bool) -> None:
    from ochat_train.export.export import export_checkpoint
    from ochat_train.hub.push import CARD_LEFT, push

    if while_training:
        _leave_room(checkpoint)
    output_dir, step = run.path, CheckpointManifest.load(checkpoint).step
    _state(output_dir, checkpoint, repo, "exporting")
    out = export_checkpoint(run, checkpoint, export_folder(output_dir), overwrite=True)
    _state(output_dir, checkpoint, repo, "uploading")
    pushed = push(out, repo, private=run.recipe.train.hub_private, message=f"Step {step}", progress=True)
    note = f"{repo}: {CARD_LEFT}" if pushed.card_left else None
    _state(output_dir, checkpoint, repo, "pushed", url=pushed.url, commit=pushed.commit, note=note)


def _leave_room(checkpoint: Path) -> None:
    """Raise UserError where an export could take the room that the run needs for its next checkpoint."""
    size = sum(num_bytes for num_bytes, _ in CheckpointManifest.load(checkpoint).files.values())
    free = shutil.disk_usage(checkpoint).free
    if free < 2 * size:
        raise UserError(
            f"{checkpoint.parent} has {free / 2**30:.2f} GiB free; an export beside the next checkpoint needs up to "
            f"{2 * size / 2**30:.2f} GiB"
        )


def _state(output_dir: Path, checkpoint: Path, repo: str, doing: str, **more: Any) -> None:
    step = CheckpointManifest.load(checkpoint).step
    PushState(repo=repo, step=step, checkpoint=_identity(checkpoint), doing=doing, **more).save(output_dir)


def _end_with(parent: int) -> None:
    """End this process soon after its parent, which may be killed without a word."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
