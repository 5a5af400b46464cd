"""config.json that transformers 4 and 5 read as the same model.

Version 5 keeps rotary settings in `rope_parameters`. Version 4 looks for them at the top level and takes its defaults
where they are missing, silently; so do programs that were written for it (engines, GGUF converters). An export
has both forms, and version 5 must read the same values with and without the older one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ochat_train.model.base_class import is_tied

# Names that version 4 has for rotary settings: (of the base frequency, of the share of a head that is rotated).
_OTHER_NAMES = {
    "gpt_neox": ("rotary_emb_base", "rotary_pct"),
    "gpt_neox_japanese": ("rotary_emb_base", "rotary_pct"),
}
_USUAL_NAMES = ("rope_theta", "partial_rotary_factor")
_OUTSIDE = ("rope_theta", "partial_rotary_factor")  # what version 4 does not look for inside `rope_scaling`
_LONGROPE_FIELDS = ("short_factor", "long_factor")  # version 4 refuses a `rope_scaling` with others
_GLOBAL, _LOCAL = "full_attention", "sliding_attention"  # rotary settings by kind of layer


def write_portable_config(folder: Path, config: Any) -> None:
    """Write `config`, a `transformers` config, as config.json. What version 5 would read differently is left out."""
    config.save_pretrained(folder)
    path = folder / "config.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    _write(path, portable(saved, tied=is_tied(config)))
    if _read(folder) != _comparable(config.to_dict()):
        _write(path, saved)


def portable(saved: Mapping[str, Any], *, tied: bool) -> dict[str, Any]:
    """The values of a config.json of version 5, with those that version 4 looks for.

    tied: whether embedding and head are one tensor; version 4 assumes so where a config does not say it.
    """
    values = {**saved, "tie_word_embeddings": tied, **_rotary(saved)}
    if (dtype := saved.get("dtype")) is not None:
        values["torch_dtype"] = dtype
    if "num_local_experts" in saved:  # version 4 has this name in some families (Qwen3)
        values.setdefault("num_experts", saved["num_local_experts"])
    text = saved.get("text_config")
    if isinstance(text, Mapping):
        values["text_config"] = portable({"dtype": dtype, **text}, tied=tied)
    return values


def _rotary(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings as version 4 names them; none for a config without them."""
    parameters = saved.get("rope_parameters")
    if not isinstance(parameters, Mapping):
        return {}
    base_name, share_name = _OTHER_NAMES.get(saved.get("model_type", ""), _USUAL_NAMES)
    everywhere = parameters.get(_GLOBAL, parameters)
    if not isinstance(everywhere, Mapping) or "rope_theta" not in everywhere:
        return {}
    values = {base_name: everywhere["rope_theta"], "rope_scaling": _scaling(everywhere)}
    if (share := everywhere.get("partial_rotary_factor")) is not None:
        values[share_name] = share
    local = parameters.get(_LOCAL)
    if isinstance(local, Mapping) and local.get("rope_theta") != everywhere["rope_theta"]:
        values["rope_local_base_freq"] = local.get("rope_theta")
    return values


def _scaling(parameters: Mapping[str, Any]) -> dict[str, Any] | None:
    """`rope_scaling` of version 4: None for plain rotary embeddings."""
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        return None
    if kind == "longrope":
        return {"type": kind, **{name: parameters.get(name) for name in _LONGROPE_FIELDS}}
    return {name: value for name, value in parameters.items() if name not in _OUTSIDE}


def _write(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _read(folder: Path) -> dict[str, Any] | None:
    """What this version of transformers reads; None where it reads nothing."""
    import transformers

    try:
        values: dict[str, Any] = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict()
    except Exception:  # whatever a model's own checks raise
        return None
    found: dict[str, Any] = _comparable(values)
    return found


# Where a config was loaded from is not a value of the model, and older names of a value may stay beside the new one.
_NOT_COMPARED = {
    "_name_or_path", "transformers_version", "torch_dtype", "rope_scaling", "rope_theta", "rope_local_base_freq",
    "partial_rotary_factor", "rotary_emb_base", "rotary_pct", "num_experts", "tie_word_embeddings", "type",
}  # fmt: skip


def _comparable(values: Any) -> Any:
    """The values of a config that decide what the model computes, as JSON has them."""
    if isinstance(values, Mapping):
        return {str(key): _comparable(value) for key, value in values.items() if key not in _NOT_COMPARED}
    if isinstance(values, (list, tuple)):
        return [_comparable(value) for value in values]
    return values if isinstance(values, (str, int, float, bool, type(None))) else str(values)
