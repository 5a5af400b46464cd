"""A small copy of a base's config that has every kind of layer, real head dimensions, and everything that matters.

Nothing here knows a family. A change is tried, and kept if the small model still builds and runs alone, and its layers
are still of the same kinds; else it is taken back.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from data_pipeline.errors import UserError
from ochat_train.model.base_class import new_model, text_config
from ochat_train.model.borders import device_to_run_on
from ochat_train.model.proof.config_values import Changes, Path, is_int, leaves, set_value
from ochat_train.model.proof.layer_kinds import layer_kinds, outer_kind, per_layer_lists, shortest_prefix
from ochat_train.model.structure import decoder_layers

LENGTHS = (19, 29, 13)
"""Tokens of the conversations that the proof packs, in their order: windows and rotary scaling lie between them."""

MOST_PARAMETERS = 300_000_000
_FEW_PARAMETERS = 1_000_000  # small enough: its sizes stay
_FEW_LAYERS = 8
_MOST_VALUES = 200_000_000  # parameters of a model that is run; a change to a larger one is kept if it can be built
_WINDOW, _ORIGINAL_LENGTH, _BEYOND = 9, 16, 64  # tokens
_VOCAB, _EXPERTS, _TOP_K = 96, 8, 2
_SIZES = (64, 128, 256)
_SOFTCAP = 4.0
_CPU = torch.device("cpu")

_HEADS = re.compile(r"heads?$|heads_kv$|head_kv$")
_FIXED = re.compile(
    r"head_dim|head_size|d_head|d_state|state_size|conv|kernel|position|token|layers?$|layer_id|window|chunk|pattern"
    r"|freq|interval|period|rope|type|ids?$|max_|block|experts|top_?k|group|vocab|seed|version|start|factor|ctx|length"
)
_EXPERT_COUNTS = re.compile(r"^(num|n|moe_num)_(local_|routed_)?experts$|^num_routed_experts$|^moe_num_experts$")
_CHOSEN_EXPERTS = re.compile(
    r"experts_per_tok|^(moe_)?top_?k(_experts)?$|moe_k$|num_selected_experts|experts_per_token"
)
_WINDOWS = re.compile(r"(window|window_size|attention_chunk_size|local_attention)$")


@dataclass(frozen=True, kw_only=True)
class SmallBase:
    """A small config, and what it has. noise: what was taken out of it, such as dropout. num_kinds: of layers."""

    config: Any
    noise: Changes
    num_layers: int
    num_kinds: int
    num_parameters: int

    def model_in_training(self) -> Any:
        """The model on the CPU with the noise that the whole base has in training."""
        values = self.config.to_dict()
        for path, value in self.noise.items():
            set_value(values, path, value)
        config = type(self.config).from_dict(values)
        return new_model(config, dtype=torch.float32)


def small_base(config: Any, *, max_length_tokens: int, device: torch.device) -> SmallBase:
    """The small copy of a `transformers` config. Raises UserError where none of at most `MOST_PARAMETERS` can be built.

    max_length_tokens: of the recipe; a window or an original length that no conversation reaches stays out of reach.
    device: of the run. Copies with sequence mixers are tried there, the others on the CPU.
    """
    draft = _Draft(config_class=type(config), values=copy.deepcopy(config.to_dict()), kinds=(), parameters=0)
    model = _built(draft)
    draft = replace(_measured(draft, model), device=device_to_run_on(model, device))
    noise = {path: value for path, value in leaves(draft.values) if _is_noise(path, value)}
    draft = _narrow(_begun(draft, max_length_tokens))
    if draft.parameters > MOST_PARAMETERS:
        raise UserError(
            "model",
            f"{config.model_type} cannot be proven: no copy of it below {MOST_PARAMETERS:,} parameters could be built "
            f"(the smallest has {draft.parameters:,})",
            "use another base",
        )
    num_layers = len(draft.kinds[1])
    return SmallBase(
        config=draft.config(),
        noise=noise,
        num_layers=num_layers,
        num_kinds=len(set(draft.kinds[1])),
        num_parameters=draft.parameters,
    )


def _begun(draft: _Draft, max_length_tokens: int) -> _Draft:
    """The draft with few layers and words, and quiet. All of it is run once, in the end, as these changes nearly always
    fit; where they do not, each one is run.
    """
    unrun = _quiet(_vocabulary(_fewer_layers(replace(draft, is_run=False))), max_length_tokens)
    if unrun.parameters <= _MOST_VALUES and _runs(_built(unrun), device=draft.device):
        return replace(unrun, is_run=True, was_run=True)
    draft = _fewer_layers(draft)  # first, so that all that follows builds and runs what is left
    if draft.parameters <= _MOST_VALUES:
        draft = _vocabulary(draft)
    return _quiet(draft, max_length_tokens)


@dataclass(frozen=True, kw_only=True)
class _Draft:
    """A config as a dictionary. kinds: of what is outside the layers, and of each layer. per_layer: names of its lists
    with one entry for each layer, None before they are known. device: on which it is tried. is_run: where changes
    are tried, otherwise only built. was_run: just as it is, and it could be.
    """

    config_class: Any
    values: dict[str, Any]
    kinds: tuple[Any, ...]
    parameters: int
    device: torch.device = _CPU
    is_run: bool = True
    was_run: bool = False
    per_layer: frozenset[str] | None = None

    def config(self) -> Any:
        return self.config_class.from_dict(copy.deepcopy(self.values))


def _built(draft: _Draft) -> Any:
    """The model of a draft, on the meta device, with the attention that runs alone."""
    with torch.device("meta"):
        return new_model(draft.config(), dtype=torch.float32, attn_implementation="eager").eval()


def _measured(draft: _Draft, model: Any) -> _Draft:
    """The draft with what its model has."""
    count = sum(parameter.numel() for parameter in model.parameters())
    lists = draft.per_layer
    if lists is None:
        lists = per_layer_lists(model.config, len(decoder_layers(model)))
    kinds = (outer_kind(model), tuple(layer_kinds(model, lists)))
    return replace(draft, kinds=kinds, parameters=count, per_layer=lists)


def _tried(draft: _Draft, changes: Sequence[Changes], *, new_kinds: bool = False) -> _Draft | None:
    """The draft with the changes, None if it does not build or run, or other kinds of layers come out. One that is not
    changed by them is not tried.

    new_kinds: the changes are meant to change what the layers do.
    """
    values = copy.deepcopy(draft.values)
    for change in changes:
        for path, value in change.items():
            set_value(values, path, value)
    if values == draft.values:
        return draft
    try:
        found = replace(draft, values=values, was_run=False)
        model = _built(found)
        found = _measured(found, model)
    except Exception:  # whatever a config or a model raises where a size does not fit
        return None
    (outer, layers), (outer_before, layers_before) = found.kinds, draft.kinds
    if not new_kinds and (outer != outer_before or set(layers) != set(layers_before)):
        return None
    if not draft.is_run or found.parameters > _MOST_VALUES:
        return found
    return replace(found, was_run=True) if _runs(model, device=draft.device) else None


def _runs(model: Any, *, device: torch.device) -> bool:
    """Whether a model of `_built` runs alone. It is moved to the device, and all of its weights are 0 there."""
    try:
        _run_alone(model, device=device)
    except Exception:  # whatever a model raises where a shape does not fit
        return False
    return True


@torch.no_grad()
def _run_alone(model: Any, *, device: torch.device) -> None:
    model.to_empty(device=device)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.zero_()
    model(input_ids=torch.zeros((1, max(LENGTHS)), dtype=torch.int64, device=device), use_cache=False)


def _fewer_layers(draft: _Draft) -> _Draft:
    """The draft with few layers of every kind: the first ones up to the last new kind, or else one of each kind."""
    kinds = draft.kinds[1]
    prefix = shortest_prefix(kinds)
    first = sorted({kind: number for number, kind in reversed(list(enumerate(kinds)))}.values())
    own_name = text_config(draft.config()).attribute_map.get("num_hidden_layers")
    choices = [list(range(length)) for length in (max(prefix, 2), prefix + 1, 2 * prefix)]
    if prefix > _FEW_LAYERS:
        choices.insert(0, first)
    for kept in choices:
        if len(kept) >= len(kinds):
            continue
        for change in _with_layers(draft.values, kept, len(kinds), own_name):
            if (found := _tried(draft, [change])) is not None:
                return found
    return draft


def _with_layers(values: dict[str, Any], kept: Sequence[int], num_layers: int, own_name: str | None) -> list[Changes]:
    """The change to the layers `kept`, in several ways of reading numbers of layers, such as the last N or the first N.

    own_name: what the config calls `num_hidden_layers`, None for just that.
    """
    cut: dict[Path, Any] = {}
    first: dict[Path, Any] = {}
    last: dict[Path, Any] = {}
    for path, value in leaves(values):
        if isinstance(value, list) and len(value) == num_layers:
            cut[path] = [value[number] for number in kept]
        elif isinstance(value, dict):  # by the number of a layer
            by_number = {int(number): entry for number, entry in value.items()}
            cut[path] = {new: by_number[old] for new, old in enumerate(kept) if old in by_number}
        elif is_int(value) and value == num_layers and ("layer" in path[-1] or path[-1] == own_name):
            cut[path] = len(kept)
        elif is_int(value) and "layers" in path[-1] and 0 < value < num_layers:
            first[path] = sum(number < value for number in kept)
            last[path] = sum(number >= num_layers - value for number in kept)
    return [cut, {**cut, **last}, {**cut, **first}] if first else [cut]


def _quiet(draft: _Draft, max_length_tokens: int) -> _Draft:
    """The draft with what makes results comparable (no dropout), and windows, caps and lengths where they matter."""
    for change in _quiet_changes(draft.values, max_length_tokens):
        draft = _tried(draft, [change], new_kinds=True) or draft
    return draft


def _quiet_changes(values: dict[str, Any], max_length_tokens: int) -> Iterator[Changes]:
    for path, value in leaves(values):
        key = path[-1]
        if isinstance(value, int | float) and "softcap" in key and value > _SOFTCAP:
            yield {path: _SOFTCAP}
        elif is_int(value) and _WINDOWS.search(key) and value > _WINDOW:
            yield {path: _WINDOW if value < max_length_tokens else _BEYOND}
    yield {path: 0.0 for path, value in leaves(values) if _is_noise(path, value)}
    if lengths := _lengths(values, max_length_tokens):
        yield lengths


def _lengths(values: dict[str, Any], max_length_tokens: int) -> Changes:
    """Original lengths of rotary scaling, with the ratio between longest and original length as it is."""
    changes: dict[Path, Any] = {}
    original: int | None = None
    for path, value in leaves(values):
        if path[-1] == "original_max_position_embeddings" and is_int(value):
            original = value
            changes[path] = _ORIGINAL_LENGTH if value < max_length_tokens else 4 * _BEYOND
    for path, value in leaves(values):
        if path[-1] in ("max_position_embeddings", "n_positions") and is_int(value) and value > 4 * _BEYOND:
            if original is None:
                changes[path] = 4 * _BEYOND
            else:
                cut = next(iter(changes.values()))
                changes[path] = max(4 * _BEYOND, round(cut * value / original))
    return changes


def _narrow(draft: _Draft) -> _Draft:
    """The draft with all sizes small. Where the result does not run, because a step was too large to be run, the same
    without one of the steps.
    """
    steps = (_experts, _vocabulary, _named_head_dimension, _scaled, _single)
    for left_out in (None, *steps):
        found = draft
        for step in steps:
            found = found if step is left_out else step(found)
        if found.parameters <= _MOST_VALUES and (found.was_run or _runs(_built(found), device=found.device)):
            return found
        if left_out is None:
            first = found
    return first


def _experts(draft: _Draft) -> _Draft:
    """Few experts, all the same way of choosing among them."""
    changes: dict[Path, Any] = {}
    for path, value in leaves(draft.values):
        key = path[-1]
        if not is_int(value):
            continue
        if _EXPERT_COUNTS.search(key) and value > _EXPERTS:
            changes[path] = _EXPERTS
        elif (_CHOSEN_EXPERTS.search(key) and value > _TOP_K) or (key == "n_group" and value > _TOP_K):
            changes[path] = _TOP_K
        elif key == "topk_group" and value > 1:
            changes[path] = 1
    return (_tried(draft, [changes]) if changes else None) or draft


def _vocabulary(draft: _Draft) -> _Draft:
    """A small vocabulary; ids of special tokens are moved into it."""
    changes: dict[Path, Any] = {}
    for path, value in leaves(draft.values):
        if is_int(value) and "vocab_size" in path[-1] and value > _VOCAB:
            changes[path] = _VOCAB
        elif path[-1].endswith("token_id") and is_int(value) and value >= _VOCAB:
            changes[path] = _VOCAB - 1
        elif path[-1].endswith(("token_id", "token_ids")) and isinstance(value, list):
            changes[path] = [min(entry, _VOCAB - 1) for entry in value if is_int(entry)]
    return (_tried(draft, [changes]) if changes else None) or draft


def _named_head_dimension(draft: _Draft) -> _Draft:
    """The head dimension by its name, where the config can have one, so that other sizes do not decide it."""
    # values, not attributes: a config whose layers differ (Gemma 4) raises for what is not the same in all of them
    config = text_config(draft.config()).to_dict()
    if draft.parameters <= _FEW_PARAMETERS or config.get("head_dim") is not None:
        return draft
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if not (is_int(hidden) and is_int(heads) and heads):
        return draft
    path = ("text_config", "head_dim") if "text_config" in draft.values else ("head_dim",)
    return _tried(draft, [{path: hidden // heads}]) or draft


def _scaled(draft: _Draft) -> _Draft:
    """All sizes and numbers of heads divided by one number, so that their ratios stay."""
    sizes = {path: value for path, value in leaves(draft.values) if _is_size(path, value)}
    heads = {path: value for path, value in sizes.items() if _HEADS.search(path[-1])}
    common = math.gcd(*heads.values()) if heads else 1
    divisors = [d for d in range(1, common + 1) if common % d == 0]
    for divisor in sorted(divisors, key=lambda d: (d != common // 2, -d)):
        if draft.parameters <= _FEW_PARAMETERS or divisor == 1:
            break
        all_sizes = {path: value // divisor for path, value in sizes.items() if value % divisor == 0}
        only_heads = {path: value // divisor for path, value in heads.items()}
        for changes in (only_heads, all_sizes):
            if (found := _tried(draft, [changes])) is not None and found.parameters < draft.parameters:
                return found
    return draft


def _single(draft: _Draft) -> _Draft:
    """Every size by itself as small as it can be."""
    for path, value in list(leaves(draft.values)):
        if draft.parameters <= _FEW_PARAMETERS:
            break
        if not _is_size(path, value) or _HEADS.search(path[-1]):
            continue
        for size in _SIZES:
            if size >= value:
                break
            found = _tried(draft, [{path: size}])
            if found is not None and found.parameters < draft.parameters:
                draft = found
                break
    return draft


def _is_noise(path: Path, value: object) -> bool:
    return isinstance(value, float) and value > 0 and re.search(r"drop|jitter", path[-1]) is not None


def _is_size(path: Path, value: object) -> bool:
    return is_int(value) and value > 1 and not _FIXED.search(path[-1])  # type: ignore[operator]
