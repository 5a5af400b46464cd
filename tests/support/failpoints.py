"""Ends the writer of checkpoints at each of its changes to the disk, one after the other, and looks at what is left.

    python -m tests.support.failpoints RECIPE        one rank with a real engine; prints one JSON document

The process is not killed for real (that is what the kill tests do): an exception that nothing catches leaves the writer
at that point, so that hundreds of points take a minute. Writes are also left half-way.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from ochat_train.checkpoint import writer
from ochat_train.checkpoint.state import (
    CheckpointManifest,
    Progress,
    checkpoints_dir,
    list_checkpoints,
    load_engine_state,
    load_random_states,
    verify,
)
from ochat_train.distributed.engine import TrainingEngine
from ochat_train.distributed.ranks import Ranks
from ochat_train.recipe.load import load_recipe
from ochat_train.system import durable
from ochat_train.training.hooks import Hooks
from ochat_train.training.run import train
from ochat_train.training.step import Step

CHANGES = ("write_all", "sync_file", "sync_folder", "make_folder", "rename", "remove_folder")
HALVED = ("write_all", "remove_folder")  # changes that can end half-way; the others happen or not


class EndOfProcessError(BaseException):
    """Nothing may catch it: a process that is killed runs no handlers."""


class Failpoint:
    """Counts the changes to the disk and ends at the nth one, before it or (`half`) in the middle of a write."""

    def __init__(self, nth: int, *, half: bool) -> None:
        self.nth, self.half, self.names = nth, half, list[str]()
        self.originals = {name: getattr(durable, name) for name in CHANGES}

    def __enter__(self) -> Failpoint:
        for name, original in self.originals.items():
            setattr(durable, name, self._counted(name, original))
        return self

    def __exit__(self, *error: Any) -> None:
        for name, original in self.originals.items():
            setattr(durable, name, original)

    def _counted(self, name: str, original: Any) -> Any:
        def change(*arguments: Any) -> Any:
            self.names.append(name)
            if len(self.names) > self.nth:  # torch.save raises another error for ours, which the writer handles
                raise EndOfProcessError
            if len(self.names) == self.nth:
                if self.half and name == "write_all":
                    data = memoryview(arguments[1]).cast("B")
                    original(arguments[0], data[: len(data) // 2])
                if self.half and name == "remove_folder":
                    next(path for path in arguments[0].rglob("*") if path.is_file()).unlink()
                raise EndOfProcessError
            return original(*arguments)

        return change


def run_failpoints(recipe: Path) -> dict[str, int]:
    """Run this file on one rank; points, recovered, and how often shards were left that have no manifest."""
    from tests.support.processes import finish, start_ranks

    outputs, codes = finish(start_ranks("tests.support.failpoints", str(recipe), num_ranks=1))
    assert codes == [0], outputs[0][-4000:]
    outcome: dict[str, int] = json.loads(outputs[0].splitlines()[-1])
    return outcome


def main(recipe_path: Path) -> dict[str, int]:
    """Train two steps with a checkpoint after the first; then end the writer of the second at every point."""
    recipe = load_recipe(recipe_path)
    engine: Any = None

    def keep(deepspeed_engine: TrainingEngine, step: Step) -> Step:
        nonlocal engine
        engine = deepspeed_engine
        return step

    train(recipe, resume="auto", hooks=Hooks(before_step=keep, leave_ranks=lambda: None))
    output_dir = Path(recipe.output_dir)
    newest = CheckpointManifest.load(list_checkpoints(output_dir)[-1])
    arguments: dict[str, Any] = {
        "progress": Progress(step=newest.step + 1),
        "recipe": recipe,
        "data_fingerprint": newest.data_fingerprint,
    }
    ranks = Ranks(rank=0, num_ranks=1, device=torch.device("cpu"))
    clean = output_dir.with_name("clean")
    shutil.copytree(output_dir, clean)
    outcome = {"points": 0, "recovered": 0, "without_manifest": 0}
    shutil.rmtree(output_dir)
    shutil.copytree(clean, output_dir)
    with Failpoint(sys.maxsize, half=False) as changes:
        writer.save_checkpoint(engine, ranks, output_dir, **arguments)
    for nth, (before, name) in enumerate(zip(["", *changes.names], changes.names, strict=False), start=1):
        ends_half_way = name in HALVED and before != "write_all"  # between two writes a file is half-written anyway
        for half in (False, True) if ends_half_way else (False,):
            shutil.rmtree(output_dir)
            shutil.copytree(clean, output_dir)
            with Failpoint(nth, half=half) as failpoint, contextlib.suppress(EndOfProcessError):
                writer.save_checkpoint(engine, ranks, output_dir, **arguments)
            assert failpoint.names[:nth] == changes.names[:nth], "every write makes the same changes"
            outcome["points"] += 1
            outcome["recovered"] += recovers(engine, output_dir, newest.step)
            outcome["without_manifest"] += bool(list(checkpoints_dir(output_dir).glob(".tmp-*/state/*.pt")))
    return outcome


def recovers(engine: Any, output_dir: Path, newest: int) -> bool:
    """Whether what a restart would choose is intact, loads, and is no older than the one before the write."""
    chosen = next((folder for folder in reversed(list_checkpoints(output_dir)) if verify(folder) is None), None)
    if chosen is None:
        return False
    load_engine_state(engine, chosen)
    load_random_states(chosen, rank=0, device=next(engine.module.parameters()).device)
    return CheckpointManifest.load(chosen).step >= newest


if __name__ == "__main__":
    print("\n" + json.dumps(main(Path(sys.argv[1]))))
