"""Room for keys and values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from ochat_train.inference import continuous
from ochat_train.inference.memory import cache_size, kv_bytes_per_token

SHAPE = {
    "num_hidden_layers": 6,
    "hidden_size": 64,
    "intermediate_size": 64,
    "vocab_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
OTHERS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    # its last layer has other heads than the five before it
    "gemma4_text": {"global_head_dim": 64, "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 16},
}


LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
}


@pytest.mark.parametrize("family", OTHERS)
def test_bytes_are_those_of_the_cache(family: str) -> None:
    if family not in transformers.CONFIG_MAPPING:
        pytest.skip("this transformers does not know the family")
    config = transformers.AutoConfig.for_model(family, **SHAPE, **OTHERS[family])
    model: Any = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        cache = model(torch.arange(3, 10)[None], use_cache=True).past_key_values
    used = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) / 7
    assert kv_bytes_per_token(model) == used
    assert cache_size(model, context_tokens=32, most_answers=4).num_answers == 4


def test_latent_attention_counts_what_is_cached_and_the_keys_and_values_of_one_layer() -> None:
    """6 layers of 16 latents and 8 numbers with positions, and once 4 heads of 24 for keys and 12 for values."""
    shape = {name: value for name, value in SHAPE.items() if name != "head_dim"}
    config = transformers.AutoConfig.for_model("minicpm3", **{**shape, **LATENT})
    model: Any = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    one_layer = 4 * (24 + 12) * 4
    with torch.no_grad():
        cache = model(torch.arange(3, 10)[None], use_cache=True).past_key_values
    used = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) // 7
    assert used in (6 * (16 + 8) * 4, 6 * one_layer)  # by the version of `transformers`
    assert kv_bytes_per_token(model) == min(used + one_layer, 6 * one_layer)
    assert "latent" in str(continuous.why_not(model))
