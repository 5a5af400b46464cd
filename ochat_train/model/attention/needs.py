"""What a model needs from an attention kernel, found by running it once with an attention function that only looks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from data_pipeline.errors import UserError
from ochat_train.model.attention.keywords import REMEDY, refuse_unused, without_borders
from ochat_train.model.base_class import backbone
from ochat_train.model.borders import one_sequence, sequence_mixers

_PROBE_NAME = "ochat_probe"
_PROBE_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class AttentionNeeds:
    """What the attention of all layers of a model asks for; the default is plain attention.

    dropout: the largest probability, in training. softcap, sinks: whether a layer has soft-capped scores, or sinks.
    head_dims: pairs of head dimensions that occur: of query and key, and of value. Empty where nobody looked.
    is_grouped: whether query heads share a key head in a layer.
    """

    dropout: float = 0.0
    softcap: bool = False
    sinks: bool = False
    head_dims: frozenset[tuple[int, int]] = frozenset()
    is_grouped: bool = False


def attention_needs(causal_lm: Any) -> AttentionNeeds:
    """Run a causal LM once on one conversation of 8 tokens, with an attention function that only looks at arguments.

    Raises UserError, with the name of the base, for attention that no kernel computes, such as sparse attention, for a
    model that does not pass `cu_seqlens` down or takes no positions, for one whose attention does not come from
    transformers' registry, and for one that cannot run. A model of sequence mixers alone (borders.py) needs nothing.
    """
    _refuse_sparse(causal_lm)
    base = backbone(causal_lm)
    name = f"{type(base).__name__} of `transformers`"
    has_mixers = next(sequence_mixers(causal_lm), None) is not None  # these know positions without being told
    if "position_ids" not in inspect.signature(base.forward).parameters and not has_mixers:
        problem = f"{name} takes no `position_ids`: positions would not start again with each conversation of a pack"
        raise UserError("model", problem, REMEDY)
    device = causal_lm.get_input_embeddings().weight.device
    found: list[AttentionNeeds] = []
    try:
        with _probed(causal_lm, found), one_sequence(causal_lm, _PROBE_TOKENS):
            _run_once(base, device)
    except UserError:
        raise
    except Exception as error:
        if not found and not has_mixers and not getattr(causal_lm, "_supports_attention_backend", False):
            raise _without_registry(causal_lm.config.model_type) from error
        problem = f"{name} cannot run on a pack: {type(error).__name__}: {error}"
        raise UserError("model", problem, REMEDY) from error
    if not found and has_mixers and not _has_attention(causal_lm):
        return AttentionNeeds()
    if not found:
        raise _without_registry(causal_lm.config.model_type)
    return AttentionNeeds(
        dropout=max(needs.dropout for needs in found),
        softcap=any(needs.softcap for needs in found),
        sinks=any(needs.sinks for needs in found),
        head_dims=frozenset().union(*(needs.head_dims for needs in found)),
        is_grouped=any(needs.is_grouped for needs in found),
    )


def _refuse_sparse(causal_lm: Any) -> None:
    """Raise UserError for a model with indexers: DeepSeek's sparse attention and those that follow it.

    One look would not tell. Indexers keep hundreds of tokens or more, so of a short text all.
    """
    indexers = dict.fromkeys(name for module in causal_lm.modules() if "Indexer" in (name := type(module).__name__))
    if indexers:
        raise UserError(
            "model",
            f"{causal_lm.config.model_type} has sparse attention: an indexer ({next(iter(indexers))} of "
            "`transformers`) picks the few earlier tokens that each token sees, and no attention kernel here takes "
            "such a choice",
            "use another base, one with full attention, such as Qwen3, GLM-4.5 (`glm4_moe`) or DeepSeek-V3 "
            "(`deepseek_v3`)",
        )


def _has_attention(causal_lm: Any) -> bool:
    """Whether a model with sequence mixers has attention as well, by the names of classes."""
    mixers = {id(module) for module in sequence_mixers(causal_lm)}
    others = (type(module).__name__ for module in causal_lm.modules() if id(module) not in mixers)
    return any("attention" in name.lower() or "attn" in name.lower() for name in others)


def _run_once(base: Any, device: torch.device) -> None:
    with torch.no_grad():
        base(
            input_ids=torch.zeros((1, _PROBE_TOKENS), dtype=torch.int64, device=device),
            attention_mask=torch.ones((1, _PROBE_TOKENS), dtype=torch.int64, device=device),
            position_ids=torch.arange(_PROBE_TOKENS, device=device)[None],
            use_cache=False,
            cu_seqlens=torch.tensor([0, _PROBE_TOKENS], dtype=torch.int32, device=device),
            max_seqlen=_PROBE_TOKENS,
        )


@contextmanager
def _probed(causal_lm: Any, found: list[AttentionNeeds]) -> Iterator[None]:
    """The model in training mode, calling the probe; afterwards its modes, kernel and random numbers are as before."""
    _register_probe(found)
    configs = {id(module.config): module.config for module in causal_lm.modules() if hasattr(module, "config")}
    kernels = [(config, config._attn_implementation) for config in configs.values()]
    training = {module: module.training for module in causal_lm.modules()}
    device = causal_lm.get_input_embeddings().weight.device
    causal_lm.train()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for config, _ in kernels:
                config._attn_implementation = _PROBE_NAME
            yield
    finally:
        for config, kernel in kernels:
            config._attn_implementation = kernel
        for module, mode in training.items():
            module.training = mode


def _register_probe(found: list[AttentionNeeds]) -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(_PROBE_NAME, partial(_probe, found))
    AttentionMaskInterface.register(_PROBE_NAME, _probe_mask)


def _probe_mask(
    *args: Any,
    config: Any = None,
    mask_function: Callable[..., Any] | None = None,
    local_size: int | None = None,
    **kwargs: Any,
) -> None:
    """Instead of building a mask: what tokens 0 to local_size + 1 would see must be all before them, or a window."""
    if mask_function is None:
        return
    window = _PROBE_TOKENS if local_size is None else local_size
    tokens = torch.tensor([0, 1, window - 1, window, window + 1])
    query, key = (x.reshape(-1) for x in torch.meshgrid(tokens, tokens, indexing="ij"))
    expected = (key <= query) & (query - key < window if local_size is not None else query >= 0)
    zero = torch.tensor(0)
    seen = [bool(mask_function(zero, zero, i, j)) for i, j in zip(query, key, strict=True)]
    if seen != expected.tolist():
        base = getattr(config, "model_type", "the base")
        problem = f"{base} lets tokens see others than those before them or those of a window, which no attention "
        raise UserError("model", problem + "kernel here computes", REMEDY)


def _probe(
    found: list[AttentionNeeds],
    module: torch.nn.Module,
    query_BHTD: torch.Tensor,
    key_BGTD: torch.Tensor,
    value_BGTE: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    cu_seqlens: torch.Tensor | None = None,
    max_seqlen: int | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function that only looks at its arguments, those of `register.packed_attention`."""
    if cu_seqlens is None:
        raise without_borders(module)
    refuse_unused(module, {"attention_mask": attention_mask, **unused})
    head_dims = (query_BHTD.shape[3], value_BGTE.shape[3])
    found.append(
        AttentionNeeds(
            dropout=float(dropout or 0.0),
            softcap=softcap is not None,
            sinks=s_aux is not None,
            head_dims=frozenset({head_dims}),
            is_grouped=query_BHTD.shape[1] != key_BGTD.shape[1],
        )
    )
    batch, num_heads, num_tokens = query_BHTD.shape[:3]
    return value_BGTE.new_zeros((batch, num_tokens, num_heads, value_BGTE.shape[3])), None


def _without_registry(model_type: str) -> UserError:
    return UserError(
        "model", f"{model_type} does not take its attention from transformers' registry: packs would mix", REMEDY
    )
