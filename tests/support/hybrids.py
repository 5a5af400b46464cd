"""Small configs of bases that mix tokens without attention in some layers, or in all."""

from __future__ import annotations

import importlib.util
from typing import Any

_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_DELTA_NET: dict[str, Any] = {
    "head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_MAMBA_2: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 8,
    "mamba_chunk_size": 16,
}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_SHARED_EXPERT = {**_EXPERTS, "shared_expert_intermediate_size": 16}

WITHOUT_ATTENTION = ("mamba2", "falcon_mamba")
HYBRIDS: dict[str, dict[str, Any]] = {
    "qwen3_next": {**_DELTA_NET, **_SHARED_EXPERT},
    "qwen3_5_text": _DELTA_NET,
    "olmo_hybrid": {**_DELTA_NET, "linear_num_key_heads": 4},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], **_EXPERTS},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "expand": 2, "chunk_size": 16},
    "falcon_mamba": {"state_size": 8},
    "bamba": {"attn_layer_indices": [1], **_MAMBA_2},
    "falcon_h1": {"head_dim": 8, "mamba_d_ssm": 64, **_MAMBA_2},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention", "mamba"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 16,
        "logits_scaling": 1.0,
        **_MAMBA_2,
    },
    "nemotron_h": {
        "hybrid_override_pattern": "M*M-",
        "num_hidden_layers": 4,
        "head_dim": 8,
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "n_groups": 2,
        "ssm_state_size": 8,
        "chunk_size": 16,
    },
    "zamba2": {
        "mamba_d_state": 8,
        "mamba_headdim": 8,
        "mamba_ngroups": 1,
        "chunk_size": 16,
        "layers_block_type": ["mamba", "hybrid", "mamba"],
        "num_mem_blocks": 1,
    },
    "minimax": {
        "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "block_size": 16,
    },
    "jamba": {
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "num_experts": 4,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
}


def hybrid_config(model_type: str, **changes: Any) -> dict[str, Any]:
    """A `model.config` of a recipe."""
    small = {key: value for key, value in _SMALL.items() if "head" not in key or model_type not in WITHOUT_ATTENTION}
    return {"model_type": model_type, **small, **HYBRIDS[model_type], **changes}


# ---- on a GPU ----

_GPU_SIZES: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
_GPU_DELTA_NET: dict[str, Any] = {"linear_key_head_dim": 64, "linear_value_head_dim": 64}
_GPU_MAMBA_2: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 64, "mamba_d_state": 64, "mamba_chunk_size": 64}
# Every token goes to all experts: which two are best can differ between bfloat16 and float32.
_GPU_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 4}
# Sizes that the kernels take, and the packages without which their mixers cannot keep borders themselves.
GPU_HYBRIDS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "qwen3_next": ({**_GPU_DELTA_NET, **_GPU_EXPERTS}, ("fla", "causal_conv1d")),
    "qwen3_5_text": (_GPU_DELTA_NET, ("fla", "causal_conv1d")),
    "lfm2": ({}, ("causal_conv1d",)),
    "bamba": (_GPU_MAMBA_2, ("mamba_ssm", "causal_conv1d")),
    "granitemoehybrid": ({**_GPU_MAMBA_2, **_GPU_EXPERTS}, ("mamba_ssm", "causal_conv1d")),
    "jamba": ({}, ("a kernel of Mamba-1 that takes borders",)),
    "minimax": ({}, ("a kernel of lightning attention",)),
}


def gpu_hybrid_config(model_type: str, **changes: Any) -> dict[str, Any]:
    """The same in sizes that the kernels take."""
    return hybrid_config(model_type, **{**_GPU_SIZES, **GPU_HYBRIDS[model_type][0], **changes})


def has_kernels(model_type: str) -> bool:
    """Whether the packages are installed with which the mixers of this family keep borders themselves."""
    return all(importlib.util.find_spec(package.split()[0]) is not None for package in GPU_HYBRIDS[model_type][1])
