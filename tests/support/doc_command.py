"""Runs one command or script of the documentation in a separate process, forked by tests/support/rank_processes.py.

    python -m tests.support.doc_command '{"folder": F, "stdout": FILE, "constants": {M: {NAME: VALUE}}, "module": M,
    "words": [...]}'

`script` (a file) or `code` (Python, as on a page) may replace `module`. What goes to standard output is
written to the file; the rest stays where it is. constants: module variables that are set first, to make an example
smaller.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
from typing import Any


def main(job: dict[str, Any]) -> None:
    """Run the job; ends the process as the command does."""
    os.chdir(job["folder"])
    os.dup2(os.open(job["stdout"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    sys.argv = [job.get("module") or job.get("script") or "page", *job["words"]]
    for name, values in job["constants"].items():
        vars(importlib.import_module(name)).update(values)
    if job.get("module") in job["constants"]:
        importlib.import_module(
            job["module"]
        ).main()  # run_module would make another copy of it, with its own constants
    elif job.get("module"):
        runpy.run_module(job["module"], run_name="__main__", alter_sys=True)
    elif job.get("script"):
        runpy.run_path(job["script"], run_name="__main__")
    else:
        exec(compile(job["code"], "page", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
