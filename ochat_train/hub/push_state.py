"""What a push beside a run has done (`PushState`, a file), and what its run does next (`next_action`, a pure function).

The checkpoint to push is the one with the lowest validation loss, or the newest if nothing is validated.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Literal

from data_pipeline import nesting
from data_pipeline.errors import UserError
from ochat_train.checkpoint.state import MANIFEST, CheckpointManifest, best_checkpoint, list_checkpoints
from ochat_train.system.durable import replace_text


@dataclass(frozen=True, kw_only=True)
class PushState:
    """How far the push process is. checkpoint: sha256 of the checkpoint's manifest.

    url, commit, note: of a finished push; note is for the user. error: why a push failed.
    """

    repo: str
    step: int
    checkpoint: str
    doing: Literal["exporting", "uploading", "pushed", "failed"]
    url: str | None = None
    commit: str | None = None
    note: str | None = None
    error: str | None = None

    @property
    def is_working(self) -> bool:
        """Whether the process that wrote this had not finished."""
        return self.doing in ("exporting", "uploading")

    @staticmethod
    def load(output_dir: Path) -> PushState | None:
        """The state of a run's push; None if there is none that can be read."""
        try:
            return PushState(**nesting.loads(state_file(output_dir).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def save(self, output_dir: Path) -> None:
        """Write the state; readers see the old one or the new one."""
        replace_text(state_file(output_dir), json.dumps(asdict(self), indent=1) + "\n")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A checkpoint to push. sha256: of its manifest, which names it. num_bytes: of all its files."""

    folder: Path
    step: int
    sha256: str
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class ProcessStatus:
    """The push process, as its run sees it. exit_code: None while it runs, and if none was started."""

    is_running: bool
    exit_code: int | None = None


class Phase(Enum):
    """Where the run is."""

    TRAINING = auto()
    FINISHED = auto()  # trained, its last checkpoint is written
    LAST_TRY = auto()  # the same, and the push process was started after the last checkpoint


class Action(Enum):
    """What a run does about its push."""

    NOTHING = auto()  # while it trains: a process is at work, or there is no checkpoint
    WAIT = auto()
    START = auto()
    CANCEL = auto()  # the process pushes a checkpoint that is no longer the right one
    DONE = auto()
    GIVE_UP = auto()


def next_action(
    process: ProcessStatus, state: PushState | None, candidate: Candidate | None, *, repo: str, phase: Phase
) -> Action:
    """What to do next about pushing `candidate` to `repo`.

    While the run trains it never waits, and never cancels an upload: a checkpoint that comes after it may be better
    still. After the training it waits, cancels what is obsolete, and gives up only after a try that began with all
    checkpoints on the disk and no training that needs the room.
    """
    if is_pushed(state, candidate, repo=repo):
        return Action.DONE
    if phase is Phase.TRAINING:
        return Action.NOTHING if process.is_running or candidate is None else Action.START
    if process.is_running:
        return Action.CANCEL if phase is Phase.FINISHED and _is_obsolete(state, candidate) else Action.WAIT
    return Action.GIVE_UP if phase is Phase.LAST_TRY or candidate is None else Action.START


def is_pushed(state: PushState | None, candidate: Candidate | None, *, repo: str) -> bool:
    """Whether `candidate` is on the Hub in `repo`."""
    if state is None or candidate is None:
        return False
    return (state.doing, state.repo, state.checkpoint) == ("pushed", repo, candidate.sha256)


def _is_obsolete(state: PushState | None, candidate: Candidate | None) -> bool:
    """Whether the process works on another checkpoint. One that has not chosen yet will choose the right one."""
    if state is None or candidate is None or not state.is_working:
        return False
    return state.checkpoint != candidate.sha256


def failure(process: ProcessStatus, state: PushState | None, *, log: Path) -> str | None:
    """Why a process that has ended did not push; None if it did, or if none has ended."""
    if process.exit_code is None or (state is not None and state.doing == "pushed"):
        return None
    if state is not None and state.error is not None:
        return state.error
    return f"the process ended early (code {process.exit_code}), see {log}" if process.exit_code else None


def checkpoint_to_push(output_dir: Path) -> Candidate | None:
    """The checkpoint with the lowest validation loss, the newest if nothing is validated; None if there is none.

    A run deletes old checkpoints while this looks: one that disappears is not a candidate.
    """
    folders = [folder for folder in list_checkpoints(output_dir) if _is_readable(folder)]
    try:
        chosen = best_checkpoint(folders) or (folders[-1] if folders else None)
        return None if chosen is None else _candidate(chosen)
    except (UserError, FileNotFoundError):  # deleted after it was listed: the next look does not find it
        return checkpoint_to_push(output_dir)


def _is_readable(checkpoint: Path) -> bool:
    try:
        CheckpointManifest.load(checkpoint)
    except UserError:  # deleted meanwhile, or damaged
        return False
    return True


def _candidate(folder: Path) -> Candidate:
    manifest = CheckpointManifest.load(folder)
    return Candidate(
        folder=folder,
        step=manifest.step,
        sha256=hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest(),
        num_bytes=sum(num_bytes for num_bytes, _ in manifest.files.values()),
    )


def hub_folder(output_dir: Path) -> Path:
    """The part of a run folder that pushing uses."""
    return output_dir / "hub"


def export_folder(output_dir: Path) -> Path:
    """The export that is pushed."""
    return hub_folder(output_dir) / "export"


def state_file(output_dir: Path) -> Path:
    """Where the state of a run's push is."""
    return hub_folder(output_dir) / "state.json"
