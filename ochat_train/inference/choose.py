"""Which engine computes the answers of an export: in this process, vLLM beside it, or a server that runs already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from data_pipeline.errors import UserError
from ochat_train.inference.embedded import EmbeddedEngine
from ochat_train.inference.engine import Engine
from ochat_train.inference.remote import RemoteEngine
from ochat_train.inference.served_model import ServedModel
from ochat_train.inference.vllm import VllmEngine
from ochat_train.inference.vllm_command import find_vllm, require_vllm

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
    _check_together(options)
    if options.backend is not None:
        return RemoteEngine(served, options.backend, model=options.backend_model, say=say)
    wants_vllm = options.kind == "vllm" or options.vllm_python is not None
    vllm = require_vllm(options.vllm_python) if wants_vllm else None
    if vllm is None and options.kind is None and torch.cuda.is_available():
        vllm = find_vllm(None)
        if vllm is None:
            say("vLLM is not in this environment, so `transformers` computes the answers; vLLM answers many times as")
            say("many requests (`--vllm-python`)")
    if vllm is not None:
        return VllmEngine(served, vllm, adapters=options.adapters, flags=options.vllm_flags, say=say)
    _refuse_what_needs_vllm(options)
    return EmbeddedEngine(served, say=say, most_answers=options.most_answers)


def _check_together(options: EngineOptions) -> None:
    if options.backend is not None:
        for option, value in (
            ("--engine", options.kind), ("--vllm-python", options.vllm_python), ("--adapter", options.adapters),
            ("--max-answers", options.most_answers), ("flags of vLLM", options.vllm_flags),
        ):  # fmt: skip
            if value:
                problem = "is for an engine that is started here, and `--backend` names one that runs"
                raise UserError(option, problem, "leave one of the two out")
    elif options.backend_model is not None:
        raise UserError("--backend-model", "names a model of another server", "name that with `--backend`")
    if options.kind == "transformers" and options.vllm_python is not None:
        raise UserError("--vllm-python", "contradicts `--engine transformers`", "leave one of the two out")


def _refuse_what_needs_vllm(options: EngineOptions) -> None:
    for option, value in (("--adapter", options.adapters), ("flags of vLLM", options.vllm_flags)):
        if value:
            remedy = "choose it with `--engine vllm`"
            raise UserError(option, "vLLM is needed, and `transformers` would compute the answers", remedy)
