"""Which engine computes the answers of an export: in this process, vLLM beside it, or a server that runs already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_pipeline.errors import UserError
from ochat_train.inference.embedded import EmbeddedEngine
from ochat_train.inference.engine import Engine
from ochat_train.inference.served_model import ServedModel

EngineKind = Literal["transformers", "vllm"]


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What a user may say about the engine.

    kind: None for the best that is here. vllm_python: the Python in whose environment vLLM is, None for one that is
    found. vllm_flags: passed on to vLLM. backend: address of an OpenAI-compatible server instead of an engine of ours.
    backend_model: its name of the model, None for the only one that it has. adapters: name -> folder of a LoRA adapter
    of this model. most_answers: computed at once in this process, None for as many as memory holds.
    """

    kind: EngineKind | None = None
    vllm_python: str | None = None
    vllm_flags: tuple[str, ...] = ()
    backend: str | None = None
    backend_model: str | None = None
    adapters: Mapping[str, Path] = field(default_factory=dict)
    most_answers: int | None = None


def make_engine(served: ServedModel, options: EngineOptions, *, say: Callable[[str], None]) -> Engine:
    """The engine that was asked for, not started yet; otherwise vLLM where there is a GPU and vLLM, and the one in this
    process elsewhere.

    say: takes the lines for the person who runs it. Raises UserError for options that do not go together.
    """
    if options.backend is not None or options.kind == "vllm" or options.adapters or options.vllm_flags:
        raise UserError("--engine", "only `transformers` is there in this version", "leave the other options out")
    return EmbeddedEngine(served, say=say, most_answers=options.most_answers)
