"""Runs a command that ends when whoever started this program ends, however that happens (SIGKILL too).

    python keeper.py FOLDER COMMAND ...

Whoever starts it keeps a pipe to its standard input. When that closes, the command's whole process group is ended:
SIGTERM, and SIGKILL after some seconds. When the command ends first, what it left behind is ended too, and this program
ends with its exit code. FOLDER is what the starter made for the command: it is removed where the pipe closes without
the byte KEEP, so where the starter was killed. Only the standard library is imported: it runs beside another
environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

GRACE_SECONDS = 10.0
KEEP = b"k"  # on the pipe before it closes: whoever started this is alive, and sees to the folder
_PR_SET_PDEATHSIG = 1  # of prctl(2), Linux


def main(folder: str, command: list[str]) -> int:
    """Run the command; its exit code, 128 + number for a signal."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with_parent)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: _end(child))
    is_orphan = threading.Event()
    threading.Thread(target=_watch, args=(child, is_orphan), daemon=True).start()
    code = child.wait()
    _signal_group(child, signal.SIGKILL)  # what it left behind
    if is_orphan.is_set():
        shutil.rmtree(folder, ignore_errors=True)
    return code if code >= 0 else 128 - code


def _watch(child: subprocess.Popen[bytes], is_orphan: threading.Event) -> None:
    """Block until the pipe closes, then end the command."""
    said = b""
    while piece := os.read(0, 4096):
        said += piece
    if KEEP not in said:
        is_orphan.set()
    _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    _signal_group(child, signal.SIGTERM)
    threading.Thread(target=_kill_later, args=(child,), daemon=True).start()


def _kill_later(child: subprocess.Popen[bytes]) -> None:
    time.sleep(GRACE_SECONDS)
    _signal_group(child, signal.SIGKILL)


def _signal_group(child: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


def _die_with_parent() -> None:
    """In the new process: SIGKILL where this program is itself killed. Other systems than Linux have only the pipe."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
