"""Ends the writer of checkpoints at each of its changes to the disk, one after the other, and looks at what is left.

    python -m tests.support.failpoints RECIPE        one rank with a real engine; prints one JSON document

The process is not killed for real (that is what the kill tests do): an exception that nothing catches leaves the writer
at that point, so that hundreds of points take a minute. Writes are also left half-way.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

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
from ochat_train.system import durable
from ochat_train.training import loop, run

CHANGES = ("write_all", "sync_file", "sync_folder", "make_folder", "rename", "remove_folder")


class EndOfProcessError(BaseException):
    """Nothing may catch it: a process that is killed runs no handlers."""


class Failpoint:
    """Counts the changes to the disk and ends at the nth one, before it or (`half`) in the middle of a write."""

    def __init__(self, nth: int, *, half: bool) -> None:
        self.nth, self.half, self.calls = nth, half, 0
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
            self.calls += 1
            if self.calls > self.nth:  # torch.save gives an error of its own for ours, which the writer handles
                raise EndOfProcessError
            if self.calls == self.nth:
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
    from ochat_train.cli.main import main as ochat

    kept: dict[str, Any] = {}
    original = loop.save_checkpoint

    def keep(engine: Any, ranks: Any, output_dir: Path, **arguments: Any) -> Any:
        kept.update(engine=engine, ranks=ranks, output_dir=output_dir, arguments=arguments)
        return original(engine, ranks, output_dir, **arguments)

    loop.save_checkpoint = keep
    run.stop_ranks = lambda: None
    assert ochat(["train", str(recipe_path)]) == 0
    engine, ranks, output_dir, arguments = kept["engine"], kept["ranks"], kept["output_dir"], kept["arguments"]
    clean = output_dir.with_name("clean")
    shutil.copytree(output_dir, clean)
    outcome = {"points": 0, "recovered": 0, "without_manifest": 0}
    newest = arguments["progress"].step
    arguments = {**arguments, "progress": Progress(step=newest + 1)}
    for half in (False, True):
        nth = 0
        while True:
            nth += 1
            shutil.rmtree(output_dir)
            shutil.copytree(clean, output_dir)
            with Failpoint(nth, half=half) as failpoint:
                try:
                    writer.save_checkpoint(engine, ranks, output_dir, **arguments)
                except EndOfProcessError:
                    pass
                else:
                    assert failpoint.calls < nth
                    break
            outcome["points"] += 1
            outcome["recovered"] += recovers(engine, output_dir, newest)
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
