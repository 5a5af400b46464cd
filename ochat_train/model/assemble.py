"""A causal LM of `transformers` made ready for packs: what a run trains, and what the proof of a base tests."""

from __future__ import annotations

from typing import Any

import torch

from ochat_train.model.borders import keep_apart
from ochat_train.model.experts import RouterLoss
from ochat_train.model.packed import PackedCausalLM
from ochat_train.model.rotary import choose_frequencies_per_conversation


def packed_model(
    causal_lm: Any,
    *,
    num_classes: int,
    max_length_tokens: int,
    device: torch.device,
    router_loss: RouterLoss | None = None,
) -> PackedCausalLM:
    """The model with everything that keeps conversations of a pack apart where attention does not; changes it in place.

    causal_lm: built with the attention function of `register_attention`. max_length_tokens: of the longest
    conversation. device: where the model will run. router_loss: of `experts.router_loss_of`. Raises UserError for a
    base that cannot be made ready.
    """
    choose_frequencies_per_conversation(causal_lm, max_length_tokens=max_length_tokens)
    mixers = keep_apart(causal_lm, device=device)
    return PackedCausalLM(causal_lm, num_classes=num_classes, mixers=mixers, router_loss=router_loss)
