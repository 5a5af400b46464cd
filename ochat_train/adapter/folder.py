"""A folder of PEFT: adapter_config.json and adapter_model.safetensors. Written, and read without leaving anything out.

PEFT itself only warns of tensors that a file lacks, and the model then answers with random ones.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from data_pipeline.errors import UserError
from data_pipeline.json_files import read_json_object
from data_pipeline.text_rules import some_names
from ochat_train.adapter.build import ADAPTER, peft_config
from ochat_train.adapter.installed import require_peft
from ochat_train.adapter.token_rows import ROWS
from ochat_train.model.weights.files import ADAPTER_CONFIG
from ochat_train.recipe.sections.adapter import AdapterSettings
from ochat_train.system.pretrained import reason_of

ADAPTER_WEIGHTS = "adapter_model.safetensors"
LEAD = "base_model.model."  # PEFT's wrapper around a model
TOKEN_ROWS = "token_adapter.trainable_tokens_delta"
_MAGNITUDE = "lora_magnitude_vector"
_AGAIN = "fetch or export the adapter again"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter of PEFT."""
    return (folder / ADAPTER_CONFIG).is_file()


def adapter_tensors(causal_lm: Any) -> dict[str, torch.Tensor]:
    """Every trained tensor of a causal LM with an adapter, by PEFT's name, in the order of the model."""
    return {peft_name(name): p.detach() for name, p in causal_lm.named_parameters() if p.requires_grad}


def peft_name(name: str) -> str:
    """The name that `peft.get_peft_model_state_dict` gives a trained tensor, from its name in the causal LM.

    Raises ValueError for a name that is not of an adapter.
    """
    module, mark, _ = name.partition(f".{ROWS}.")
    if mark:
        return f"{LEAD}{module}.{TOKEN_ROWS}"
    parts = name.split(".")
    if ADAPTER not in parts or not any(part.startswith("lora_") for part in parts):
        raise ValueError(f"{name} is not a tensor of an adapter")
    if _MAGNITUDE in parts:
        parts.remove("weight")
    return LEAD + ".".join(part for part in parts if part != ADAPTER)


def write_adapter(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    settings: AdapterSettings,
    *,
    targets: Sequence[str],
    tables: Sequence[str],
    token_ids: Sequence[int],
    base: str | None,
    revision: str | None,
) -> None:
    """Write the two files; the same arguments give the same bytes.

    tensors: by PEFT's names. targets: as PEFT compares them with names of modules. tables: names of the modules whose
    rows `token_ids` the tensors hold. base, revision: where the base is, as `from_pretrained` takes it.
    """
    from safetensors.torch import save_file

    config = peft_config(settings, modules=targets)
    config.base_model_name_or_path, config.revision, config.inference_mode = base, revision, True
    config.trainable_token_indices = {table: list(token_ids) for table in tables} if token_ids else None
    defaults = type(config)().to_dict()
    # what is not set is left out: other versions of PEFT, and other readers, do not know every setting of this one
    values = {
        name: value for name, value in config.to_dict().items() if value is not None or defaults[name] is not None
    }
    text = json.dumps({name: _plain(value) for name, value in values.items()}, indent=2, sort_keys=True)
    (folder / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    save_file(plain, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def _plain(value: Any) -> Any:
    """A value of PEFT's configuration as JSON has it; a set in order, so that the same one is the same bytes."""
    return sorted(value) if isinstance(value, set) else getattr(value, "value", value)


def short_targets(names: Sequence[str], modules: Sequence[str]) -> list[str]:
    """The last parts of names, such as `q_proj`, where they fit no other module; otherwise the full names.

    names: of all modules of the base. modules: those with an adapter.
    """
    ends = {name.rpartition(".")[2] for name in modules}
    fitting = {name for name in names if name.rpartition(".")[2] in ends}
    return sorted(ends) if fitting == set(modules) else sorted(modules)


def base_of(folder: Path) -> tuple[str | None, str | None]:
    """The base that an adapter names, and its revision. Raises UserError for a folder that is no adapter of PEFT."""
    values = read_json_object(folder / ADAPTER_CONFIG, remedy=_AGAIN)
    if values.get("peft_type") is None:
        raise UserError(folder / ADAPTER_CONFIG, "does not say which kind of adapter it is (`peft_type`)", _AGAIN)
    base, revision = values.get("base_model_name_or_path"), values.get("revision")
    return (str(base) if base else None), (str(revision) if revision else None)


def num_rows_needed(folder: Path) -> int:
    """How many rows of the embedding an adapter's token rows need; 0 where it has none."""
    values = read_json_object(folder / ADAPTER_CONFIG, remedy=_AGAIN).get("trainable_token_indices")
    lists = list(values.values()) if isinstance(values, dict) else [values] if values else []
    try:
        return max((int(row) + 1 for rows in lists for row in rows), default=0)
    except (TypeError, ValueError):
        raise UserError(folder / ADAPTER_CONFIG, "`trainable_token_indices` are not numbers", _AGAIN) from None


def load_adapter(base: Any, folder: Path) -> Any:
    """PEFT's model of a base with the adapter in a folder, in evaluation mode.

    base: with a row for every token. Raises UserError where the file lacks a tensor of the adapter that
    adapter_config.json describes, holds another one, or one of another shape; nothing is left random.
    """
    require_peft()
    from peft import PeftModel, get_peft_model_state_dict

    tensors = _read_tensors(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is compared below
        try:
            model = PeftModel.from_pretrained(base, folder, adapter_name=ADAPTER)
        except Exception as error:  # whatever PEFT raises: unknown settings, targets that are not there, shapes
            raise UserError(folder, f"PEFT cannot load it on this base: {reason_of(error)}", _AGAIN) from None
        expected = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    everything = model.state_dict()
    found = {name: expected[name] if name in expected else everything.get(name) for name in tensors}
    _refuse(folder, "lacks tensors of the adapter that its configuration describes", expected.keys() - tensors.keys())
    unknown = {name for name, tensor in found.items() if tensor is None}
    _refuse(folder, "holds tensors that this base with this adapter does not have", unknown)
    _refuse(folder, "holds tensors that were not loaded", {n for n, t in found.items() if not _same(t, tensors[n])})
    return model.eval()


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        raise UserError(folder, f"has no {ADAPTER_WEIGHTS}, the only file that is loaded", _AGAIN)
    try:
        return dict(load_file(path))
    except Exception as error:  # a damaged or cut file
        raise UserError(path, f"is not a whole safetensors file ({reason_of(error)})", _AGAIN) from None


def _same(loaded: torch.Tensor | None, stored: torch.Tensor) -> bool:
    """Whether a loaded tensor has the values of a file, which may be stored in fewer bits or loaded in fewer."""
    if loaded is None or loaded.shape != stored.shape:
        return False
    return torch.equal(loaded.cpu(), stored.to(loaded.dtype))


def _refuse(folder: Path, problem: str, names: set[str]) -> None:
    if names:
        raise UserError(folder / ADAPTER_WEIGHTS, f"{problem} ({len(names)}): {some_names(sorted(names))}", _AGAIN)
