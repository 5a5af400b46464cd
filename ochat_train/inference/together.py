"""Answers by `generate` of `transformers`, some at a time: for models that continuous batching cannot compute.

Requests that arrive while others are computed wait until those have ended.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from typing import Any

import torch

from ochat_train.inference.engine import EngineError, EngineUnavailable
from ochat_train.inference.requests import NewTokens, Request
from ochat_train.system.pretrained import reason_of

_GATHER_SECONDS = 0.01  # so that requests of the same moment are computed together
_STOP_SECONDS = 20.0


class TogetherBatcher:
    """A `Batcher` that computes the requests that wait together, padded on the left.

    model: loaded; it is used by nothing else until `close`. most_answers: computed at once. pad_id: of the tokenizer.
    """

    how = "`generate`, some answers at a time"

    def __init__(self, model: Any, *, most_answers: int, pad_id: int) -> None:
        self._model, self._most, self._pad_id = model, most_answers, pad_id
        self._waiting: queue.Queue[Request | None] = queue.Queue()
        self._running: tuple[Request, ...] = ()
        self._thread: threading.Thread | None = None
        self._error: str | None = None
        self._closing = False

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closing = True
        self._waiting.put(None)
        if self._thread is not None:
            self._thread.join(_STOP_SECONDS)

    def failure(self) -> str | None:
        """Why it computes no more; None while it does."""
        if self._thread is None or self._closing:
            return "it is closed"
        return None if self._thread.is_alive() else self._error or "its thread has ended"

    def submit(self, request: Request) -> None:
        """Take a request."""
        if self.failure() is not None:
            raise EngineUnavailable("the engine is not running")
        self._waiting.put(request)

    def cancel(self, request: Request) -> None:
        """Compute no more of a request: it ends with the next token of its batch."""
        request.cancelled = True

    def _run(self) -> None:
        try:
            while not self._closing:
                if batch := self._gather():
                    self._answer(batch)
        except BaseException as error:  # `failure` tells it, and the engine starts again
            self._error = str(error) or type(error).__name__

    def _gather(self) -> list[Request]:
        """The requests that wait, up to the largest number; blocks until there is one."""
        batch: list[Request] = []
        wait: float | None = None
        while len(batch) < self._most:
            try:
                request = self._waiting.get(timeout=wait)
            except queue.Empty:
                break
            if request is None:
                break
            if not request.cancelled:
                batch.append(request)
            wait = _GATHER_SECONDS
        return batch

    def _answer(self, batch: Sequence[Request]) -> None:
        try:
            self._generate(batch)
        except Exception as error:  # any kind, too little memory for example: others may still be answered
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
            for request in batch:
                request.deliver(EngineError(f"{type(error).__name__}: {reason_of(error)}"))

    @torch.inference_mode()
    def _generate(self, batch: Sequence[Request]) -> None:
        width = max(len(request.prompt_ids) for request in batch)
        device = self._model.device
        rows = [[self._pad_id] * (width - len(r.prompt_ids)) + r.prompt_ids for r in batch]
        mask = [[0] * (width - len(r.prompt_ids)) + [1] * len(r.prompt_ids) for r in batch]
        progress = _Progress(batch, width, lambda: self._closing)
        self._model.generate(
            torch.tensor(rows, device=device),
            attention_mask=torch.tensor(mask, device=device),
            generation_config=_settings(batch, self._pad_id),
            logits_processor=[progress.choose],
            stopping_criteria=[progress.ended],
            trust_remote_code=False,
        )


class _Progress:
    """What `generate` calls after each pass, for a batch of requests with prompts of `width` tokens with padding."""

    def __init__(self, batch: Sequence[Request], width: int, is_closing: Any) -> None:
        self._batch, self._is_closing = batch, is_closing
        self._width, self._ended = width, [False] * len(batch)

    def choose(self, input_ids_BT: torch.Tensor, logits_BV: torch.Tensor) -> torch.Tensor:
        """Logits of which the largest are those of the chosen tokens."""
        for row, request in enumerate(self._batch):
            if self._ended[row] or request.chooser.is_plain:
                continue
            token = request.chooser.choose(logits_BV[row].float())
            logits_BV[row] = -torch.inf
            logits_BV[row, token] = 0.0
        return logits_BV

    def ended(self, input_ids_BT: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """bool[B]: which answers are whole. Hands each new token on."""
        num_new = input_ids_BT.shape[1] - self._width
        for row, token in enumerate(input_ids_BT[:, -1].tolist()):
            request = self._batch[row]
            if self._ended[row]:
                continue
            rows = request.chooser.rows[-1:]
            request.deliver(NewTokens(ids=[token], rows=rows))
            at_end = token in request.stop_ids or num_new >= request.settings.max_new_tokens
            self._ended[row] = at_end or request.cancelled or self._is_closing()
        return torch.tensor(self._ended, device=input_ids_BT.device)


def _settings(batch: Sequence[Request], pad_id: int) -> Any:
    """The likeliest token and nothing else: what a request asks for comes from its own settings."""
    from transformers import GenerationConfig

    longest = max(request.settings.max_new_tokens for request in batch)
    return GenerationConfig(do_sample=False, max_new_tokens=longest, pad_token_id=pad_id, eos_token_id=None)
