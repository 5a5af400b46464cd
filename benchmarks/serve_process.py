"""A real `ochat serve` process on a free port, and what can be seen of it from outside."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
_OURS = "from ochat_train.cli import run_as_script; run_as_script()"  # `ochat`, installed or not
_START_SECONDS = 180.0


@dataclass(frozen=True, kw_only=True)
class Served:
    """The running process. output: what it has printed."""

    process: subprocess.Popen[bytes]
    url: str
    port: int
    output: IO[bytes]

    @property
    def pid(self) -> int:
        """Of the server itself."""
        return self.process.pid

    def get(self, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
        """A GET."""
        return httpx.get(self.url + path, headers=headers, timeout=60.0)

    def ask(self, body: dict[str, Any]) -> httpx.Response:
        """A chat completion."""
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=60.0)

    def start_stream(self, *, max_tokens: int) -> Callable[[], str]:
        """Begin a stream and wait for its first text. The function waits for its end and gives all of it."""
        began, parts = threading.Event(), []

        def read() -> None:
            body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": max_tokens, "stream": True}
            try:
                with httpx.stream("POST", f"{self.url}/v1/chat/completions", json=body, timeout=60.0) as response:
                    for text in response.iter_text():
                        parts.append(text)
                        began.set()
            except httpx.HTTPError as error:
                parts.append(f"{type(error).__name__}: {error}")
            began.set()

        thread = threading.Thread(target=read)
        thread.start()
        if not began.wait(60.0):
            raise SystemExit("a stream did not begin within a minute")

        def finish() -> str:
            thread.join()
            return "".join(parts)

        return finish

    def count(self, name: str, **labels: str) -> float:
        """The sum of a metric's values with these labels."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        total = 0.0
        for line in self.get("/metrics").text.splitlines():
            if re.match(rf"{name}[ {{]", line) and all(label in line for label in wanted):
                total += float(line.rpartition(" ")[2])
        return total

    def gauges(self) -> dict[str, float]:
        """How many answers are computed and how many requests wait."""
        return {name: self.count(name) for name in ("ochat_running", "ochat_waiting")}

    def is_idle(self, seconds: float) -> bool:
        """Whether nothing is computed and nobody waits, at the latest after so many seconds."""
        deadline = time.monotonic() + seconds
        while any(self.gauges().values()):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def resident_mib(self) -> float:
        """Memory of the server's process."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        return int(found[1]) / 1024 if found else 0.0

    def processes(self, text: str) -> list[int]:
        """Processes below the server whose command line has a text, in the order in which they were started; those
        that only start others (`keeper.py`) are left out where a text is asked for.
        """
        parents = _parents()
        below = [pid for pid in sorted(parents) if _is_below(pid, self.pid, parents)]
        return [pid for pid in below if text in (line := _command(pid)) and not (text and "keeper.py" in line)]

    def printed(self) -> str:
        """What it has printed so far."""
        self.output.seek(0)
        return self.output.read().decode(errors="replace")

    def wait(self, seconds: float) -> int | None:
        """Its exit code, None where it has not ended in time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(seconds)
        return None


@contextlib.contextmanager
def served_export(export: Path, *flags: str) -> Iterator[Served]:
    """`ochat serve` until the end of the block, whatever happens in it; in this process without vLLM by default."""
    engine = () if "--engine" in flags else ("--engine", "transformers")
    command = [sys.executable, "-c", _OURS, "serve", str(export.resolve()), "--port", "0", *engine, *flags]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment.pop("OCHAT_API_KEYS", None)
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
        try:
            port = _port(process, output)
            yield Served(process=process, url=f"http://127.0.0.1:{port}", port=port, output=output)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=45)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _port(process: subprocess.Popen[bytes], output: IO[bytes]) -> int:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        text = os.pread(output.fileno(), 2**20, 0).decode(errors="replace")
        if found := re.search(r"serving at http://localhost:(\d+)", text):
            return int(found[1])
        time.sleep(0.1)
    text = os.pread(output.fileno(), 2**20, 0).decode(errors="replace")
    raise SystemExit(f"ochat serve did not start:\n{text[-4000:]}")


def gone(pids: Sequence[int], *, seconds: float) -> list[int]:
    """Those that are still alive after so many seconds."""
    deadline = time.monotonic() + seconds
    while (left := [pid for pid in pids if _is_alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _is_alive(pid: int) -> bool:
    return _field(pid, 0) not in (None, "Z")


def _parents() -> dict[int, int]:
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return {pid: int(parent) for pid in pids if (parent := _field(pid, 1)) is not None}


def _field(pid: int, number: int) -> str | None:
    """A field of a process's state after its name: 0 the state, 1 the parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[number]
    except (OSError, IndexError):
        return None


def _is_below(pid: int, top: int, parents: dict[int, int]) -> bool:
    while pid in parents and pid != top:
        pid = parents[pid]
        if pid == top:
            return True
    return False


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
