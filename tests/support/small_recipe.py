"""A small recipe with raw data of two classes, and a model that trains in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.support.rows import conversations, write_jsonl

# A Mistral that trains in seconds: grouped heads, two layers, untied embeddings.
TINY_MODEL: dict[str, Any] = {
    "model_type": "mistral",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "sliding_window": None,
    "tie_word_embeddings": False,
}


RecipeFactory = Callable[..., Path]


def write_small_recipe(folder: Path, tokenizer_dir: Path, *, num_conversations: int = 60, **changes: Any) -> Path:
    """Raw data of two classes and a recipe that trains a tiny model on them, written into `folder`."""
    rows = conversations(num_conversations)
    num_experts = num_conversations * 2 // 5
    write_jsonl(folder / "expert.jsonl", rows[:num_experts])
    write_jsonl(folder / "suboptimal.jsonl", rows[num_experts:])
    recipe: dict[str, Any] = {
        "name": "small",
        "seed": 1,
        "output_dir": str(folder / "run"),
        "model": {
            "config": dict(TINY_MODEL),
            "tokenizer": str(tokenizer_dir),
            "template": "openchat_3.5",
            "max_length_tokens": 256,
        },
        "data": {
            "prepared_dir": str(folder / "prepared"),
            "classes": {
                "expert": {"condition": "GPT4 Correct", "reward": 1.0},
                "suboptimal": {"condition": "GPT3", "reward": 0.0},
            },
            "beta": 0.4342945,
            "sources": [
                {"path": str(folder / "expert.jsonl"), "format": "messages", "class": "expert"},
                {"path": str(folder / "suboptimal.jsonl"), "format": "messages", "class": "suboptimal"},
            ],
        },
        "train": {"epochs": 2, "pack_length_tokens": 256, "tokens_per_step": 1024},
        "optimizer": {"learning_rate": 0.003, "eps": 1.0e-8},
        "deepspeed": {"zero_stage": 2, "config": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}},
    }
    for key, value in changes.items():
        *sections, last = key.split("__")
        target = recipe
        for section in sections:
            target = target.setdefault(section, {})
        target[last] = value
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path
