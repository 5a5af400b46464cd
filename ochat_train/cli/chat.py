"""`ochat chat`."""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.errors import UserError
from ochat_train.cli.arguments import positive
from ochat_train.cli.engine_arguments import (
    EXPORT_HELP,
    add_engine_arguments,
    engine_options,
    refuse_engine_options,
    served_model,
)
from ochat_train.cli.verb import Group, Verb
from ochat_train.system.addresses import is_url
from ochat_train.system.exits import StoppedBySignalError
from ochat_train.system.messages import print_notice, reader_may_leave
from ochat_train.system.stop_signals import Terminated, stopping_on_signals

if TYPE_CHECKING:
    from ochat_train.chat.answerer import Answerer


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="EXPORT|RUN|URL", help=f"{EXPORT_HELP}, or a server")
    parser.add_argument(
        "--url",
        metavar="URL",
        help="the server to chat with (`ochat serve`, for example http://localhost:18888); its key is read from "
        "OCHAT_API_KEY",
    )
    parser.add_argument("--model-name", metavar="NAME", help="which of the server's models; default: its first")
    conditions = parser.add_mutually_exclusive_group()
    conditions.add_argument("--condition", help="condition to answer under; default: the model's own")
    conditions.add_argument("--compare", metavar="C1,C2", help="answer every message under several conditions")
    parser.add_argument("--any-condition", action="store_true", help="allow conditions that were not trained")
    parser.add_argument("--system", default="", help="system message")
    parser.add_argument("--temperature", type=_temperature, metavar="X", default=0.0, help="0 (the default) is greedy")
    parser.add_argument("--max-new-tokens", type=positive, help="longest answer, in tokens; default: as many as fit")
    parser.add_argument("--seed", type=int, help="seed of answers at a temperature above 0; default: a random one")
    add_engine_arguments(parser, with_flags=False)


@reader_may_leave()
def _run(options: argparse.Namespace) -> None:
    from ochat_train.chat.run import ChatOptions, run_chat

    conditions = [] if options.condition is None else [options.condition]
    chosen = ChatOptions(
        conditions=_compared(options.compare) if options.compare is not None else conditions,
        any_condition=options.any_condition,
        system=options.system,
        temperature=options.temperature,
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
    )
    with stopping_on_signals("chat", numbers=(signal.SIGTERM, signal.SIGHUP), error=Terminated) as stop:
        try:
            run_chat(lambda: _answerer(options), chosen)
        except KeyboardInterrupt:  # while the model is loaded, or in a pipe
            raise StoppedBySignalError("stopped") from None
        except Terminated:
            raise StoppedBySignalError(f"stopped by {stop.signal_name}") from None


def _answerer(options: argparse.Namespace) -> Answerer:
    if options.model is not None and options.url is None and is_url(options.model):
        options.model, options.url = None, options.model
    if (options.model is None) == (options.url is None):
        raise UserError("EXPORT", "name an exported folder, or a server with `--url`: one of the two")
    if options.url is not None:
        from ochat_train.chat.by_url import ServerAnswerer
        from ochat_train.system.addresses import SERVER_KEY

        refuse_engine_options(options)
        return ServerAnswerer(options.url, model=options.model_name, key=os.environ.get(SERVER_KEY, ""))
    if options.model_name is not None:
        raise UserError("--model-name", "is for a server", "leave it out, or name the server with `--url`")
    from ochat_train.chat.in_process import EngineAnswerer
    from ochat_train.inference.choose import make_engine

    served = served_model(Path(options.model), options)
    return EngineAnswerer(served, make_engine(served, engine_options(options), say=print_notice))


def _compared(text: str) -> list[str]:
    """The conditions of `--compare`. Raises UserError for fewer than two."""
    from ochat_train.chat.chat import split_conditions

    found = split_conditions(text, "|" if "|" in text else ",")
    if len(found) < 2 or len(set(found)) < len(found):
        raise UserError(f"--compare {text}", "names fewer than two different conditions", "for example --compare A,B")
    return found


def _temperature(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 2:
        raise argparse.ArgumentTypeError(f"{text} is not a temperature between 0 and 2")
    return value


CHAT = Verb(
    name="chat",
    group=Group.USE,
    summary="Chat with an exported model or a running server in the terminal, under one condition or several.",
    example='ochat chat runs/quickstart/export --condition "GPT4 Correct"',
    add_arguments=_add_arguments,
    run=_run,
)
