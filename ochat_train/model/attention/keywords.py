"""What a model of `transformers` asks of its attention function, and the refusal of what no kernel computes.

Models pass everything that is special about their attention (sinks, soft-capping, ...) as keyword arguments. Dropping
one would silently train a different model.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from data_pipeline.errors import UserError
from ochat_train.model.config import model_without_weights

_PROBE_NAME = "ochat_probe"
_PROBE_TOKENS = 8
_REMEDY = "use another base, such as Mistral, Llama, Qwen2 or Qwen3"

_USED = frozenset(("cu_seqlens", "max_seqlen", "scaling", "dropout", "sliding_window"))
# Keywords that change no number here: query and key already contain positions, there is no cache, and the rest only
# asks for more outputs.
_HARMLESS = frozenset(
    ("position_ids", "use_cache", "output_attentions", "output_hidden_states", "output_router_logits")
)
_EXPLANATIONS = {
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "softcap": "soft-capped attention scores",
    "position_bias": "a bias on attention scores",
    "indices": "sparse attention",
    "block_indices": "sparse attention",
    "is_causal": "attention to later tokens",
}


def refuse_unused(module: torch.nn.Module, unused: Mapping[str, Any]) -> None:
    """Raise UserError for a keyword that would change the result, and that no kernel takes."""
    for name, value in unused.items():
        if value is None or name in _HARMLESS or (name == "is_causal" and value is True):
            continue
        what = f"`{name}` ({_EXPLANATIONS[name]})" if name in _EXPLANATIONS else f"`{name}`"
        raise UserError(
            "model",
            f"{type(module).__name__} of `transformers` needs {what}, which no attention kernel here computes",
            _REMEDY,
        )


def check_attention(config: Any) -> None:
    """Raise UserError for a base whose attention needs more than the kernels compute, before weights are loaded.

    config: of `transformers`. The layers run once on shapes alone, and what they pass to their attention function is
    checked.
    """
    from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM

    AttentionInterface.register(_PROBE_NAME, _probe)
    AttentionMaskInterface.register(_PROBE_NAME, lambda *args, **kwargs: None)
    config = copy.deepcopy(config)  # `transformers` writes into it
    if not getattr(model_without_weights(config), "_supports_attention_backend", False):
        raise UserError(
            "model",
            f"{config.model_type} does not take its attention from transformers' registry: packs would mix",
            _REMEDY,
        )
    with torch.device("meta"), torch.no_grad():
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation=_PROBE_NAME, trust_remote_code=False
        )
        try:
            model.base_model(
                input_ids=torch.zeros((1, _PROBE_TOKENS), dtype=torch.int64),
                attention_mask=torch.ones((1, _PROBE_TOKENS)),  # else `transformers` would read values of positions
                position_ids=torch.arange(_PROBE_TOKENS)[None],
                use_cache=False,
                cu_seqlens=torch.zeros(2, dtype=torch.int32),
                max_seqlen=_PROBE_TOKENS,
            )
        except UserError:
            raise
        except Exception:  # a layer that reads values, such as a router: what came before it is checked
            return


def _probe(
    module: torch.nn.Module,
    query_BHTD: torch.Tensor,
    key_BGTD: torch.Tensor,
    value_BGTD: torch.Tensor,
    *_: Any,
    **keywords: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function that only looks at its arguments."""
    if keywords.get("cu_seqlens") is None:
        raise UserError(
            "model",
            f"{type(module).__name__} of `transformers` does not pass `cu_seqlens` to its attention function, so "
            "conversations of a pack would see each other",
            _REMEDY,
        )
    refuse_unused(module, {name: value for name, value in keywords.items() if name not in _USED})
    batch, num_heads, num_tokens = query_BHTD.shape[:3]
    return value_BGTD.new_empty((batch, num_tokens, num_heads, value_BGTD.shape[3])), None
