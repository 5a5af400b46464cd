"""Writes a checkpoint: all ranks agree that it is complete, or none of them has one and the older ones are untouched.

Every rank writes and hashes its own files under a temporary name; the ranks exchange what they wrote; rank 0 writes the
manifest, renames the folder and moves LATEST. A rank that cannot write (a full disk) says so in that exchange, so that
all ranks stop with the same message instead of waiting for it.
"""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from data_pipeline.errors import UserError
from data_pipeline.files import free_bytes
from ochat_train.checkpoint.basis import UNKNOWN_BASIS, RunBasis
from ochat_train.checkpoint.room import checkpoint_bytes
from ochat_train.checkpoint.state import (
    STATE,
    UNIVERSAL_PREFIX,
    CheckpointManifest,
    Progress,
    best_checkpoint,
    checkpoint_dir,
    list_checkpoints,
    rng_file,
    trained_names,
    verify,
)
from ochat_train.distributed.ranks import Ranks, gathered, on_main_rank
from ochat_train.optimizer.shards import alone, has_small_states, states_of_engine
from ochat_train.recipe.recipe import Recipe
from ochat_train.system import durable
from ochat_train.system.messages import print_message
from ochat_train.system.sizes import GIB
from ochat_train.system.versions import library_versions


class RankFiles:
    """What this rank has written of a checkpoint. Replaces DeepSpeed's own writer while a checkpoint is written.

    DeepSpeed waits for all ranks after its writes, so a failed write must not end this rank: it is kept in `failure`.
    only: names of the weights to write; None for all. shares_weights: whether the optimizer updates the weights
    themselves.
    """

    def __init__(
        self, folder: Path, original: Any, *, only: Collection[str] | None = None, shares_weights: bool = False
    ) -> None:
        self._folder, self._original, self._only = folder, original, only
        self._shares_weights = shares_weights
        self.records: dict[str, durable.FileRecord] = {}
        self.failure: str | None = None

    def __getattr__(self, name: str) -> Any:  # what DeepSpeed asks its writer beside the three below
        return getattr(self._original, name)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Nothing: rank 0 made the folders."""

    def save(self, state_dict: Any, path: str) -> None:
        """Write one of DeepSpeed's files."""
        if self._only is not None and state_dict.get("module") is not None:
            # DeepSpeed leaves out frozen parameters by one of their names: a tied head would still be written
            weights = {name: tensor for name, tensor in state_dict["module"].items() if name in self._only}
            state_dict = {**state_dict, "module": weights}
        content = alone(state_dict) if self._shares_weights else state_dict
        self.write(Path(path), lambda stream: torch.save(content, stream))

    def write(self, path: Path, write: Callable[[Any], object]) -> None:
        """Write a file, and note its hash or why it could not be written."""
        if self.failure is not None:
            return
        try:
            self.records[str(path.relative_to(self._folder))] = durable.write_file(path, write)
        except (OSError, RuntimeError) as error:  # torch wraps a full disk in a RuntimeError
            cause = error.__context__ if isinstance(error.__context__, OSError) else error
            self.failure = f"{path.name}: {cause}"


def save_checkpoint(
    engine: Any,
    ranks: Ranks,
    output_dir: Path,
    *,
    progress: Progress,
    recipe: Recipe,
    data_fingerprint: str,
    validation_loss: float | None = None,
    basis: RunBasis = UNKNOWN_BASIS,
) -> Path:
    """Write a checkpoint. All ranks call it; all return, or all raise UserError with the same cause."""
    final = checkpoint_dir(output_dir, progress.step)
    is_adapter = basis.adapter is not None
    temporary = Path(_from_main(ranks, final, lambda: _start(engine, ranks, final, only_trained=is_adapter)))
    files = _write_own_files(engine, ranks, temporary, only_trained=is_adapter)
    reports = gathered(ranks, (files.records, files.failure))

    def publish() -> str:
        failures = [f"rank {rank}: {failure}" for rank, (_, failure) in enumerate(reports) if failure]
        if failures:
            with contextlib.suppress(OSError):
                durable.remove_folder(temporary)
            free = free_bytes(final)
            room = "" if free is None else f" ({free / GIB:.2f} GiB are free now)"
            raise OSError(f"{'; '.join(failures)}{room}")
        records = {name: record for written, _ in reports for name, record in written.items()}
        _check_complete(temporary, records, engine, ranks)
        manifest = CheckpointManifest(
            progress=progress,
            num_ranks=ranks.num_ranks,
            recipe=recipe.model_dump(mode="json", by_alias=True),
            data_fingerprint=data_fingerprint,
            validation_loss=validation_loss,
            versions=dict(basis.versions) or library_versions(),
            data_rows=basis.rows_digest,
            base_config=dict(basis.config),
            base_weights=basis.base_weights,
            adapter=basis.adapter,
            learning_rate_rule=basis.learning_rate_rule,
            files={name: (record.num_bytes, record.sha256) for name, record in sorted(records.items())},
        )
        _publish(temporary, final, manifest)
        _delete_old(output_dir, keep_last=recipe.checkpoint.keep_last)
        return str(final)

    return Path(_from_main(ranks, final, publish))


def _write_own_files(engine: Any, ranks: Ranks, temporary: Path, *, only_trained: bool) -> RankFiles:
    """Write what this rank has of the state, and its random states. A failed write is in what is returned."""
    files = RankFiles(
        temporary,
        engine.checkpoint_engine,
        only=trained_names(engine.module) if only_trained else None,
        shares_weights=has_small_states(engine),
    )
    engine.checkpoint_engine = files
    engine._copy_recovery_script = lambda folder: None  # scripts beside the state; `ochat export` does what they do
    try:
        engine.save_checkpoint(str(temporary), tag=STATE, save_latest=False, exclude_frozen_parameters=only_trained)
    finally:
        engine.checkpoint_engine = files._original
    files.write(temporary / rng_file(ranks.rank), lambda stream: stream.write(save(_rng_state(ranks.device))))
    return files


def _from_main(ranks: Ranks, checkpoint: Path, work: Callable[[], str]) -> str:
    """Let rank 0 do something for all ranks; if it fails, all of them raise UserError."""

    def with_remedy() -> str:
        try:
            return work()
        except OSError as error:
            remedy = "earlier checkpoints are unchanged; make room, and start again to resume from the newest"
            raise UserError(checkpoint, f"could not be written: {error}", remedy) from error

    return str(on_main_rank(ranks, with_remedy))


def _start(engine: Any, ranks: Ranks, final: Path, *, only_trained: bool) -> str:
    """Check the free space and make the temporary folder. Only one run writes here, so half-written ones can go."""
    final.parent.mkdir(exist_ok=True)  # without parents: a run folder that was deleted is not made again
    for pattern in (".tmp-step-*", ".deleted-*", f"{UNIVERSAL_PREFIX}*"):
        for leftover in list(final.parent.glob(pattern)):
            durable.remove_folder(leftover)
    needed = estimated_bytes(engine, ranks.num_ranks, only_trained=only_trained)
    free = shutil.disk_usage(final.parent).free
    if free < needed:
        raise OSError(
            f"{final.parent} needs about {needed / GIB:.2f} GiB for a checkpoint and has {free / GIB:.2f} GiB "
            "free; nothing was written"
        )
    temporary = final.parent / f".tmp-{final.name}-{uuid.uuid4().hex[:8]}"
    durable.make_folder(temporary / STATE)
    return str(temporary)


def estimated_bytes(engine: Any, num_ranks: int, *, only_trained: bool = False) -> int:
    """Size of a checkpoint of this engine. only_trained: of an adapter."""
    sizes = [(getattr(parameter, "ds_numel", parameter.numel()), parameter) for parameter in engine.module.parameters()]
    frozen: int = sum(size * parameter.element_size() for size, parameter in sizes if not parameter.requires_grad)
    return (0 if only_trained else frozen) + checkpoint_bytes(
        sum(size for size, parameter in sizes if parameter.requires_grad),
        zero_stage=engine.zero_optimization_stage(),
        bfloat16=engine.bfloat16_enabled(),
        num_ranks=num_ranks,
        states=states_of_engine(engine),
    )


def _check_complete(temporary: Path, records: dict[str, durable.FileRecord], engine: Any, ranks: Ranks) -> None:
    """Every rank's files are there, with the sizes that were written, and nothing else is."""
    sizes = {str(p.relative_to(temporary)): p.stat().st_size for p in temporary.rglob("*") if p.is_file()}
    wrong = {
        name
        for name in sizes.keys() | records.keys()
        if name not in records or sizes.get(name) != records[name].num_bytes
    }
    num_shards = sum(name.endswith("optim_states.pt") for name in records)
    expected = ranks.num_ranks if engine.zero_optimization_stage() or engine.bfloat16_enabled() else 0
    if wrong or num_shards != expected:
        raise OSError(
            f"{temporary} holds {num_shards} of {expected} shards; wrong or missing: {sorted(wrong) or 'none'}"
        )


def _publish(temporary: Path, final: Path, manifest: CheckpointManifest) -> None:
    manifest.write(temporary)
    for folder in (temporary / STATE, temporary):
        durable.sync_folder(folder)
    if final.exists():  # the same step of an earlier attempt, which was not intact or not resumed from
        durable.remove_folder(final)
    durable.rename(temporary, final)
    durable.replace_text(final.parent / "LATEST", final.name + "\n")


def _delete_old(output_dir: Path, *, keep_last: int) -> None:
    """Delete all but the newest `keep_last` checkpoints and the best; one with missing or short files neither counts
    nor is deleted.
    """
    intact = []
    for folder in list_checkpoints(output_dir):
        if problem := verify(folder, hashes=False):
            print_message(f"{folder} is not intact ({problem}); it is neither counted nor deleted")
        else:
            intact.append(folder)
    best = best_checkpoint(intact)
    for old in intact[:-keep_last]:
        if old != best:
            durable.remove_folder(old)


def _rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state
