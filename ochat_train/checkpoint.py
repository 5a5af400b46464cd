"""Resume states: written so that one is complete or not there, and checked byte by byte before it is read.

    OUTPUT_DIR/checkpoints/
        step-00000200/
            state/               DeepSpeed's files, all ranks
            rng-00000.safetensors, ...   random number states, one per rank
            MANIFEST.json        sizes and sha256 of all files, step, ranks, recipe, data: the mark of completeness
        LATEST                   name of the newest one

DeepSpeed's own `latest` pointer is not used: it moves before the other ranks have written their shards.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from data_pipeline.errors import UserError
from ochat_train.engine import Ranks

MANIFEST = "MANIFEST.json"
STATE = "state"
_NAME = re.compile(r"step-(\d{8})")
# What DeepSpeed's files hold beside tensors and plain containers; anything else in a pickle is refused.
_ALLOWED_GLOBALS = {
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.utils.tensor_fragment.fragment_address",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
}


@dataclass(frozen=True, kw_only=True)
class CheckpointManifest:
    """What a checkpoint holds. step: optimizer steps done. files: relative path -> [bytes, sha256]."""

    step: int
    num_ranks: int
    zero_stage: int
    recipe_fingerprint: str
    data_fingerprint: str
    versions: dict[str, str]
    files: dict[str, tuple[int, str]]


def checkpoints_dir(output_dir: Path) -> Path:
    """Where the checkpoints of a run are."""
    return output_dir / "checkpoints"


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints (they have a manifest), oldest first."""
    root = checkpoints_dir(output_dir)
    folders = [p for p in root.iterdir() if _NAME.fullmatch(p.name)] if root.is_dir() else []
    return sorted(folder for folder in folders if (folder / MANIFEST).is_file())


def read_manifest(folder: Path) -> CheckpointManifest:
    """The manifest of a checkpoint. Raises UserError where it is missing or broken."""
    try:
        return CheckpointManifest(**json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder}: no readable {MANIFEST} ({error}); choose another checkpoint") from None


def verify(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, None if all sizes and hashes are as written."""
    for name, (size, sha256) in read_manifest(folder).files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if _sha256(path) != sha256:
            return f"{name} has changed since it was written (sha256 differs)"
    return None


def save_checkpoint(
    engine: Any, ranks: Ranks, output_dir: Path, *, step: int, zero_stage: int, recipe_fingerprint: str,
    data_fingerprint: str, keep_last: int,
) -> Path:  # fmt: skip
    """Write a resume state after `step` optimizer steps. All ranks call it; all return, or all raise."""
    final = checkpoints_dir(output_dir) / f"step-{step:08d}"
    temporary = final.parent / f".tmp-{final.name}"
    if ranks.is_main:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    torch.distributed.barrier()
    engine.save_checkpoint(str(temporary), tag=STATE, client_state={"step": step}, save_latest=False)
    save_file(_rng_state(ranks.device), str(temporary / f"rng-{ranks.rank:05d}.safetensors"))
    torch.distributed.barrier()
    if ranks.is_main:
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        manifest = CheckpointManifest(
            step=step,
            num_ranks=ranks.num_ranks,
            zero_stage=zero_stage,
            recipe_fingerprint=recipe_fingerprint,
            data_fingerprint=data_fingerprint,
            versions=library_versions(),
            files={str(p.relative_to(temporary)): (p.stat().st_size, _sha256(p)) for p in files},
        )
        for file in files:
            _sync(file)
        (temporary / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1), encoding="utf-8")
        _sync(temporary / MANIFEST)
        if final.exists():  # the same step of an earlier attempt
            shutil.rmtree(final)
        temporary.rename(final)
        _sync(final.parent)
        latest = final.parent / ".LATEST.tmp"
        latest.write_text(final.name + "\n", encoding="utf-8")
        latest.replace(final.parent / "LATEST")
        for old in list_checkpoints(output_dir)[:-keep_last]:
            shutil.rmtree(old)
    torch.distributed.barrier()
    return final


def choose_checkpoint(output_dir: Path, resume: str, ranks: Ranks, *, zero_stage: int, data_fingerprint: str) -> Path | None:
    """The checkpoint to go on from: the newest one that verifies (`auto`), none (`never`), or the folder named.

    Rank 0 decides for all ranks. Raises UserError, on all ranks, where the checkpoint does not fit this run.
    """
    decision: list[Any] = [None, None]
    folder: Path | None
    if ranks.is_main:
        try:
            folder = _find_checkpoint(output_dir, resume)
            if folder is not None:
                _check_fits(folder, ranks, zero_stage=zero_stage, data_fingerprint=data_fingerprint)
            decision = [folder, None]
        except UserError as error:
            decision = [None, str(error)]
    torch.distributed.broadcast_object_list(decision, src=0)
    if decision[1] is not None:
        raise UserError(decision[1])
    folder = decision[0]
    return folder


def _find_checkpoint(output_dir: Path, resume: str) -> Path | None:
    if resume == "never":
        return None
    if resume != "auto":
        problem = verify(Path(resume))
        if problem is not None:
            raise UserError(f"--resume {resume}: {problem}")
        return Path(resume)
    broken = []
    for folder in reversed(list_checkpoints(output_dir)):
        problem = verify(folder)
        if problem is None:
            return folder
        broken.append(f"{folder.name}: {problem}")
    if broken:
        problems = "; ".join(broken)
        raise UserError(f"{checkpoints_dir(output_dir)}: no checkpoint is intact ({problems}); `--resume never` starts anew")
    return None


def _check_fits(folder: Path, ranks: Ranks, *, zero_stage: int, data_fingerprint: str) -> None:
    manifest = read_manifest(folder)
    for what, then, now in (
        ("number of GPUs", manifest.num_ranks, ranks.num_ranks),
        ("deepspeed.zero_stage", manifest.zero_stage, zero_stage),
        ("prepared data", manifest.data_fingerprint[:12], data_fingerprint[:12]),
    ):
        if then != now:
            raise UserError(
                f"{folder}: was written with another {what} ({then}, now {now}); use that one again, another output_dir, "
                "or `--resume never` to start anew"
            )


def load_checkpoint(engine: Any, ranks: Ranks, folder: Path) -> int:
    """Load a verified checkpoint into the engine and the random number generators; returns the steps done."""
    refuse_unsafe_pickles(folder)
    loaded, client_state = engine.load_checkpoint(str(folder), tag=STATE)
    if loaded is None:
        raise UserError(f"{folder}: DeepSpeed could not load it; choose another checkpoint")
    state = load_file(str(folder / f"rng-{ranks.rank:05d}.safetensors"))
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and ranks.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], ranks.device)
    return int(client_state["step"])


def refuse_unsafe_pickles(folder: Path) -> None:
    """Raise UserError if a file of DeepSpeed's would run anything but its own three classes when loaded."""
    for path in sorted((folder / STATE).rglob("*.pt")):
        unknown = set(torch.serialization.get_unsafe_globals_in_checkpoint(str(path))) - _ALLOWED_GLOBALS
        if unknown:
            raise UserError(f"{path}: would run {', '.join(sorted(unknown))} when loaded; it was not written by ochat-train")


def library_versions() -> dict[str, str]:
    """Versions that decide what a run computes."""
    import deepspeed
    import transformers

    from ochat_train import __version__

    return {
        "ochat-train": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "deepspeed": deepspeed.__version__,
    }


def _rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
