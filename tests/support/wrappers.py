"""Small bases that wrap a language model beside an image encoder."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import transformers

from ochat_train.model.base_class import new_model

_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_IMAGE_TOKENS = {"image_token_id": 390, "video_token_id": 391, "vision_start_token_id": 392, "vision_end_token_id": 393}
_SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
WRAPPERS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": {
            **_TEXT,
            "model_type": "gemma3_text",
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "query_pre_attn_scalar": 8,
        },
        "vision_config": {**_VISION, "model_type": "siglip_vision_model"},
        "mm_tokens_per_image": 4,
        "image_token_index": 390,
        "boi_token_index": 391,
        "eoi_token_index": 392,
    },
    "mistral3": {
        "text_config": {**_TEXT, "model_type": "mistral"},
        "vision_config": {**_VISION, "model_type": "pixtral", "head_dim": 8},
        "image_token_index": 390,
        "tie_word_embeddings": False,
    },
    "qwen2_5_vl": {
        "text_config": {**_TEXT, "model_type": "qwen2_5_vl_text", "rope_parameters": _SECTIONS},
        "vision_config": {
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [0],
        },
        **_IMAGE_TOKENS,
    },
}


def wrapper_config(model_type: str, *, vocab_size: int = 420) -> Any:
    values = copy.deepcopy(WRAPPERS[model_type])
    values["text_config"]["vocab_size"] = vocab_size
    return transformers.AutoConfig.for_model(model_type, **values)


def write_wrapper(folder: Path, model_type: str, *, dtype: torch.dtype = torch.float32) -> Any:
    """A base with random weights and an image processor's file; returns the model."""
    torch.manual_seed(0)
    model = new_model(wrapper_config(model_type), dtype=dtype)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "SiglipImageProcessor"}')
    return model
