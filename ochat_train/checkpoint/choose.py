"""Which checkpoint of a run a user means; a run that still trains may delete it while it is read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

from data_pipeline.errors import UserError
from ochat_train.checkpoint.state import MANIFEST, best_checkpoint, checkpoints_dir, list_checkpoints, step_of
from ochat_train.system.messages import print_message

T = TypeVar("T")

Step = int | Literal["best"] | None  # of the checkpoint: a number, the `best` validated one, the newest

_MOST_TRIES = 3


class CheckpointDeletedError(UserError):
    """A checkpoint was there, and is no longer."""


@contextlib.contextmanager
def reading(checkpoint: Path) -> Iterator[None]:
    """Raise CheckpointDeletedError in the place of any error of a block whose checkpoint has been deleted meanwhile."""
    try:
        yield
    except Exception as error:
        if (checkpoint / MANIFEST).is_file():
            raise
        raise CheckpointDeletedError(
            checkpoint, "was deleted while it was read", "choose another checkpoint"
        ) from error


def find_checkpoint(output_dir: Path, step: Step) -> Path:
    """The newest checkpoint of a run (None), that of `step`, or the `best` validated one. Raises UserError where there
    is none.
    """
    # Twice: all that the first look lists may have been deleted, after a newer one was written, before it looks inside.
    available = list_checkpoints(output_dir) or list_checkpoints(output_dir)
    if not available:
        raise UserError(checkpoints_dir(output_dir), "holds no complete checkpoint", "train first")
    if step is None:
        return available[-1]
    if step == "best":
        best = best_checkpoint(available)
        if best is None:
            raise UserError(
                "--step best",
                f"no checkpoint of {output_dir} was validated",
                "set data.validation_ratio, or name a step",
            )
        return best
    by_step = {step_of(folder): folder for folder in available}
    if step not in by_step:
        steps = ", ".join(map(str, by_step))
        raise UserError(f"--step {step}", "no such checkpoint", f"steps there: {steps}")
    return by_step[step]


def with_checkpoint(output_dir: Path, step: Step, use: Callable[[Path], T], *, keep_last: int) -> T:
    """`use` of the checkpoint that a user means.

    Where `use` raises CheckpointDeletedError, it is called again with the checkpoint that is then the newest (or the
    best), a few times. A step that was named is never replaced by another one: that is a UserError. keep_last: of the
    run's recipe, for messages.
    """
    keeps = f"the run still trains, and deletes old checkpoints (checkpoint.keep_last: {keep_last})"
    for _ in range(_MOST_TRIES):
        checkpoint = find_checkpoint(output_dir, step)
        try:
            return use(checkpoint)
        except CheckpointDeletedError as error:
            if isinstance(step, int):
                problem = f"{checkpoint} was deleted while it was read: {keeps}"
                raise UserError(f"--step {step}", problem, "choose a newer step, or leave `--step` out") from error
            print_message(f"{checkpoint.name} was deleted while it was read: {keeps}; looking for the next one")
    raise UserError(
        checkpoints_dir(output_dir),
        f"{_MOST_TRIES} checkpoints in a row were deleted while they were read: {keeps}",
        "wait until the run has ended, or keep more checkpoints",
    )
