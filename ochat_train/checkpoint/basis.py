"""What the numbers of a run depend on beside its recipe: the rows, the base, the software.

A checkpoint notes it, so that a run that resumes can tell what is no longer the same.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ochat_train.system.pretrained import config_of_values
from ochat_train.system.versions import library_versions

# Entries of a base's configuration that change no step: names, how the model is used after training, what it returns,
# and the dtype, which the recipe decides (`model.precision`).
_IDLE_ENTRIES = frozenset(
    {
        "_name_or_path",
        "_commit_hash",
        "architectures",
        "auto_map",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "id2label",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "problem_type",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)


@dataclass(frozen=True, kw_only=True)
class AdapterBasis:
    """What an adapter belongs to: its checkpoints hold neither the base nor anything else that is frozen.

    base_sha256: of the base's weights (adapter/base_hash.py). modules: full names of those that have an adapter.
    token_ids: rows of embedding and head that are trained.
    """

    base_sha256: str
    modules: Sequence[str]
    token_ids: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class RunBasis:
    """What a run computes with. What is empty is not known, and not compared.

    rows_digest: of the files that hold the rows of the prepared data.
    config: the base's configuration, as `transformers` writes it.
    base_weights: which files the base's weights were loaded from (`base_weights`).
    versions: of libraries, by name; also the attention kernel and the GPU.
    adapter: of a run that trains one (`AdapterBasis`), None of one that trains all weights.
    learning_rate_rule: which version of the rules of `learning_rate: auto` the run was begun with.
    precision: of the weights in the forward pass, `bfloat16` or `float32`; `model.precision: auto` depends on the
    device.
    """

    rows_digest: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    base_weights: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    adapter: AdapterBasis | None = None
    learning_rate_rule: int = 1
    precision: str = ""


UNKNOWN_BASIS = RunBasis()


def config_values(config: Any) -> dict[str, Any]:
    """A `transformers` configuration as it can be written into JSON and compared."""
    values: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=str))
    return values


def config_entries(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a configuration that decide the steps, by dotted name.

    values: as `transformers` writes them, with or without entries that have their default. This version's defaults are
    filled in, so that the same configuration has the same entries whichever version wrote it. Raises UserError for one
    that `transformers` does not know.
    """
    known = config_values(config_of_values(values, place="base config"))
    return dict(flat_values({name: value for name, value in known.items() if name not in _IDLE_ENTRIES}))


def flat_values(values: Mapping[str, Any], lead: str = "") -> list[tuple[str, Any]]:
    """(dotted name, value) of nested mappings; an empty mapping is a value."""
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        is_inner = isinstance(value, Mapping) and value
        pairs += flat_values(value, f"{lead}{key}.") if is_inner else [(f"{lead}{key}", value)]
    return pairs


def base_weights(path: str | None, config: Any) -> str:
    """What tells the base's weight files from others without reading them: names, sizes and dates in a folder, the
    commit on the Hub. Empty where nothing is known.
    """
    if path is None or not Path(path).is_dir():
        return str(getattr(config, "_commit_hash", None) or "")
    files = [(file.name, file.stat()) for file in sorted(Path(path).glob("*.safetensors"))]
    lines = [f"{name} {status.st_size} {status.st_mtime_ns}" for name, status in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else ""


def software_versions(*, kernel: str, module: str | None, device: torch.device) -> dict[str, str]:
    """Versions of everything that decides the last digits. module: that the attention kernel is imported from."""
    versions = {**library_versions(), "attention kernel": kernel}
    top = (module or "").partition(".")[0]
    if top and top != "torch":
        for name in importlib.metadata.packages_distributions().get(top, []):
            versions[name] = importlib.metadata.version(name)
    versions["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    return versions
