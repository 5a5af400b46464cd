"""Many answers at once by the continuous batching of `transformers`: new requests join while others are computed.

Each request has its own settings and its own random generator: a logits processor of ours chooses the token of every
request that asks for more than the likeliest one. `transformers` changes this part often, so everything that is used of
it is in this file, and `why_not` says where it cannot be used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ochat_train.inference.engine import EngineError, EngineUnavailable
from ochat_train.inference.memory import CacheSize, is_latent
from ochat_train.inference.requests import NewTokens, Request
from ochat_train.model.base_class import is_wrapper, text_config
from ochat_train.model.config import layer_widths

_PAGE_TOKENS = 32  # the cache is given out in pages of so many tokens
_STOP_SECONDS = 20.0
# Tokens of prompts in one pass. The mask has a row for each of them, over the whole cache.
_PASS_TOKENS = {"cpu": 256, "cuda": 1024}


def why_not(model: Any) -> str | None:
    """Why a model cannot be computed so; None where it can."""
    import transformers

    version = f"transformers {transformers.__version__}"
    base = _base_model(model)
    if not hasattr(base, "init_continuous_batching") or not _config_fields() >= {"per_request_processors", "seed"}:
        return f"{version} has no continuous batching with settings of each request"
    if is_wrapper(base.config):
        return "the model has more parts than a language model"
    config = text_config(base.config)
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        return f"not all of its layers have full attention: {', '.join(sorted(kinds))}"
    if is_latent(config):
        return "its attention is latent (MLA), and a page has no room for such keys"
    if getattr(config, "sliding_window", None) is not None:
        return "its attention has a sliding window"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "its attention scores are capped"
    if any(name.endswith(".sinks") for name, _ in base.named_parameters()):
        return "its attention has sinks"
    if base.config._attn_implementation != "sdpa":
        return f"its attention is computed by {base.config._attn_implementation!r}"
    return None


def bytes_per_cached_token(model: Any) -> int:
    """What each token in the cache needs beside its own keys and values: a column of the mask, and a copy of one
    layer's keys and values for all heads.
    """
    mask = _PASS_TOKENS[model.device.type] * model.dtype.itemsize
    return int(mask + 3 * layer_widths(model.config).query * model.dtype.itemsize + 8)


class ContinuousBatcher:
    """A `Batcher` of `transformers`' continuous batching.

    model: loaded, with sdpa attention; it is used by nothing else until `close`. size: of the cache. most_answers: in
    one pass.
    """

    how = "continuous batching"

    def __init__(self, model: Any, size: CacheSize, *, most_answers: int) -> None:
        self._model, self._size, self._most = _base_model(model), size, most_answers
        self._requests: dict[str, Request] = {}
        self._manager: Any = None

    def start(self) -> None:
        """Begin; see `Batcher`. Raises whatever `transformers` raises for a model that it cannot batch."""
        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)  # it warns of every cancelled request
        manager = self._model.init_continuous_batching(
            generation_config=_plain_generation(),
            continuous_batching_config=_batching_config(self._model, self._size, self._most),
        )
        manager.logit_processor = _processors(self._chosen)
        # A thread is a daemon where the one that starts it is: a program that fails elsewhere can then still end.
        starter = threading.Thread(target=manager.start, daemon=True)
        starter.start()
        starter.join()
        self._manager = manager

    def close(self) -> None:
        """End the thread and free the cache."""
        manager, self._manager = self._manager, None
        if manager is not None:
            manager.stop(block=True, timeout=_STOP_SECONDS, hard_stop=True)
            manager.destroy()
        self._requests.clear()

    def failure(self) -> str | None:
        """Why it computes no more; None while it does. Also forgets results that nobody waits for."""
        if self._manager is None:
            return "it is closed"
        with contextlib.suppress(Exception):  # empty
            while True:
                self._manager.output_router.output_queue.get_nowait()
        if self._manager.is_running() and self._manager.background_thread_status.fatal_error is None:
            return None
        return str(self._manager.background_thread_status.fatal_error or "its thread has ended")

    def submit(self, request: Request) -> None:
        """Take a request."""
        if self._manager is None or self.failure() is not None:
            raise EngineUnavailable("the engine is not running")
        self._requests[request.name] = request
        self._manager.register_result_handler(request.name, _forward(request, self._forget))
        taken = self._manager.add_request(
            request.prompt_ids,
            request_id=request.name,
            max_new_tokens=request.settings.max_new_tokens,
            streaming=True,
            eos_token_id=sorted(request.stop_ids),
        )
        if taken is None:
            self._forget(request)
            raise EngineUnavailable("the engine is stopping")

    def cancel(self, request: Request) -> None:
        """Compute no more of a request."""
        if self._manager is not None and request.name in self._requests:
            self._manager.cancel_request(request.name)
        self._forget(request)

    def _forget(self, request: Request) -> None:
        self._requests.pop(request.name, None)
        if self._manager is not None:
            router = self._manager.output_router
            with router._lock:
                router.result_handlers.pop(request.name, None)

    def _chosen(self, names: Sequence[str], logits_BV: torch.Tensor) -> torch.Tensor:
        """Logits of which the largest are those of the chosen tokens. Called in the thread that computes."""
        for row, name in enumerate(names):
            request = self._requests.get(name)
            if request is None or request.chooser.is_plain:
                continue
            token = request.chooser.choose(logits_BV[row])
            logits_BV[row] = -torch.inf
            logits_BV[row, token] = 0.0
        return logits_BV


def _forward(request: Request, forget: Callable[[Request], None]) -> Callable[[Any], None]:
    """What hands the tokens of a request on; called on its event loop with all tokens so far."""
    num_given = 0

    def handler(output: Any) -> None:
        nonlocal num_given
        new = output.generated_tokens[num_given:]
        if new:
            rows = request.chooser.rows[num_given : num_given + len(new)]
            request.events.put_nowait(NewTokens(ids=list(new), rows=rows))
            num_given += len(new)
        if output.is_finished():
            forget(request)
        if output.error is not None:
            request.events.put_nowait(EngineError(output.error))

    return handler


def _base_model(model: Any) -> Any:
    """The model of `transformers`, with an adapter's modules inside, where there is one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _config_fields() -> set[str]:
    """What the settings of continuous batching are called; none in a version without it."""
    try:
        from transformers import ContinuousBatchingConfig
    except ImportError:
        return set()
    return {field.name for field in dataclasses.fields(ContinuousBatchingConfig)}


def _batching_config(model: Any, size: CacheSize, most_answers: int) -> Any:
    from transformers import ContinuousBatchingConfig

    # The name of the page's size changed in 5.17 and later; the old one is kept there as a deprecated field.
    page = "page_size" if "page_size" in _config_fields() else "block_size"
    wanted: Mapping[str, Any] = {
        page: _PAGE_TOKENS,
        "num_blocks": -(-size.num_tokens // _PAGE_TOKENS),
        "max_batch_tokens": _PASS_TOKENS[model.device.type],
        "max_requests_per_batch": most_answers,  # where memory runs short, some wait
        "max_blocks_per_request": 0,  # no fast path of a FlashAttention
        "use_async_batching": False,  # tokens are chosen in Python
        "use_cuda_graph": False,
        "auto_switch_to_flash": False,  # it would fetch kernels
        "per_request_processors": True,
    }
    return ContinuousBatchingConfig(**{name: value for name, value in wanted.items() if name in _config_fields()})


def _plain_generation() -> Any:
    """The likeliest token and nothing else: what a request asks for comes from its own settings."""
    from transformers import GenerationConfig

    return GenerationConfig(do_sample=False, eos_token_id=-1)


def _processors(choose: Callable[[Sequence[str], torch.Tensor], torch.Tensor]) -> Any:
    """`transformers`' list of logits processors, with one of ours that knows which row belongs to which request."""
    from transformers import LogitsProcessorList
    from transformers.generation.continuous_batching.cb_logits_processors import (
        ContinuousBatchingLogitsProcessor,
        ContinuousBatchingLogitsProcessorList,
    )

    class OwnChoice(ContinuousBatchingLogitsProcessor):
        """Asks `choose`. The rows are those of the requests that were prepared last."""

        supported_kwargs: dict[str, type] = {}  # noqa: RUF012 (as in the class above)
        ignored_kwargs: tuple[str, ...] = ()

        def __init__(self) -> None:
            self._names: list[str] = []

        def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
            """Nothing has a default."""

        def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
            """Remember whose tokens come next."""
            self._names = [request.state.request_id for request in requests_with_new_token]
            return torch.zeros(len(self._names), dtype=torch.int32)

        def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
            """scores: float32[B, V], changed in place."""
            return choose(self._names, scores)

    processors = ContinuousBatchingLogitsProcessorList(LogitsProcessorList([OwnChoice()]))
    processors.tensors_required = 1
    return processors
