"""What `ochat serve` itself costs for each streamed token: microseconds of CPU of its process, without any model.

    python benchmarks/serve_layer.py EXPORT
    python benchmarks/serve_layer.py EXPORT --steps-per-second 1000         # as fast as it goes

The engine is a stand-in process that speaks vLLM's `/v1/completions`: it sends the next of its prepared events to every
connection, so many times a second. A client in this process asks for `--at-once` streams at the same time. CPU seconds
are those that the system counted for a process, so that other programs on the machine change little. The baseline is
what the stand-in needs to send the same events to the same client directly.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_OURS = "from ochat_train.cli import run_as_script; run_as_script()"  # `ochat`, installed or not
_START_SECONDS = 120.0
_RUN_SECONDS = 300.0
_TEXT = "An even number can be divided by two without a rest, and the last digit tells whether that is so. "
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run. cpu_seconds: of the process that is asked, in user and system. first_seconds: of each request until its
    first token.
    """

    tokens: int
    seconds: float
    cpu_seconds: tuple[float, float]
    first_seconds: list[float]


def main() -> None:
    """Measure the stand-in alone, and `ochat serve` before it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("export", type=Path)
    parser.add_argument("--at-once", type=int, default=64, help="streams")
    parser.add_argument("--max-tokens", type=int, default=200, help="of an answer")
    parser.add_argument("--rounds", type=int, default=2, help="times that all streams are asked for")
    parser.add_argument("--steps-per-second", type=float, default=20.0, help="tokens of each stream")
    parser.add_argument("--stand-in", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stand_in is not None:
        asyncio.run(run_stand_in(options))
        return
    python = (sys.executable, str(Path(__file__).resolve()), str(options.export), "--max-tokens")
    stand_in = (*python, str(options.max_tokens), "--steps-per-second", str(options.steps_per_second), "--stand-in")
    with running(stand_in) as (port, pid):
        plain = asyncio.run(measure(port, pid, options, chat=False))
        ours = (sys.executable, "-c", _OURS, "serve", str(options.export), "--backend", f"http://127.0.0.1:{port}")
        quiet = ("--disable-log-requests", "--disable-log-stats", "--port")
        with running((*ours, *quiet)) as (our_port, our_pid):
            layer = asyncio.run(measure(our_port, our_pid, options, chat=True))
    print(
        f"{'process':<18}{'tokens':>8}{'tokens/s':>10}{'CPU us/token':>14}{'of it system':>14}{'first, ms':>11}"
        f"{'last first, ms':>16}"
    )
    for name, found in (("stand-in alone", plain), ("ochat serve", layer)):
        first = 1000 * statistics.median(found.first_seconds)
        print(
            f"{name:<18}{found.tokens:>8,}{found.tokens / found.seconds:>10,.0f}"
            f"{1e6 * sum(found.cpu_seconds) / found.tokens:>14.1f}{1e6 * found.cpu_seconds[1] / found.tokens:>14.1f}"
            f"{first:>11.0f}{1000 * max(found.first_seconds):>16.0f}"
        )


@contextmanager
def running(command: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """Port and process id of a server whose command ends with its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen((*command, str(port)), env=environment)
    try:
        begun = time.monotonic()
        while not _answers(port):
            if process.poll() is not None or time.monotonic() - begun > _START_SECONDS:
                raise SystemExit(f"did not start: {' '.join(command)}")
            time.sleep(0.1)
        yield port, process.pid
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(port: int) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/health", timeout=2.0) as response:
            return bool(response.status == 200)
    except OSError:
        return False


async def measure(port: int, pid: int, options: argparse.Namespace, *, chat: bool) -> Measured:
    """All streams at the same time, `--rounds` times, after a short run that does not count."""
    warm = [_ask(port, number, 8, chat=chat) for number in range(8)]
    await asyncio.wait_for(asyncio.gather(*warm), _RUN_SECONDS)
    tokens, firsts, begun, cpu = 0, [], time.monotonic(), cpu_seconds(pid)
    for _ in range(options.rounds):
        asked = [_ask(port, number, options.max_tokens, chat=chat) for number in range(options.at_once)]
        for counted, first in await asyncio.wait_for(asyncio.gather(*asked), _RUN_SECONDS):
            tokens += counted
            firsts.append(first)
    seconds = time.monotonic() - begun
    used = [after - before for before, after in zip(cpu, cpu_seconds(pid), strict=True)]
    return Measured(tokens=tokens, seconds=seconds, cpu_seconds=(used[0], used[1]), first_seconds=firsts)


def cpu_seconds(pid: int) -> tuple[float, float]:
    """CPU time of all threads of a process so far, in user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / ticks, int(fields[12]) / ticks


class _Asking(asyncio.Protocol):
    """Sends one request and reads to the last event, at little cost."""

    def __init__(self, request: bytes, done: asyncio.Future[tuple[bytes, float]]) -> None:
        self._request, self._done, self._begun = request, done, time.monotonic()
        self._head, self._first, self._last = b"", 0.0, b""

    def connection_made(self, transport: Any) -> None:
        transport.write(self._request)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if not self._first and b'"finish_reason"' in data:
            self._first = time.monotonic() - self._begun
        self._head = self._head or data[:100]
        self._last = (self._last + data)[-4000:]
        if b"data: [DONE]" in self._last[-100:]:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._head.startswith(b"HTTP/1.1 200") or b"data: [DONE]" not in self._last:
            self._done.set_exception(RuntimeError(f"no whole answer: {(self._head + self._last)[:500]!r}"))
        else:
            self._done.set_result((self._last, self._first))


async def _ask(port: int, number: int, max_tokens: int, *, chat: bool) -> tuple[int, float]:
    """Tokens of one answer, as its usage counts them, and the seconds until its first text."""
    body: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": max_tokens}
    text = f"Question {number}: is {number * 37 % 1009} even or odd? Say why."
    body |= {"messages": [{"role": "user", "content": text}]} if chat else {"model": "stand-in", "prompt": [1, 2, 3]}
    data, path = json.dumps(body).encode(), "/v1/chat/completions" if chat else "/v1/completions"
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
    loop = asyncio.get_running_loop()
    done: asyncio.Future[tuple[bytes, float]] = loop.create_future()
    await loop.create_connection(lambda: _Asking(f"{head}\r\n\r\n".encode() + data, done), "127.0.0.1", port)
    last, first = await done
    usage = [line for line in last.split(b"\n") if line.startswith(b"data: {") and b'"completion_tokens"' in line][-1]
    tokens = int(json.loads(usage.removeprefix(b"data: "))["usage"]["completion_tokens"])
    if tokens != max_tokens:
        raise RuntimeError(f"{tokens} tokens instead of {max_tokens}")
    return tokens, first


@dataclass
class _StandIn:
    """Prepared events, and who gets them. streams: transport -> (chunks, how many of them were sent)."""

    tokenizer: Any
    ids: list[int]
    chunks: dict[int, list[bytes]] = field(default_factory=dict)
    streams: dict[Any, tuple[list[bytes], int]] = field(default_factory=dict)

    def answer(self, transport: Any, path: str, body: dict[str, Any]) -> None:
        """Answer a request, or begin its stream."""
        if path == "/v1/models":
            _reply(transport, {"data": [{"id": "stand-in"}]})
        elif path != "/v1/completions":
            _reply(transport, {})
        elif body.get("stream"):
            transport.write(_HEAD)
            self.streams[transport] = (self.prepared(body["max_tokens"]), 0)
        else:
            prompt = body["prompt"]
            ids = self.tokenizer.encode(prompt, add_special_tokens=False).ids if isinstance(prompt, str) else prompt
            choice = {"index": 0, "text": "", "token_ids": self.ids[:1], "finish_reason": "length"}
            _reply(transport, {"choices": [choice], "usage": {"prompt_tokens": len(ids), "completion_tokens": 1}})

    def prepared(self, max_tokens: int) -> list[bytes]:
        """The chunks of an answer, as vLLM writes them."""
        if max_tokens not in self.chunks:
            events = [self._event(number, max_tokens) for number in range(max_tokens)]
            chunks = [b"%x\r\n%s\r\n" % (len(event), event) for event in (*events, b"data: [DONE]\n\n")]
            self.chunks[max_tokens] = [*chunks[:-1], chunks[-1] + b"0\r\n\r\n"]
        return self.chunks[max_tokens]

    def _event(self, number: int, max_tokens: int) -> bytes:
        token = self.ids[number % len(self.ids)]
        choice = {
            "index": 0,
            "text": self.tokenizer.decode([token]),
            "logprobs": None,
            "finish_reason": "length" if number == max_tokens - 1 else None,
            "stop_reason": None,
            "token_ids": [token],
            "prompt_token_ids": None,
        }
        usage = {"prompt_tokens": 3, "total_tokens": number + 4, "completion_tokens": number + 1}
        head = {"id": "cmpl-5f9b3c0f7d1f4c6f8f2c", "object": "text_completion", "created": 1, "model": "stand-in"}
        return b"data: " + json.dumps({**head, "choices": [choice], "usage": usage}).encode() + b"\n\n"

    def step(self) -> None:
        """The next token of every stream."""
        for transport, (chunks, sent) in list(self.streams.items()):
            transport.write(chunks[sent] if sent + 2 < len(chunks) else b"".join(chunks[sent:]))
            self.streams[transport] = (chunks, sent + 1)
            if sent + 2 >= len(chunks):
                del self.streams[transport]


def _reply(transport: Any, value: Any) -> None:
    data = json.dumps(value).encode()
    transport.write(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(data) + data
    )


class _Connection(asyncio.Protocol):
    """Enough of HTTP for our own clients."""

    def __init__(self, stand_in: _StandIn) -> None:
        self._stand_in, self._data = stand_in, b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, end, body = self._data.partition(b"\r\n\r\n")
        sizes = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        size = int(sizes[0].partition(b":")[2]) if sizes else 0
        if not end or len(body) < size:
            return
        self._data = body[size:]
        path = head.split(b" ", 2)[1].decode()
        self._stand_in.answer(self._transport, path, json.loads(body[:size]) if size else {})

    def connection_lost(self, error: Exception | None) -> None:
        self._stand_in.streams.pop(self._transport, None)


async def run_stand_in(options: argparse.Namespace) -> None:
    """Serve until this process is ended."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(options.export / "tokenizer.json"))
    stand_in = _StandIn(tokenizer, tokenizer.encode(_TEXT, add_special_tokens=False).ids)
    stand_in.prepared(options.max_tokens)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(stand_in), "127.0.0.1", options.stand_in, backlog=1024)
    async with server:
        due = loop.time()
        while True:
            stand_in.step()
            due = max(due + 1 / options.steps_per_second, loop.time())
            await asyncio.sleep(due - loop.time())


if __name__ == "__main__":
    main()
