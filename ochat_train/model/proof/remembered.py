"""Proofs that succeeded, remembered in a folder of the user, so that the next run of the same base need not wait.

A proof is found again only for the same config, libraries, source of this package, kernel and kind of device. Failures
are not remembered. A folder that cannot be read or written is not used: the proof is then made again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from data_pipeline import nesting
from data_pipeline.file_hashes import cache_folder
from ochat_train.system.requirements import installed_version

_PACKAGE = Path(__file__).parents[1]  # ochat_train/model: what decides how a base is computed
_LIBRARIES = (
    *("torch", "transformers", "triton", "numpy", "kernels"),
    *("flash-attn", "flash-attn-3", "flash-attn-4", "flash-linear-attention", "causal-conv1d", "mamba-ssm"),
)
_MOST_BYTES = 100_000  # of a record; anything larger is not one of ours
_UNTOLD = ("transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype")  # decide no number


def key_of(config: Any, *, device: torch.device, facts: Mapping[str, object]) -> str:
    """sha256 as hexadecimal text. facts: all else that decides the proof."""
    values = {name: value for name, value in config.to_dict().items() if name not in _UNTOLD}
    content = {
        "config": values,
        "class": f"{type(config).__module__}.{type(config).__qualname__}",
        "libraries": {name: installed_version(name) for name in _LIBRARIES},
        "source": _source_hash(),
        "device": _kind(device),
        "facts": dict(facts),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=repr).encode()).hexdigest()


def recall(key: str) -> dict[str, Any] | None:
    """The record under a key, None if there is none that can be read."""
    path = _path(key)
    with contextlib.suppress(OSError, ValueError):
        if path is not None and path.stat().st_size <= _MOST_BYTES:
            record = nesting.loads(path.read_text(encoding="utf-8"))
            if isinstance(record, dict) and record.get("key") == key:
                return record
    return None


def remember(key: str, record: Mapping[str, Any]) -> None:
    """Keep a record, visible only when it is complete; nothing happens where the folder cannot be written."""
    path = _path(key)
    if path is None:
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            temporary.write_text(json.dumps({**record, "key": key}), encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _path(key: str) -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / "proofs" / f"{key}.json"


def _kind(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@functools.cache
def _source_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(_PACKAGE).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
