"""Which kinds of decoder layers a base has, found by looking at its modules.

Two layers are of one kind if they are built from the same classes, which hold the same switches and have parameters of
the same names. Sizes do not count, except those that decide what is computed: head dimensions, windows, kernels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

from ochat_train.model.base_class import backbone, text_config
from ochat_train.model.structure import decoder_layers

Kind = tuple[Any, ...]

_EXACT = re.compile(r"head_dim|head_size|d_head|d_state|state_size|num_key_value_groups|kernel|window|chunk|rope|type")
_IGNORED = re.compile(r"layer_?idx|layer_?id|layer_?number|training|^_|name")


def layer_kinds(causal_lm: Any) -> list[Kind]:
    """The kind of each decoder layer, in order. causal_lm: of `transformers`, may be on the meta device."""
    layers = decoder_layers(causal_lm)
    per_layer = _per_layer_values(text_config(causal_lm.config), len(layers))
    return [(_kind(layer), *values) for layer, values in zip(layers, per_layer, strict=True)]


def outer_kind(causal_lm: Any) -> Kind:
    """The same of what is outside the layers, such as embedding and rotary embedding."""
    layers = decoder_layers(causal_lm)
    inside = {id(module) for layer in layers for module in layer.modules()}
    found = [(name, m) for name, m in backbone(causal_lm).named_modules() if id(m) not in inside and m is not layers]
    rotary = [tuple(buffer.shape) for name, m in found for buffer in m.buffers(recurse=False) if buffer.ndim == 1]
    return (*(_module_kind(name, module) for name, module in found), tuple(rotary))


def _kind(layer: torch.nn.Module) -> Kind:
    found = []
    for name, module in layer.named_modules():
        parts = name.split(".")
        numbers = [part for part in parts if part.isdigit()]
        if numbers and any(int(number) > 0 for number in numbers):
            continue  # a list of experts has as many as it likes; the first stands for all
        found.append(_module_kind(name, module))
    return tuple(found)


def _module_kind(name: str, module: torch.nn.Module) -> Kind:
    values = tuple((key, _value(key, value)) for key, value in sorted(vars(module).items()) if not _IGNORED.search(key))
    tensors = tuple((key, x.ndim) for key, x in module.named_parameters(recurse=False))
    return (name, type(module).__name__, tensors, tuple(pair for pair in values if pair[1] is not None))


def _value(key: str, value: object) -> object:
    """What of an attribute decides the kind: switches and names as they are, numbers by whether they are 0."""
    if value is None or isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return value if _EXACT.search(key) else value != 0
    return value != 0.0 if isinstance(value, float) else None


def _per_layer_values(config: Any, num_layers: int) -> list[tuple[Any, ...]]:
    """Entries of the config's lists that have one for each layer."""
    columns = [
        [_entry(entry) for entry in value]
        for key, value in sorted(config.to_dict().items())
        if isinstance(value, list | tuple) and len(value) == num_layers and "architectures" not in key
    ]
    return [tuple(column[number] for column in columns) for number in range(num_layers)]


def _entry(entry: object) -> object:
    """An entry of such a list: names as they are, numbers by whether they are 0."""
    if isinstance(entry, int | float) and not isinstance(entry, bool):
        return entry != 0
    return str(entry)


def shortest_prefix(kinds: Sequence[Kind]) -> int:
    """How many layers from the first on it takes to have every kind."""
    missing = set(kinds)
    for number, kind in enumerate(kinds, 1):
        missing.discard(kind)
        if not missing:
            return number
    return 0
