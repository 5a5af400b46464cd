"""A shell for the documentation's examples: real bash, with programs that hand over to this process what they were
called with.

In the shell's PATH `ochat`, `deepspeed`, `python` and others are small scripts. Each sends its words, folder and
environment through a socket, waits, prints what comes back and ends with the exit code that comes back. So pipes,
redirections, variables and `./launch.sh` work as in a terminal, while commands can be checked, made smaller and started
from a warm process.
"""

from __future__ import annotations

import json
import os
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SCRIPT = """\
#!{python} -IS
import json, os, socket, sys
words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
call = {{"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}}
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect({address!r})
    connection.sendall(json.dumps(call).encode() + b"\\n")
    code, out, error = json.loads(connection.makefile().readline())
sys.stderr.write(error)
sys.stdout.write(out)
sys.exit(code)
"""


@dataclass(frozen=True, kw_only=True)
class Call:
    """What a program was called with; words begin with its name."""

    words: list[str]
    folder: Path
    environment: dict[str, str]


Answer = tuple[int, str, str]  # exit code, standard output, standard error


@contextmanager
def shell(
    programs: Iterable[str], handle: Callable[[Call], Answer], *, environment: Mapping[str, str]
) -> Iterator[Callable[[str, Path], str]]:
    """A function that runs a text in bash in a folder and returns what it printed, until the context ends.

    It raises AssertionError where a command fails (`set -euo pipefail`). Beside `programs` only the system's own are in
    PATH.
    """
    with tempfile.TemporaryDirectory() as folder:  # a short path: a socket's may have 107 characters
        address, shims = f"{folder}/socket", Path(folder) / "bin"
        shims.mkdir()
        for name in programs:
            (shims / name).write_text(_SCRIPT.format(python=sys.executable, address=address), encoding="utf-8")
            (shims / name).chmod(0o755)

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                received = json.loads(self.rfile.readline())
                call = Call(
                    words=received["words"], folder=Path(received["folder"]), environment=received["environment"]
                )
                self.wfile.write(json.dumps(handle(call)).encode() + b"\n")

        def run(text: str, where: Path) -> str:
            variables = {**os.environ, **environment, "PATH": f"{shims}:/usr/bin:/bin"}
            done = subprocess.run(
                ["/bin/bash", "-euo", "pipefail", "-c", text],
                cwd=where,
                env=variables,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=300,
                check=False,
            )
            assert done.returncode == 0, f"exit code {done.returncode} of\n{text}\n{done.stdout}"
            return done.stdout

        with socketserver.ThreadingUnixStreamServer(address, Handler) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
            thread.start()
            try:
                yield run
            finally:
                server.shutdown()
                thread.join()
