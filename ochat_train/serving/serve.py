"""`ochat serve`: from its options to a running server."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline.errors import UserError
from ochat_train.inference.choose import EngineOptions, make_engine
from ochat_train.inference.engine import Engine
from ochat_train.inference.served_model import ServedModel, load_served_model
from ochat_train.serving.app import App, make_app
from ochat_train.serving.installed import slower_note
from ochat_train.serving.keys import KEYS_VARIABLE, Keys, read_keys, readable_by_others
from ochat_train.serving.request_log import RequestLog
from ochat_train.serving.served import OfferedModel, offered_model
from ochat_train.serving.server import Bound, bind, is_loopback, run_server
from ochat_train.serving.settings import Limits, ServeSettings
from ochat_train.system.messages import print_message

DEFAULT_HOST, DEFAULT_PORT = "localhost", 18888
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """What a person says on the command line; docs/serving-api.md explains it."""

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    limits: Limits = field(default_factory=Limits)
    api_keys: Sequence[str] = ()
    api_keys_file: Path | None = None
    allow_no_keys: bool = False
    any_condition: bool = False
    allow_hosts: Sequence[str] = ()
    allow_origins: Sequence[str] = ()
    log_file: Path | None = None
    log_texts: bool = False
    log_requests: bool = True
    log_stats: bool = True


def serve(served: ServedModel, engine_options: EngineOptions, options: ServeOptions) -> None:
    """Serve an export until a signal. Raises UserError, before the model is loaded, for options that do not fit."""
    keys = keys_of(options, os.environ)
    check_exposure(options, keys)
    # prompts come one by one, and handing one to several threads takes ten times as long as its encoding
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if options.log_texts and options.log_file is None:
        raise UserError("--log-texts", "needs a file to write to", "add --log-file FILE")
    if (note := slower_note()) is not None:
        print_message(f"note: {note}")
    with closing(bind(options.host, options.port)) as bound:
        engine = make_engine(served, engine_options, say=print_message)
        models = [offered_model(served), *_offered_adapters(served, engine_options)]
        log = RequestLog(file=options.log_file, prints=options.log_requests, with_texts=options.log_texts)
        with closing(log):
            app = make_app(engine, models, _settings(options, keys), log=log)
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                runner.run(_run(app, engine, bound, options, has_keys=bool(keys)))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed: the same as asyncio's own loop, in compiled code."""
    try:
        import uvloop
    except ImportError:
        return None
    make: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return make


def _offered_adapters(served: ServedModel, options: EngineOptions) -> list[OfferedModel]:
    found = []
    for name, folder in options.adapters.items():
        adapter = load_served_model(folder, name=name, base=str(served.folder), context_tokens=served.context_tokens)
        found.append(offered_model(adapter, adapter=name))
    return found


def _settings(options: ServeOptions, keys: Keys) -> ServeSettings:
    return ServeSettings(
        limits=options.limits,
        keys=keys,
        any_condition=options.any_condition,
        allowed_hosts=allowed_hosts(options, keys),
        allowed_origins=frozenset(options.allow_origins),
    )


async def _run(app: App, engine: Engine, bound: Bound, options: ServeOptions, *, has_keys: bool) -> None:
    try:
        await engine.start()
        gc.collect()
        gc.freeze()  # what is there now stays: looking through it again would stop all streams for half a second
        bound.listen()  # whoever waits for the next line asks at once
        who = "with a key" if has_keys else "without a key"
        print_message(f"serving at {bound.url} ({who}); the API is at {bound.url}/v1, Ctrl-C ends it")
        await run_server(app, engine, bound, options.limits, prints_stats=options.log_stats)
    finally:
        await engine.close()


def keys_of(options: ServeOptions, environment: Mapping[str, str]) -> Keys:
    """The keys, with a warning where others on this machine may read them."""
    if options.api_keys:
        text = "other users of this machine see --api-keys in the list of processes"
        print_message(f"warning: {text}; --api-keys-file and {KEYS_VARIABLE} are safer")
    keys = read_keys(options.api_keys, options.api_keys_file, environment)
    if options.api_keys_file is not None and readable_by_others(options.api_keys_file):
        print_message(f"warning: other users of this machine can read {options.api_keys_file} (chmod 600 ends that)")
    return keys


def check_exposure(options: ServeOptions, keys: Keys) -> None:
    """Raise UserError for a server that other machines could use without a key."""
    if keys or options.allow_no_keys or is_loopback(options.host):
        return
    raise UserError(
        f"--host {options.host}",
        "other machines could use this server without a key",
        "add --api-keys-file FILE, or --allow-no-keys if that is meant",
    )


def allowed_hosts(options: ServeOptions, keys: Keys) -> frozenset[str] | None:
    """Names that requests may be for: without keys only those of this machine, so that no web page elsewhere can drive
    the server under a name that leads here. None for any.
    """
    if keys or (options.allow_no_keys and not is_loopback(options.host)):
        return None
    named = f"[{options.host}]" if ":" in options.host else options.host
    return _LOCAL_NAMES | {named.lower()} | {host.lower() for host in options.allow_hosts}
