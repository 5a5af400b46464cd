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

import itertools
import json
import re
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from data_pipeline.errors import UserError
from data_pipeline.files import sha256_of_file, sync
from ochat_train.engine import Ranks
from ochat_train.recipe import Recipe

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
    """What a checkpoint holds. step: optimizer steps done. recipe: all its values. files: path -> [bytes, sha256]."""

    step: int
    num_ranks: int
    recipe: dict[str, Any]
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
        if sha256_of_file(path) != sha256:
            return f"{name} has changed since it was written (sha256 differs)"
    return None


def save_checkpoint(engine: Any, ranks: Ranks, output_dir: Path, *, step: int, recipe: Recipe, data_fingerprint: str) -> Path:
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
            recipe=recipe.model_dump(mode="json", by_alias=True),
            data_fingerprint=data_fingerprint,
            versions=library_versions(),
            files={str(p.relative_to(temporary)): (p.stat().st_size, sha256_of_file(p)) for p in files},
        )
        for file in files:
            sync(file)
        (temporary / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1), encoding="utf-8")
        sync(temporary / MANIFEST)
        if final.exists():  # the same step of an earlier attempt
            shutil.rmtree(final)
        temporary.rename(final)
        sync(final.parent)
        latest = final.parent / ".LATEST.tmp"
        latest.write_text(final.name + "\n", encoding="utf-8")
        latest.replace(final.parent / "LATEST")
        for old in list_checkpoints(output_dir)[: -recipe.checkpoint.keep_last]:
            shutil.rmtree(old)
    torch.distributed.barrier()
    return final


def choose_checkpoint(output_dir: Path, resume: str, ranks: Ranks, *, recipe: Recipe, data_fingerprint: str) -> Path | None:
    """The checkpoint to go on from: the newest one that verifies (`auto`), none (`never`), or the folder named.

    Rank 0 decides for all ranks. What an earlier run left behind beyond that point is moved aside, never deleted and
    never mixed up with this run. Raises UserError, on all ranks, where the checkpoint does not fit this run.
    """
    decision: list[Any] = [None, None]
    if ranks.is_main:
        try:
            chosen = _find_checkpoint(output_dir, resume)
            if chosen is not None:
                _check_fits(chosen, ranks, recipe=recipe, data_fingerprint=data_fingerprint)
                _set_later_checkpoints_aside(output_dir, read_manifest(chosen).step)
            elif resume == "never" and output_dir.is_dir() and any(output_dir.iterdir()):
                _set_run_aside(output_dir)
            decision = [chosen, None]
        except UserError as error:
            decision = [None, str(error)]
    torch.distributed.broadcast_object_list(decision, src=0)
    if decision[1] is not None:
        raise UserError(decision[1])
    folder: Path | None = decision[0]
    return folder


def _set_run_aside(output_dir: Path) -> None:
    number = next(n for n in itertools.count(1) if not _previous(output_dir, n).exists())
    output_dir.rename(_previous(output_dir, number))
    print(f"the earlier run is kept in {_previous(output_dir, number)}", file=sys.stderr)


def _previous(output_dir: Path, number: int) -> Path:
    return output_dir.with_name(f"{output_dir.name}.previous-{number}")


def _set_later_checkpoints_aside(output_dir: Path, step: int) -> None:
    for folder in list_checkpoints(output_dir):
        if int(folder.name.removeprefix("step-")) > step:
            aside = next(p for n in itertools.count(1) if not (p := folder.with_name(f"aside-{n}-{folder.name}")).exists())
            folder.rename(aside)
            print(f"{folder.name} is not gone on from; it is kept as {aside}", file=sys.stderr)


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


def _check_fits(folder: Path, ranks: Ranks, *, recipe: Recipe, data_fingerprint: str) -> None:
    manifest = read_manifest(folder)
    then = {"number of GPUs": manifest.num_ranks, "prepared data": manifest.data_fingerprint[:12]}
    now = {"number of GPUs": ranks.num_ranks, "prepared data": data_fingerprint[:12]}
    then |= decisive_settings(manifest.recipe)
    now |= decisive_settings(recipe.model_dump(mode="json", by_alias=True))
    changed = [f"{name} (then {then.get(name)}, now {now.get(name)})" for name in now if then.get(name) != now[name]]
    if changed:
        raise UserError(
            f"{folder}: was written with another {', '.join(changed)}; go back to that, use another output_dir, "
            "or start anew with `--resume never`"
        )


def decisive_settings(recipe: dict[str, Any]) -> dict[str, Any]:
    """The values of a recipe that decide the steps of a run, by dotted name."""
    names = {f"{section}.{key}": value for section in ("model", "train", "optimizer") for key, value in recipe[section].items()}
    names |= {"seed": recipe["seed"], "deepspeed.zero_stage": recipe["deepspeed"]["zero_stage"]}
    del names["train.log_every_steps"]
    return names


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
