"""The engine in this process: `transformers`, with continuous batching where it computes the model rightly."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import platform
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import torch

from data_pipeline.errors import UserError
from ochat_train.inference import agreement, continuous
from ochat_train.inference.choose_token import TokenChooser
from ochat_train.inference.engine import AnswerSettings, EngineBusy, EngineError, EngineUnavailable, Piece, cancelled
from ochat_train.inference.generate import forget_settings
from ochat_train.inference.load import load_model
from ochat_train.inference.memory import cache_size
from ochat_train.inference.pieces import PieceMaker
from ochat_train.inference.requests import Batcher, Request
from ochat_train.inference.served_model import ServedModel
from ochat_train.inference.together import TogetherBatcher
from ochat_train.system.pretrained import reason_of

_WATCH_SECONDS = 0.25
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 1.0, 60.0  # before it is started again
_MOST_WAITING = 2048  # requests in the engine at once; a server refuses more long before
_MOST_ANSWERS = {"cpu": 16, "cuda": 64}  # computed at once, where memory allows it
_MOST_ANSWERS_TOGETHER = 16  # of `generate`: all of them wait for the longest


class EmbeddedEngine:
    """`Engine` of a model in this process, on a GPU if there is one.

    say: takes the lines for the person who runs it. most_answers: computed at once, None for as many as memory holds
    (16 on a CPU, 64 on a GPU at most).
    """

    name = "transformers"

    def __init__(
        self,
        served: ServedModel,
        *,
        say: Callable[[str], None],
        most_answers: int | None = None,
    ) -> None:
        self._served, self._say, self._most_answers = served, say, most_answers
        self._stop_ids = frozenset(served.stop_ids)
        self._model: Any = None
        self._batcher: Batcher | None = None
        self._requests: set[Request] = set()
        self._watch: asyncio.Task[None] | None = None
        self._num_threads_before: int | None = None

    @property
    def versions(self) -> Mapping[str, str]:
        """Packages that compute the answers."""
        import transformers

        return {
            "torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version()
        }  # fmt: skip

    @property
    def context_tokens(self) -> int:
        """Of prompt and answer together."""
        return self._served.context_tokens

    @property
    def unsupported(self) -> Mapping[str, str]:
        """What only other engines can do."""
        return {
            "response_format": "the engine in this process answers in free text; use vLLM",
            "adapter": "the engine in this process holds one model; use vLLM, or serve the adapter's own folder",
        }

    async def start(self) -> None:
        """Load the model and begin. Raises UserError for a folder that cannot be loaded, or too little memory."""
        base = self._served.base
        self._model, _ = await asyncio.to_thread(load_model, self._served.folder, base=base)
        forget_settings(self._model)
        if self._model.device.type == "cpu":
            self._num_threads_before = torch.get_num_threads()
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - 1))
        self._batcher = await self._first_batcher()
        place = torch.cuda.get_device_name(self._model.device) if self._model.device.type == "cuda" else "CPU"
        self._say(f"engine: transformers on {place}, {self._batcher.how}")
        self._watch = asyncio.create_task(self._keep_running())

    async def close(self) -> None:
        """End all answers and free the model. May be called twice."""
        watch, self._watch = self._watch, None
        await cancelled(watch)
        batcher, self._batcher = self._batcher, None
        if batcher is not None:
            await asyncio.to_thread(batcher.close)
        self._fail_all("the engine is closed")
        if self._num_threads_before is not None:
            torch.set_num_threads(self._num_threads_before)
            self._num_threads_before = None
        self._model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def is_ready(self) -> bool:
        """Whether a request would be answered now."""
        return self._batcher is not None and self._batcher.failure() is None

    async def stream(self, prompt_ids: Sequence[int], settings: AnswerSettings) -> AsyncIterator[Piece]:
        """The pieces of one answer; see `Engine.stream`."""
        batcher = self._batcher
        if batcher is None or batcher.failure() is not None:
            raise EngineUnavailable("the engine is not running")
        if len(self._requests) >= _MOST_WAITING:
            raise EngineBusy(f"{len(self._requests)} answers are on their way already")
        self._check(prompt_ids, settings)
        request = Request(
            prompt_ids=list(prompt_ids),
            settings=settings,
            stop_ids=self._stop_ids,
            chooser=TokenChooser(settings, self._model.device),
        )
        maker = PieceMaker(self._served.tokenizer, prompt_ids, settings, stop_ids=self._stop_ids)
        self._requests.add(request)
        try:
            batcher.submit(request)
            while not maker.finished:
                event = await request.events.get()
                if isinstance(event, EngineError):
                    raise event
                yield maker.add(event.ids, event.rows)
        finally:
            self._requests.discard(request)
            batcher.cancel(request)

    def _check(self, prompt_ids: Sequence[int], settings: AnswerSettings) -> None:
        """Refuse what would end the batch of everybody. Whoever asks has checked it before."""
        for name in self.unsupported:
            if getattr(settings, name) is not None:
                raise EngineError(f"{name}: {self.unsupported[name]}")
        length = len(prompt_ids) + settings.max_new_tokens
        if not prompt_ids or settings.max_new_tokens < 1 or length > self.context_tokens:
            raise EngineError(f"{length} tokens of prompt and answer, where 1 + 1 to {self.context_tokens} fit")

    async def _first_batcher(self) -> Batcher:
        """Continuous batching, or `generate` with a line that says why."""
        if (reason := continuous.why_not(self._model)) is None:
            found = await self._checked_continuous()
            if not isinstance(found, str):
                return found
            reason = found
        self._say(f"no continuous batching: {reason}. Answers of one batch wait for each other, so this is slower")
        batcher = self._new_together()
        await asyncio.to_thread(batcher.start)
        return batcher

    async def _checked_continuous(self) -> Batcher | str:
        """Continuous batching that computes what the model computes; otherwise why not."""
        expected = await asyncio.to_thread(agreement.expected_probs, self._model, self.context_tokens)
        batcher = self._new_continuous()
        starting = asyncio.ensure_future(asyncio.to_thread(batcher.start))
        try:
            await asyncio.shield(starting)
            found = await agreement.difference(batcher, expected, self._model.device)
        except UserError:
            raise
        except Exception as error:  # any kind: what it meets in a model that it was not made for
            await asyncio.to_thread(batcher.close)
            return f"it fails for this model ({type(error).__name__}: {reason_of(error)})"
        except BaseException:  # a stop: its thread would go on, and one that computes at the end of a program aborts it
            await asyncio.gather(starting, return_exceptions=True)
            await asyncio.to_thread(batcher.close)
            raise
        if (most := agreement.most_difference(self._model)) >= found:
            return batcher
        await asyncio.to_thread(batcher.close)
        return f"its probabilities differ from the model's by {found:.2g}, and rounding explains {most:.2g}"

    def _new_continuous(self) -> Batcher:
        most = self._most_answers or _MOST_ANSWERS[self._model.device.type]
        extra = continuous.bytes_per_cached_token(self._model)
        size = cache_size(
            self._model, context_tokens=self.context_tokens, most_answers=most, extra_bytes_per_token=extra
        )
        return continuous.ContinuousBatcher(self._model, size, most_answers=most)

    def _new_together(self) -> Batcher:
        most = min(self._most_answers or _MOST_ANSWERS_TOGETHER, _MOST_ANSWERS_TOGETHER)
        size = cache_size(self._model, context_tokens=self.context_tokens, most_answers=most)
        pad = self._served.tokenizer.pad_token_id
        pad_id = self._served.stop_ids[0] if pad is None else pad
        return TogetherBatcher(self._model, most_answers=size.num_answers, pad_id=pad_id)

    async def _keep_running(self) -> None:
        """Start again what has failed, after 1, 2, 4 .. 60 seconds."""
        wait, began = _FIRST_WAIT_SECONDS, time.monotonic()
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            batcher = self._batcher
            if batcher is None or (reason := batcher.failure()) is None:
                continue
            if time.monotonic() - began > _LONGEST_WAIT_SECONDS:  # another failure, and not the same again
                wait = _FIRST_WAIT_SECONDS
            self._fail_all("the engine failed")
            self._say(f"the engine failed: {reason}; starting it again in {wait:g} s")
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
            with contextlib.suppress(Exception):  # it has failed already
                await asyncio.to_thread(batcher.close)
            again = (
                self._new_continuous() if isinstance(batcher, continuous.ContinuousBatcher) else self._new_together()
            )
            try:
                await asyncio.to_thread(again.start)
            except Exception as error:  # any kind; the next round waits longer
                self._say(f"the engine did not start: {type(error).__name__}: {reason_of(error)}")
                continue
            self._batcher, began = again, time.monotonic()

    def _fail_all(self, reason: str) -> None:
        for request in list(self._requests):
            request.events.put_nowait(EngineUnavailable(reason))
