"""An independent truth for loss and gradients: float64, each conversation alone, no packing, no chunks, plain
autograd.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from data_pipeline.conversation import TokenizedConversation


class FakeSplit:
    """Rows in memory with the interface of PreparedSplit that batches need."""

    def __init__(self, rows: list[TokenizedConversation], class_ids: list[int]) -> None:
        self._rows = rows
        self.class_id = np.array(class_ids, dtype=np.int32)
        self.num_tokens = np.array([len(row.input_ids) for row in rows])
        self.weight_sum = np.array([float(row.loss_weights.sum(dtype=np.float64)) for row in rows])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> TokenizedConversation:
        return self._rows[row]


def random_conversations(
    rng: np.random.Generator, lengths: list[int], *, vocab_size: int, weights: tuple[float, ...] = (0.0, 0.1, 1.0)
) -> list[TokenizedConversation]:
    """Random ids and random weights out of `weights`; token 0 never has a weight."""
    rows = []
    for length in lengths:
        loss_weights = rng.choice(np.array(weights, dtype=np.float32), size=length)
        loss_weights[0] = 0.0
        ids = rng.integers(0, vocab_size, size=length).astype(np.int32)
        rows.append(TokenizedConversation(input_ids=ids, loss_weights=loss_weights))
    return rows


def reference_loss(causal_lm: Any, rows: list[TokenizedConversation]) -> torch.Tensor:
    """sum of w_t * -log p(token t | tokens before t) over all conversations, in the model's own precision."""
    parameter = next(causal_lm.parameters())
    total = torch.zeros((), dtype=parameter.dtype, device=parameter.device)
    for row in rows:
        ids = torch.from_numpy(row.input_ids.astype(np.int64)).to(parameter.device)
        logits = causal_lm(input_ids=ids[None]).logits[0]
        nll = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
        total = total + (torch.tensor(row.loss_weights[1:], device=logits.device).to(logits.dtype) * nll).sum()
    return total


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Weights or gradients by name as one vector, float64."""
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """||found - expected|| / ||expected|| in float64."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm())


def as_float64(causal_lm: Any) -> Any:
    """A float64 twin of a causal LM with transformers' plain attention."""
    twin = copy.deepcopy(causal_lm).double()
    twin.config._attn_implementation = "eager"
    return twin
