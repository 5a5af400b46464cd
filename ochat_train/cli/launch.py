"""`ochat launch`."""

from __future__ import annotations

import argparse
import sys

from ochat_train.cli.arguments import positive_number, whole_number
from ochat_train.cli.verb import Group, Verb
from ochat_train.system.exits import StoppedBySignalError
from ochat_train.system.messages import print_error


class _EndedError(StoppedBySignalError):
    """The command has ended, and has said itself why. exit_code: its own, of any kind."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"the command ended with exit code {exit_code}")
        self.exit_code = exit_code  # type: ignore[misc]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--retries",
        type=whole_number,
        default=0,
        help="start the command again at most N times after a crash, never after an error that you can fix or after "
        "Ctrl-C (default 0)",
    )
    parser.add_argument(
        "--pause", type=positive_number, default=5.0, metavar="SECONDS", help="how long to wait before each retry"
    )
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="what to start, after `--`")


def _run(options: argparse.Namespace) -> None:
    from ochat_train.distributed.supervisor import supervise

    code = supervise(
        options.command,
        retries=options.retries,
        pause_seconds=options.pause,
        say=lambda text: print_error(f"ochat launch: {text}"),
    )
    if code != 0:
        sys.stdout.flush()
        raise _EndedError(code)


LAUNCH = Verb(
    name="launch",
    group=Group.TRAIN,
    summary="Start a training command, wait until all its processes are gone, start it again after a crash.",
    example="ochat launch --retries 3 -- deepspeed --num_gpus 8 --module ochat_train recipes/openchat_3_5.yaml",
    add_arguments=_add_arguments,
    run=_run,
)
