"""Rotary frequencies that depend on the length: each conversation of a pack gets its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from data_pipeline.errors import UserError
from ochat_train.model.packed import PackedCausalLM
from ochat_train.model.rotary import choose_frequencies_per_conversation, conversation_lengths
from tests.support.base_configs import base_config

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [3.0, 4.0, 5.0, 6.0],
    "original_max_position_embeddings": 16,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


def rotary(model_type: str, rope: dict[str, Any], **changes: Any) -> Any:
    config = base_config(model_type, head_dim=8, pad_token_id=0, rope_parameters=rope, **changes)
    return transformers.AutoModelForCausalLM.from_config(config)


def cos_sin(model: Any, positions: list[int]) -> torch.Tensor:
    return torch.stack(model.model.rotary_emb(torch.zeros(1), torch.tensor([positions])))


def test_lengths_of_conversations_from_positions() -> None:
    lengths = conversation_lengths(torch.tensor([[0, 1, 2, 0, 0, 1]]))
    assert lengths.tolist() == [[3, 3, 3, 1, 2, 2]]
    assert conversation_lengths(torch.tensor([[7]])).tolist() == [[8]]  # the next token of a text that is in a cache


def test_a_pack_of_short_and_long_conversations_has_the_frequencies_of_each() -> None:
    alone, packs = (rotary("phi3", LONGROPE, original_max_position_embeddings=16) for _ in range(2))
    PackedCausalLM(packs, num_classes=1)
    lengths = (12, 30, 16, 17)
    expected = torch.cat([cos_sin(alone, list(range(length))) for length in lengths], dim=2)
    positions = [position for length in lengths for position in range(length)]
    assert torch.equal(cos_sin(packs, positions), expected)
    assert not torch.equal(cos_sin(alone, positions), expected)  # the control: by the longest one


def test_padding_does_not_change_dynamic_frequencies_and_longer_conversations_are_refused() -> None:
    alone, packs = (rotary("llama", DYNAMIC, max_position_embeddings=32) for _ in range(2))
    choose_frequencies_per_conversation(packs, max_length_tokens=32)
    expected = cos_sin(alone, list(range(20)))
    with_padding = [*range(20), *range(64)]
    assert torch.equal(cos_sin(packs, with_padding)[:, :, :20], expected)
    assert not torch.equal(cos_sin(alone, with_padding)[:, :, :20], expected)  # the control
    with pytest.raises(UserError, match=r"33 is more than the 32 tokens .* use at most 32"):
        choose_frequencies_per_conversation(packs, max_length_tokens=33)
    with pytest.raises(UserError, match="inf is more than"):
        PackedCausalLM(alone, num_classes=1)


def test_other_frequencies_are_left_alone() -> None:
    model = rotary("llama", {"rope_type": "default", "rope_theta": 10000.0})
    choose_frequencies_per_conversation(model, max_length_tokens=1000)
    assert "forward" not in vars(model.model.rotary_emb)
