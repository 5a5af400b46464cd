"""The `ochat` command: reads arguments, calls one function a verb, prints. No work is done here."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from data_pipeline.errors import ReportedError, UserError
from data_pipeline.files import file_error
from ochat_train.cli.ablate import ABLATE
from ochat_train.cli.chat import CHAT
from ochat_train.cli.check import CHECK
from ochat_train.cli.completion import COMPLETION
from ochat_train.cli.doctor import DOCTOR
from ochat_train.cli.eval import EVAL
from ochat_train.cli.export import EXPORT
from ochat_train.cli.generate import GENERATE
from ochat_train.cli.init import INIT
from ochat_train.cli.inspect import INSPECT
from ochat_train.cli.launch import LAUNCH
from ochat_train.cli.parser import parse
from ochat_train.cli.plan import PLAN
from ochat_train.cli.prepare import PREPARE
from ochat_train.cli.push import PUSH
from ochat_train.cli.report import REPORT
from ochat_train.cli.schema import SCHEMA
from ochat_train.cli.serve import SERVE
from ochat_train.cli.train import TRAIN
from ochat_train.cli.verb import Verb
from ochat_train.system import exits
from ochat_train.system.exits import StoppedBySignalError
from ochat_train.system.log_file import LogFile
from ochat_train.system.messages import flush_results, give_up_results, output_of, print_error
from ochat_train.system.stop_signals import ending_at_once, stopping_on_signals

# In the order of `ochat --help` inside each group (`Group` in verb.py), which is about the order of use.
VERBS: tuple[Verb, ...] = (
    INIT,
    PREPARE,
    INSPECT,
    PLAN,
    CHECK,
    TRAIN,
    LAUNCH,
    ABLATE,
    REPORT,
    EXPORT,
    PUSH,
    GENERATE,
    SERVE,
    CHAT,
    EVAL,
    DOCTOR,
    SCHEMA,
    COMPLETION,
)

_OWN_SIGNALS = ("train", "launch", "chat")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code (system/exits.py). Expected errors go to stderr as one message."""
    options = parse(VERBS, arguments)
    try:
        log = LogFile(options.log_file, rank=_rank()) if options.log_file and not options.writes_log else None
    except UserError as error:
        return _ended_by(error, options.verb)
    command = shlex.join(["ochat", *(sys.argv[1:] if arguments is None else arguments)])
    with contextlib.closing(log) if log else contextlib.nullcontext(), output_of(command, quiet=options.quiet, log=log):
        return _run_verb(options)


def _run_verb(options: argparse.Namespace) -> int:
    """Run the verb; a signal asks it to stop, unless it listens to signals itself."""
    if options.verb in _OWN_SIGNALS:
        with ending_at_once() if options.verb == "train" else contextlib.nullcontext():
            return _run_reporting(options)
    with stopping_on_signals(options.verb) as stop:
        code = None
        with contextlib.suppress(KeyboardInterrupt):
            code = _run_reporting(options)
        if code is not None and (stop.signal_name is None or code == exits.STOPPED):
            return code
        # also where something else broke on the way: a process of a pool, a pipe
        return _ended_by(
            StoppedBySignalError(f"stopped by {stop.signal_name or 'SIGINT'}; start it again"), options.verb
        )


def _run_reporting(options: argparse.Namespace) -> int:
    try:
        options.run(options)
        flush_results()
    except ReportedError as error:
        if options.debug and isinstance(error, UserError):
            raise
        return _ended_by(error, options.verb)
    except Exception as error:  # a full disk can end any write, and permissions any use of a file
        found = file_error(error, getattr(options, "out", None))
        if options.debug or found is None:
            raise
        return _ended_by(found, options.verb)
    return exits.DONE


def _ended_by(error: ReportedError, verb: str) -> int:
    """Print an error, and return its exit code."""
    give_up_results()
    if error.each_process_prints or _rank() == 0:
        with contextlib.suppress(OSError):  # the disk behind stderr may be full; the exit code says it too
            print_error(f"ochat {verb}: {error}")
    return error.exit_code


def _rank() -> int:
    """The rank that a launcher gave this process, 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def run_as_script() -> Any:
    """Entry point of the `ochat` script."""
    sys.exit(main())
