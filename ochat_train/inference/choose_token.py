"""Which token comes next in one answer.

Each answer has its own random generator, and nothing of other answers enters its choice: the same seed gives the
same answer whatever is computed beside it.
"""

from __future__ import annotations

import secrets

import torch

from ochat_train.inference.engine import AnswerSettings
from ochat_train.inference.pieces import IdLogprob

_LARGEST_SEED = 2**63 - 1


class TokenChooser:
    """Chooses the tokens of one answer. device: of the logits.

    Sampling: softmax(logits / temperature), of which the smallest set of likeliest tokens is kept whose probability is
    at least `top_p` (nucleus sampling, arXiv 1904.09751); one of them is drawn as argmax(p / q) with q ~ Exp(1).
    """

    def __init__(self, settings: AnswerSettings, device: torch.device) -> None:
        self._temperature, self._top_p = settings.temperature, settings.top_p
        self._num_logprobs = settings.num_logprobs
        self.rows: list[IdLogprob] = []  # of the tokens so far, where log-probabilities are asked for
        if self._temperature > 0:
            seed = secrets.randbits(63) if settings.seed is None else settings.seed % (_LARGEST_SEED + 1)
            self._generator = torch.Generator(device).manual_seed(seed)

    @property
    def is_plain(self) -> bool:
        """Whether the choice is the likeliest token and nothing else is asked for."""
        return self._temperature == 0 and self._num_logprobs is None

    def choose(self, logits_V: torch.Tensor) -> int:
        """The next token. logits_V: float32[V] of the model, changed by nothing."""
        token = int(logits_V.argmax() if self._temperature == 0 else self._draw(logits_V))
        if self._num_logprobs is not None:
            self.rows.append(_row(logits_V, token, self._num_logprobs))
        return token

    def _draw(self, logits_V: torch.Tensor) -> torch.Tensor:
        # the largest is taken off first: divided by a tiny temperature it would not be finite
        probs_V = torch.softmax((logits_V - logits_V.max()) / self._temperature, dim=-1)
        if self._top_p < 1:
            sorted_V, order_V = probs_V.sort(descending=True)
            before_V = sorted_V.cumsum(dim=-1) - sorted_V
            probs_V = probs_V.index_fill(0, order_V[before_V >= self._top_p], 0.0)
        noise_V = torch.empty_like(probs_V).exponential_(generator=self._generator)
        return (probs_V / noise_V).argmax()


def _row(logits_V: torch.Tensor, token: int, num_alternatives: int) -> IdLogprob:
    """Log-probabilities of the model itself, before temperature and top_p."""
    logprobs_V = torch.log_softmax(logits_V, dim=-1)
    values, ids = logprobs_V.topk(min(num_alternatives, len(logprobs_V)))
    alternatives = list(zip(ids.tolist(), values.tolist(), strict=True))
    return IdLogprob(token=token, logprob=float(logprobs_V[token]), alternatives=alternatives)
