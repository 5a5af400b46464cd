"""Checkpoints: what is in one, whether it is intact, and how it is loaded. writer.py writes them.

    OUTPUT_DIR/checkpoints/
        step-00000200/
            state/               DeepSpeed's files, all ranks
            rng-00000.safetensors, ...   random number states, one per rank
            MANIFEST.sha256      sha256 of the manifest, as `sha256sum` writes and checks it
            MANIFEST.json        sizes and sha256 of all other files, step, ranks, recipe, data: written last, so it is
                                 the mark of completeness
        LATEST                   name of the newest one, for people and scripts; resuming looks at the manifests

DeepSpeed's own `latest` pointer is not used: it moves before the other ranks have written their shards.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from data_pipeline import nesting
from data_pipeline.errors import UserError
from data_pipeline.files import sha256_of_file
from data_pipeline.json_files import typed
from ochat_train.checkpoint.basis import AdapterBasis
from ochat_train.system import durable

MANIFEST = "MANIFEST.json"
MANIFEST_HASH = "MANIFEST.sha256"
STATE = "state"
UNIVERSAL_PREFIX = ".universal-"  # a checkpoint that is being converted for another number of GPUs (reshard.py)
_NAME = re.compile(r"step-(\d{8})")
_HASHING_THREADS = 8
# What DeepSpeed's files hold beside tensors and plain containers; anything else in a pickle is refused.
_ALLOWED_GLOBALS = {
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.utils.tensor_fragment.fragment_address",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
}


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is: everything that the training loop carries from step to step.

    step: optimizer steps done (skipped updates count). nonfinite_steps: how many updates were skipped because of NaN or
    infinity; nonfinite_in_a_row: how many since the last update. grad_norms: of the last updates,
    oldest first, as training/anomalies.py keeps them.
    """

    step: int = 0
    nonfinite_steps: int = 0
    nonfinite_in_a_row: int = 0
    grad_norms: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True)
class CheckpointManifest:
    """What a checkpoint holds. recipe: all its values. files: path -> (size in bytes, sha256).

    validation_loss: at this step; None without a validation, or if its loss was not finite.
    data_rows, base_config, base_weights, versions, adapter, learning_rate_rule: as in `RunBasis`; checkpoints of
    earlier versions lack all but the versions.
    """

    progress: Progress
    num_ranks: int
    recipe: dict[str, Any]
    data_fingerprint: str
    validation_loss: float | None
    versions: dict[str, str]
    files: dict[str, tuple[int, str]] = field(repr=False)
    data_rows: str = ""
    base_config: dict[str, Any] = field(default_factory=dict, repr=False)
    base_weights: str = ""
    adapter: AdapterBasis | None = None
    learning_rate_rule: int = 1

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.progress.step

    def write(self, folder: Path) -> None:
        """Write MANIFEST.sha256, then MANIFEST.json: a process that ends in between leaves no complete checkpoint."""
        content = json.dumps(asdict(self), indent=1).encode("utf-8")
        durable.write_file(folder / MANIFEST_HASH, lambda stream: stream.write(_hash_line(content)))
        durable.write_file(folder / MANIFEST, lambda stream: stream.write(content))

    @classmethod
    def load(cls, folder: Path) -> CheckpointManifest:
        """The manifest of a checkpoint. Raises UserError where it is missing or has changed since it was written."""
        try:
            content = (folder / MANIFEST).read_bytes()
            if (folder / MANIFEST_HASH).read_bytes() != _hash_line(content):
                raise ValueError(f"it does not match {MANIFEST_HASH}: one of them has changed since it was written")
            return typed(cls, nesting.loads(content))
        except (OSError, ValueError) as error:
            reason = "; ".join(str(error).splitlines()[:3])  # pydantic's have many lines
            raise UserError(folder, f"no readable {MANIFEST} ({reason})", "choose another checkpoint") from None


def _hash_line(content: bytes) -> bytes:
    return f"{hashlib.sha256(content).hexdigest()}  {MANIFEST}\n".encode()


def checkpoints_dir(output_dir: Path) -> Path:
    """Where the checkpoints of a run are."""
    return output_dir / "checkpoints"


def checkpoint_dir(output_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return checkpoints_dir(output_dir) / f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint, from the name of its folder."""
    return int(checkpoint.name.removeprefix("step-"))


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints (they have a manifest), oldest first."""
    root = checkpoints_dir(output_dir)
    folders = [p for p in root.iterdir() if _NAME.fullmatch(p.name)] if root.is_dir() else []
    return sorted(folder for folder in folders if (folder / MANIFEST).is_file())


def best_checkpoint(folders: Sequence[Path]) -> Path | None:
    """The one with the lowest validation loss, the newest of equal ones; None if none has been validated.

    One that is deleted before it is read is not a candidate.
    """
    losses = [(folder, _validation_loss(folder)) for folder in folders]
    validated = [(loss, folder) for folder, loss in losses if loss is not None]
    return min(reversed(validated), key=lambda pair: pair[0])[1] if validated else None


def _validation_loss(folder: Path) -> float | None:
    try:
        return CheckpointManifest.load(folder).validation_loss
    except UserError:
        if (folder / MANIFEST).is_file():
            raise
        return None


def verify(folder: Path, *, hashes: bool = True) -> str | None:
    """What is wrong with a checkpoint; None if its files are the ones in its manifest.

    hashes: also compare the sha256 of every file, which reads all of them; without it only names and sizes.
    """
    try:
        manifest = CheckpointManifest.load(folder)
        if _NAME.fullmatch(folder.name) and step_of(folder) != manifest.step:
            return f"its folder is named {folder.name}, and it holds step {manifest.step}: give it its own name again"
        return _difference(folder, manifest, hashes=hashes)
    except UserError as error:
        return error.problem
    except FileNotFoundError as error:  # deleted after it was listed
        return f"{error.filename} is missing"


def _difference(folder: Path, manifest: CheckpointManifest, *, hashes: bool) -> str | None:
    """As `verify`. Raises FileNotFoundError where a file is deleted meanwhile."""
    present = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {MANIFEST, MANIFEST_HASH}
    if unknown := present - manifest.files.keys():
        return f"{min(unknown)} is not in its {MANIFEST}"
    for name, (size, _) in manifest.files.items():
        if name not in present:
            return f"{name} is missing"
        if (found := (folder / name).stat().st_size) != size:
            return f"{name} has {found} bytes instead of {size}"
    if hashes:
        names = list(manifest.files)
        with ThreadPoolExecutor(_HASHING_THREADS) as pool:
            for name, sha256 in zip(names, pool.map(lambda name: sha256_of_file(folder / name), names), strict=True):
                if sha256 != manifest.files[name][1]:
                    return f"{name} has changed since it was written (sha256 differs)"
    return None


def trained_names(module: torch.nn.Module) -> set[str]:
    """Names of the parameters that are trained, as `state_dict` gives them."""
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def load_engine_state(engine: Any, folder: Path, *, only_trained: bool = False) -> None:
    """Load weights and optimizer states of a verified checkpoint into the engine.

    only_trained: the checkpoint is of an adapter, and holds what is trained and nothing else.
    """

    def load_trained(src: dict[str, Any], dst: torch.nn.Module) -> None:
        wrong = src.keys() ^ trained_names(dst)
        if wrong:
            raise UserError(folder, f"does not hold what this run trains: {min(wrong)}", "choose another checkpoint")
        dst.load_state_dict(src, strict=False)

    loaded, _ = engine.load_checkpoint(str(folder), tag=STATE, custom_load_fn=load_trained if only_trained else None)
    if loaded is None:
        raise UserError(folder, "DeepSpeed could not load it", "choose another checkpoint")


def load_random_states(folder: Path, *, rank: int, device: torch.device) -> None:
    """Restore this rank's random number generators."""
    state = load_file(str(folder / rng_file(rank)))
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def rng_file(rank: int) -> str:
    """Name of the file with a rank's random number states."""
    return f"rng-{rank:05d}.safetensors"


def refuse_unsafe_pickles(folder: Path) -> None:
    """Raise UserError if loading one of DeepSpeed's files would run anything except three classes of DeepSpeed's."""
    for path in sorted((folder / STATE).rglob("*.pt")):
        try:
            unknown = set(torch.serialization.get_unsafe_globals_in_checkpoint(str(path))) - _ALLOWED_GLOBALS
        except Exception as error:
            raise UserError(path, f"cannot be read as a torch file ({error})", "choose another checkpoint") from None
        if unknown:
            raise UserError(
                path,
                f"would run {', '.join(sorted(unknown))} when loaded, which ochat-train never does",
                "choose another checkpoint, or start over with `--resume never`",
            )
