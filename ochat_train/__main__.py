"""`python -m ochat_train RECIPE`: what a launcher starts on every rank, the same as `ochat train RECIPE`."""

import atexit
import contextlib
import os
import sys

from ochat_train.distributed.launch import leave_exit_code

_code: int = 1  # of a process that ends in another way


def _leave() -> None:
    """End the process before Python takes its interpreter down.

    Threads of Gloo and DeepSpeed may still run then. One that needs the interpreter is ended by force, which C++
    answers with `terminate called without an active exception` and SIGABRT: a finished training would look like a
    crash.
    """
    leave_exit_code(_code, os.environ)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # None where it is closed
            stream.flush()
    os._exit(_code)


if __name__ == "__main__":
    atexit.register(_leave)  # the first one: it runs after the handlers of everything that is imported below
    from ochat_train.cli.main import main

    try:
        _code = main(["train", *sys.argv[1:]])
    except SystemExit as end:  # --help, and words that argparse refuses
        _code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    sys.exit(_code)
