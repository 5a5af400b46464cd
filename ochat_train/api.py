"""The Python API: what the verbs of `ochat` do, as functions (docs/python-api.md).

    from ochat_train import load_recipe, prepare, train, export

    recipe = load_recipe("recipes/mine.yaml")
    prepare(recipe)
    run = train(recipe)
    export(run.folder, run.folder / "export")

`export` is in export/export.py. Problems that a user can fix are raised as `UserError`, other ends of a command as
other kinds of `ReportedError`. Importing `ochat_train` loads nothing: each name loads what it needs.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.errors import UserError
from data_pipeline.prepared.dataset import Manifest
from ochat_train.recipe import load, preparation
from ochat_train.recipe.recipe import Recipe
from ochat_train.system.messages import print_message

if TYPE_CHECKING:
    from ochat_train.training.hooks import Hooks

__all__ = ["Recipe", "TrainedRun", "answer", "load_recipe", "prepare", "train"]

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A run that was trained to its end. folder: `output_dir` of the recipe. checkpoint: the newest. step: of it."""

    folder: Path
    checkpoint: Path
    step: int


def load_recipe(path: PathLike, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe. overrides: `section.key=value` texts, as after `--set`.

    Raises UserError with every problem found, each with its place.
    """
    return load.load_recipe(Path(path), overrides)


def prepare(recipe: Recipe, *, num_workers: int | None = None) -> Manifest:
    """Turn a recipe's raw conversations into a prepared dataset, or find the one that is up to date.

    num_workers: processes; None for one per core. Returns what the dataset holds: `ledger` (conversations read, kept
    and left out, with reasons), `splits`, `classes`. Raises UserError for data that cannot be used.
    """
    manifest, _ = preparation.prepare_recipe(
        recipe, num_workers=num_workers, progress=lambda rows: None, say=print_message
    )
    return manifest


def train(recipe: Recipe, *, resume: PathLike = "auto", accept_changes: bool = False) -> TrainedRun:
    """Train a recipe on its prepared dataset, in this process, on one GPU or the CPU.

    Under a launcher (`deepspeed --num_gpus 8 my_script.py`) every rank calls this, and all GPUs are used; without one,
    a message names the launcher where there are more GPUs. resume: `auto` continues from the newest intact checkpoint,
    `never` starts from the beginning, a path names a checkpoint. accept_changes: resume although data or settings have
    changed. Returns when all steps are done; a run that is complete already trains nothing.

    Raises UserError for what a user can fix. Ctrl-C and SIGTERM write a checkpoint and raise StoppedBySignalError.
    Must be called in the main thread, which receives signals.
    """
    if threading.current_thread() is not threading.main_thread():
        raise UserError("train", "was called in a thread, which receives no signals", "call it in the main thread")
    from ochat_train.checkpoint.state import list_checkpoints, step_of
    from ochat_train.training import run

    with _as_only_rank() as hooks:
        run.train(recipe, resume=os.fspath(resume), accept_changes=accept_changes, hooks=hooks)
    folder = Path(recipe.output_dir)
    newest = list_checkpoints(folder)[-1]
    return TrainedRun(folder=folder, checkpoint=newest, step=step_of(newest))


def answer(
    model: PathLike,
    prompt: str,
    *,
    condition: str | None = None,
    system: str = "",
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    base: str | None = None,
) -> str:
    """The answer of an exported model to one message: a quick look, which loads the model each time.

    condition: to answer under; None for the export's own. system: empty for none. temperature: 0 for greedy. base: of
    an adapter; None for the one that it names. Raises UserError for a folder that is not an export.
    """
    from ochat_train.inference.generate import load_generator

    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    [text] = load_generator(Path(model), base=base).answers(
        [messages], condition=condition, max_new_tokens=max_new_tokens, temperature=temperature
    )
    return text


@contextlib.contextmanager
def _as_only_rank() -> Iterator[Hooks]:
    """The hooks of a training in this process, which is left without a launcher's variables.

    Without a launcher, `start_ranks` sets the variables that one would set, and makes a process group of one. Processes
    that are started later must not inherit the variables. The group stays until this process ends: DeepSpeed keeps
    groups in globals, and a second training would use those that were destroyed.
    """
    import torch

    from ochat_train.distributed.launch import is_launched, without_launcher
    from ochat_train.training.hooks import Hooks

    if is_launched(os.environ):
        yield Hooks()
        return
    if (num_gpus := torch.cuda.device_count()) > 1:
        print_message(
            f"this process trains on one of {num_gpus} GPUs; for all of them, start the script with `deepspeed "
            f"--num_gpus {num_gpus} SCRIPT.py`, or train with `./launch.sh RECIPE`"
        )
    atexit.register(_leave_group)
    try:
        yield Hooks(leave_ranks=lambda: None)
    finally:
        for name in os.environ.keys() - without_launcher(os.environ).keys():
            del os.environ[name]


def _leave_group() -> None:
    """At the end of the process: otherwise NCCL warns of leaked resources."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
