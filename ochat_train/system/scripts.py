"""Modules that are started with `python -m` and are no verbs: they end as verbs do."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import NoReturn

from data_pipeline.errors import ReportedError
from data_pipeline.files import file_error
from ochat_train.system import exits
from ochat_train.system.messages import flush_results, give_up_results, print_error


def run_script(name: str, main: Callable[[], None]) -> NoReturn:
    """Run `main` and end the process: an expected error is one message and its exit code, not a traceback."""
    try:
        main()
        flush_results()
    except ReportedError as error:
        found: ReportedError = error
    except Exception as error:
        explained = file_error(error)
        if explained is None:
            raise
        found = explained
    else:
        sys.exit(exits.DONE)
    give_up_results()
    with contextlib.suppress(OSError):  # the disk behind stderr may be full; the exit code says it too
        print_error(f"{name}: {found}")
    sys.exit(found.exit_code)
