"""`ochat serve`."""

from __future__ import annotations

import argparse
from pathlib import Path

from data_pipeline.errors import UserError
from ochat_train.cli.arguments import positive, positive_number
from ochat_train.cli.engine_arguments import EXPORT_HELP, add_engine_arguments, engine_options, served_model
from ochat_train.cli.verb import Group, Verb

_LIMITS = {  # option -> field of `Limits`, type, name of its value, help
    "--max-concurrent": ("max_concurrent", positive, "N", "answers that the engine gets at once; more wait"),
    "--max-queue": ("max_queue", positive, "N", "requests that wait; more get a 429"),
    "--max-body": ("max_body_bytes", positive, "BYTES", "longest body of a request"),
    "--max-messages": ("max_messages", positive, "N", "messages of one conversation"),
    "--request-timeout": ("request_seconds", positive_number, "SECONDS", "for one request, with its time in the queue"),
    "--drain-seconds": ("drain_seconds", positive_number, "SECONDS", "what running answers get after SIGTERM"),
}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    from ochat_train.serving.settings import Limits

    parser.add_argument("export", type=Path, metavar="EXPORT|RUN", help=EXPORT_HELP)
    parser.add_argument(
        "--host", metavar="NAME", default="localhost", help="address to listen at; others than this machine need keys"
    )
    parser.add_argument("--port", type=_port, default=18888, metavar="N", help="0 for a free one")
    parser.add_argument(
        "--served-model-name", metavar="NAME", help="what clients call the model; default: the name of its recipe"
    )
    parser.add_argument("--any-condition", action="store_true", help="also allow conditions that were not trained")
    parser.add_argument(
        "--tensor-parallel-size", type=positive, metavar="N", help="GPUs that hold the model together (vLLM)"
    )
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="serve a LoRA adapter of this model as well, as a model called NAME (vLLM); may be repeated",
    )
    add_engine_arguments(parser)
    safety = parser.add_argument_group("who may ask")
    safety.add_argument(
        "--api-keys", nargs="+", default=[], metavar="KEY", help="allowed keys; others on this machine can see them"
    )
    safety.add_argument(
        "--api-keys-file", type=Path, metavar="FILE", help="allowed keys, one a line; also: OCHAT_API_KEYS"
    )
    safety.add_argument("--allow-no-keys", action="store_true", help="let other machines ask without a key")
    safety.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="without keys: a name of this server in URLs"
    )
    safety.add_argument(
        "--allow-origin", action="append", default=[], metavar="URL", help="a web page of another server that may ask"
    )
    limits = parser.add_argument_group("limits")
    for flag, (name, kind, value, meaning) in _LIMITS.items():
        limits.add_argument(flag, dest=name, type=kind, metavar=value, default=getattr(Limits(), name), help=meaning)
    _add_log_arguments(parser)


def _add_log_arguments(parser: argparse.ArgumentParser) -> None:
    log = parser.add_argument_group("log")
    log.add_argument("--log-texts", action="store_true", help="also write prompts and answers to --log-file")
    log.add_argument("--disable-log-requests", action="store_true", help="print no line for each request")
    log.add_argument("--disable-log-stats", action="store_true", help="print no line about the queue every ten seconds")
    for action in parser._actions:
        if action.dest == "log_file":
            action.help = "a line of JSON for each request, without texts and keys; rotated at 50 MiB, five are kept"


def _named_adapter(text: str) -> tuple[str, Path]:
    name, found, folder = text.partition("=")
    if not name or not found or not folder:
        raise UserError(f"--adapter {text}", "expected NAME=FOLDER")
    return name, Path(folder)


def _run(options: argparse.Namespace) -> None:
    from ochat_train.serving.installed import require_serving

    require_serving()
    from dataclasses import replace

    from ochat_train.serving.serve import ServeOptions, serve
    from ochat_train.serving.settings import Limits

    engine = replace(engine_options(options), adapters=dict(map(_named_adapter, options.adapter)))
    if options.tensor_parallel_size is not None:
        flags = ("--tensor-parallel-size", str(options.tensor_parallel_size))
        engine = replace(engine, vllm_flags=(*flags, *engine.vllm_flags))
    serve(
        served_model(options.export, options, name=options.served_model_name),
        engine,
        ServeOptions(
            host=options.host,
            port=options.port,
            limits=Limits(**{name: getattr(options, name) for name, *_ in _LIMITS.values()}),
            api_keys=tuple(options.api_keys),
            api_keys_file=options.api_keys_file,
            allow_no_keys=options.allow_no_keys,
            any_condition=options.any_condition,
            allow_hosts=tuple(options.allow_host),
            allow_origins=tuple(options.allow_origin),
            log_file=options.log_file,
            log_texts=options.log_texts,
            log_requests=not options.disable_log_requests,
            log_stats=not options.disable_log_stats,
        ),
    )


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value < 65536:
        raise argparse.ArgumentTypeError(f"{value} is not a port, 0 to 65535")
    return value


SERVE = Verb(
    name="serve",
    group=Group.USE,
    summary="Serve an exported model: OpenAI's API with `condition`, and a web page.",
    example="ochat serve runs/quickstart/export",
    add_arguments=_add_arguments,
    run=_run,
    writes_log=True,
)
