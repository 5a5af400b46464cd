"""Options that choose the engine, the same for every verb that has a model answer."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.errors import UserError
from ochat_train.cli.arguments import positive

if TYPE_CHECKING:
    from ochat_train.inference.choose import EngineOptions
    from ochat_train.inference.served_model import ServedModel


EXPORT_HELP = "exported folder (a model, or an adapter) or a run with an export"
_OF_ENGINE = ("engine", "vllm_python", "backend", "backend_model", "base", "max_model_len", "max_answers")


def add_engine_arguments(parser: argparse.ArgumentParser, *, with_flags: bool = True) -> None:
    """with_flags: whether what follows `--` is passed on to vLLM."""
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--engine",
        choices=("transformers", "vllm"),
        help="what computes the answers: `transformers` in this process, or vLLM beside it; default: vLLM where there "
        "is a GPU and vLLM is found, otherwise `transformers`",
    )
    group.add_argument(
        "--vllm-python",
        metavar="PYTHON",
        help="the Python of the environment that vLLM is installed in; default: this one, if it has vLLM",
    )
    group.add_argument(
        "--backend",
        metavar="URL",
        help="ask an OpenAI-compatible server that runs already and serves this model (vLLM, SGLang, llama.cpp); "
        "its key is read from OCHAT_BACKEND_KEY",
    )
    group.add_argument(
        "--backend-model", metavar="NAME", help="what that server calls this model; default: the only one it has"
    )
    group.add_argument("--base", metavar="HUB_ID|FOLDER", help="base of an adapter; default: the one that it names")
    group.add_argument(
        "--max-model-len",
        type=positive,
        metavar="TOKENS",
        help="longest prompt and answer together; default: what the model was made for",
    )
    group.add_argument(
        "--max-answers",
        type=positive,
        metavar="N",
        help="answers that `transformers` computes at once; default: as many as memory holds, 16 on a CPU and 64 on a "
        "GPU at most",
    )
    if with_flags:
        parser.add_argument("vllm_flags", nargs="*", metavar="-- FLAGS", help="passed on to vLLM")


def engine_options(options: argparse.Namespace) -> EngineOptions:
    """What was said about the engine. Raises UserError for flags without `--`."""
    from ochat_train.inference.choose import EngineOptions

    flags = tuple(getattr(options, "vllm_flags", ()))
    if flags and not flags[0].startswith("-"):
        raise UserError(flags[0], "is no argument of this command", "flags of vLLM come after `--`")
    return EngineOptions(
        kind=options.engine,
        vllm_python=options.vllm_python,
        vllm_flags=flags,
        backend=options.backend,
        backend_model=options.backend_model,
        most_answers=options.max_answers,
    )


def refuse_engine_options(options: argparse.Namespace) -> None:
    """Raise UserError for options of an engine where a server answers, which has its own."""
    given = [f"--{name.replace('_', '-')}" for name in _OF_ENGINE if getattr(options, name)]
    given += ["flags of vLLM"] * bool(getattr(options, "vllm_flags", ()))
    if given:
        raise UserError(", ".join(given), "is for a model in this process", "give it to `ochat serve`")


def served_model(folder: Path, options: argparse.Namespace, *, name: str | None = None) -> ServedModel:
    """The export as it is served with these options. Raises UserError for a folder that is not one."""
    from ochat_train.inference.served_model import load_served_model

    return load_served_model(folder, name=name, base=options.base, context_tokens=options.max_model_len)
