"""Whether continuous batching computes what the model itself computes; asked once at each start.

The path through another cache and another mask is young in `transformers`, and a family of models that it gets wrong
would answer fluently and wrongly. So two short sequences are computed in both ways, side by side in one batch, and the
distributions of their next tokens are compared.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import torch

from ochat_train.inference.choose_token import TokenChooser
from ochat_train.inference.engine import AnswerSettings, EngineError
from ochat_train.inference.requests import Batcher, Request

_LENGTHS = (37, 11)  # of the sequences; more than one page of the cache, and less
_NUM_NEW = 3
# Largest total variation between two distributions of the next token, by the size of a number: rounding alone.
_MOST_DIFFERENCE = {4: 1e-3, 2: 0.1}
_SECONDS = 600.0


class _Recorder(TokenChooser):
    """Chooses given tokens, and keeps the distributions that they could have been drawn from."""

    is_plain = False

    def __init__(self, tokens: Sequence[int], device: torch.device) -> None:
        super().__init__(AnswerSettings(max_new_tokens=len(tokens)), device)
        self._tokens = list(tokens)
        self.probs: list[torch.Tensor] = []  # float32[V] for each

    def choose(self, logits_V: torch.Tensor) -> int:
        """The next of the given tokens."""
        self.probs.append(logits_V.float().softmax(dim=-1).cpu())
        return self._tokens[len(self.probs) - 1]


@torch.inference_mode()
def expected_probs(model: Any, context_tokens: int) -> list[tuple[list[int], list[int], torch.Tensor]]:
    """What the model itself says: prompt, tokens after it, and float32[num_new, V], what each was drawn from."""
    generator = torch.Generator().manual_seed(0)
    vocab_size = model.get_input_embeddings().weight.shape[0]
    found = []
    for length in _LENGTHS:
        length = max(1, min(length, context_tokens - _NUM_NEW))
        ids = torch.randint(vocab_size, (length + _NUM_NEW,), generator=generator).tolist()
        logits_TV = model(torch.tensor([ids], device=model.device)).logits[0].float()
        probs = logits_TV[length - 1 : length - 1 + _NUM_NEW].softmax(dim=-1).cpu()
        found.append((ids[:length], ids[length:], probs))
    return found


async def difference(
    batcher: Batcher, expected: Sequence[tuple[list[int], list[int], torch.Tensor]], device: torch.device
) -> float:
    """The largest total variation between what the batcher computes and what was expected, in [0, 1].

    Raises EngineError where it computes nothing.
    """
    asked = []
    for prompt, tokens, _ in expected:
        chooser = _Recorder(tokens, device)
        settings = AnswerSettings(max_new_tokens=len(tokens))
        request = Request(prompt_ids=prompt, settings=settings, stop_ids=frozenset(), chooser=chooser)
        batcher.submit(request)
        asked.append((request, chooser))
    for request, _ in asked:
        num_new = 0
        while num_new < request.settings.max_new_tokens:
            event = await asyncio.wait_for(request.events.get(), _SECONDS)
            if isinstance(event, EngineError):
                raise event
            num_new += len(event.ids)
    found = [torch.stack(chooser.probs) for _, chooser in asked]
    return max(
        float((probs - other).abs().sum(dim=-1).max() / 2) for probs, (_, _, other) in zip(found, expected, strict=True)
    )


def most_difference(model: Any) -> float:
    """The largest difference that rounding explains."""
    return _MOST_DIFFERENCE.get(model.dtype.itemsize, max(_MOST_DIFFERENCE.values()))
