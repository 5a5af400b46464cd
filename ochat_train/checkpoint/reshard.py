"""Checkpoints for another number of GPUs or another ZeRO stage, through DeepSpeed's universal checkpoints.

DeepSpeed cuts optimizer states into one piece per rank. Its converter joins the pieces to one folder per parameter, and
its engine reads each rank's new piece from there.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch

from data_pipeline.errors import UserError
from ochat_train.checkpoint.changes import states_of
from ochat_train.checkpoint.state import STATE, UNIVERSAL_PREFIX, CheckpointManifest, refuse_unsafe_pickles
from ochat_train.distributed.ranks import Ranks, on_main_rank
from ochat_train.optimizer.shards import widen
from ochat_train.system.sizes import GIB

# ZeRO stages between which DeepSpeed's converter works: without ZeRO there are no pieces, and stage 3 names its files
# otherwise
_WIDER = 2.5  # at most, of small states as float32, measured by the whole checkpoint
CONVERTIBLE_STAGES = ((1, 1), (1, 2), (2, 1), (2, 2), (3, 3))


@contextlib.contextmanager
def resharded(folder: Path, ranks: Ranks) -> Iterator[Path]:
    """The checkpoint `folder` converted to a universal one beside it, which is deleted once all ranks have loaded it.

    All ranks call it. A process that dies meanwhile leaves the folder; the next checkpoint deletes it. Raises UserError
    on all ranks if the disk has too little room.
    """
    target = folder.with_name(f"{UNIVERSAL_PREFIX}{folder.name}")
    on_main_rank(ranks, lambda: _convert(folder, target))
    yield target
    torch.distributed.barrier()
    if ranks.is_main:
        shutil.rmtree(target)


def place_step_counts(optimizer: torch.optim.Optimizer) -> None:
    """Move AdamW's step counts to where the fused kernel needs them: beside their parameters.

    DeepSpeed reads them from a universal checkpoint into CPU memory, and torch then refuses the next update on a GPU.
    Kernels that are not fused want them on the CPU.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("fused") else ():
            state = optimizer.state[parameter]
            if isinstance(state.get("step"), torch.Tensor):
                state["step"] = state["step"].to(parameter.device)


def _convert(folder: Path, target: Path) -> None:
    from deepspeed.checkpoint import ds_to_universal

    refuse_unsafe_pickles(folder)
    shutil.rmtree(target, ignore_errors=True)
    manifest = CheckpointManifest.load(folder)
    size = sum(size for size, _ in manifest.files.values())
    is_small = states_of(manifest.recipe) != "float32"
    needed = _WIDER * 3 * size if is_small else 2 * size  # slices, and what they become; small states also widened
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            folder,
            f"converting it for another number of GPUs or ZeRO stage needs about {needed / GIB:.2f} GiB beside it "
            f"while it is loaded, and {free / GIB:.2f} GiB are free",
            "make room",
        )
    source = folder / STATE
    if is_small:
        source = target / "widened"
        target.mkdir()
        widen(folder / STATE, source)
    arguments = SimpleNamespace(
        input_folder=str(source),
        output_folder=str(target / STATE),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # its progress bars
        ds_to_universal.main(arguments)
    if is_small:
        shutil.rmtree(source)
