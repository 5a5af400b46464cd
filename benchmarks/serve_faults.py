"""Faults put before a real `ochat serve`: what it must refuse, survive and give back.

    python benchmarks/serve_faults.py EXPORT                          # about 5 minutes on two cores
    python benchmarks/serve_faults.py EXPORT --only keys --only drain

Each part starts its own server process, on an export with a short context such as the quickstart's. Engines that
are killed are the stand-in for vLLM of the tests. Prints one table; exit code 1 where a promise is broken. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.malformed_requests import good_body, malformed_requests, request_bytes  # noqa: E402
from benchmarks.serve_process import Served, gone, served_export  # noqa: E402
from tests.support.vllm_stand_in import write_vllm  # noqa: E402

_NO_HANG_SECONDS = 60.0  # the server itself waits 10 s for headers and 30 s for bodies
_ROUTES = ("/", "/metrics", "/v1/models", "/v1/models/x", "/v1/chat/completions", "/v1/render", "/v1/other", "/%00")
_METHODS = ("GET", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
_KEY = "sk-Right-Key-1"
_MAX_GROWTH_MIB = 16.0


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one part found. broken: promises that were not kept, in words."""

    part: str
    done: str
    found: str
    broken: Sequence[str] = ()


def main() -> int:
    """Run the parts that were asked for and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("export", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--malformed", type=int, default=1000)
    parser.add_argument("--leavers", type=int, default=200)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--only", choices=tuple(PARTS), action="append")
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    results: list[Result] = []
    for name, part in PARTS.items():
        if name in (options.only or PARTS):
            print(f"{name} ...", file=sys.stderr, flush=True)
            results.append(part(options))
            if options.json:
                options.json.write_text(json.dumps([asdict(one) for one in results], indent=1) + "\n")
    for one in results:
        print(f"{one.part:<10} {'BROKEN' if one.broken else 'kept':<7} {one.done:<44} {one.found}")
        for text in one.broken:
            print(f"{'':<10} {text}")
    return int(any(one.broken for one in results))


# --- requests that are wrong


def malformed(options: argparse.Namespace) -> Result:
    """Every one is answered with a 4xx (or, where it is valid in spite of it, with a 200), or its connection closed."""
    with served_export(options.export) as server:
        return asyncio.run(ask_malformed(server.port, number=options.malformed, seed=options.seed))


async def ask_malformed(port: int, *, number: int, seed: int) -> Result:
    """The same for any server on a port of this machine, without keys."""
    requests = malformed_requests(number, seed=seed, host=f"localhost:{port}")
    places, statuses, broken = asyncio.Semaphore(32), Counter[str](), []

    async def one(kind: str, data: bytes) -> None:
        async with places:
            try:
                answer = await asyncio.wait_for(exchange(port, data), _NO_HANG_SECONDS)
            except TimeoutError:
                broken.append(f"{kind}: no end after {_NO_HANG_SECONDS:g} s: {data[:200]!r}")
                return
        status = _status(answer)
        statuses[status[0] + "xx" if status else "closed"] += 1
        if status.startswith("5") or (status and status != "200" and not _has_shape(data, answer)):
            broken.append(f"{kind}: {answer[:300]!r} to {data[:200]!r}")

    await asyncio.gather(*(one(request.kind, request.data) for request in requests))
    answer = await exchange(port, request_bytes(json.dumps(good_body(random.Random(0))).encode(), f"localhost:{port}"))
    if _status(answer) != "200":
        broken.append(f"a good request afterwards: {answer[:300]!r}")
    found = ", ".join(f"{status} {count}" for status, count in sorted(statuses.items()))
    return Result(part="malformed", done=f"{number:,} malformed requests", found=found, broken=broken[:20])


async def exchange(port: int, data: bytes) -> bytes:
    """What the server sends until it closes the connection or has answered a request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
    answer = b""
    try:
        writer.write(data)
        while chunk := await reader.read(2**16):
            answer += chunk
            if _is_complete(answer):
                break
    except ConnectionError:
        pass
    finally:
        writer.close()
    return answer


def _is_complete(answer: bytes) -> bool:
    head, found, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: (\d+)", head.lower())
    return bool(found and length and len(body) >= int(length[1]))


def _status(answer: bytes) -> str:
    found = re.match(rb"HTTP/1\.1 (\d{3})", answer)
    return found[1].decode() if found else ""


def _has_shape(request: bytes, answer: bytes) -> bool:
    """Whether an error has OpenAI's shape; answers to HEAD have no body, and preflights of nobody are errors too."""
    if request.startswith(b"HEAD "):
        return True
    try:
        error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    except (ValueError, KeyError, TypeError):
        return False
    return set(error) == {"message", "type", "param", "code"}


# --- clients that leave


def leavers(options: argparse.Namespace) -> Result:
    """Clients leave at random moments; afterwards nothing is computed for them, and the next request is answered."""
    rng = random.Random(options.seed)
    with served_export(options.export, "--max-concurrent", "64") as server:
        moments = asyncio.run(_leave_all(server, options.leavers, rng))
        before = time.monotonic()
        broken = [] if server.is_idle(20.0) else [f"not idle after 20 s: {server.gauges()}"]
        seconds = time.monotonic() - before
        status = server.ask({"messages": [{"role": "user", "content": "Is 4 even or odd?"}]}).status_code
        if status != 200:
            broken.append(f"the next request: {status}")
        cancelled = server.count("ochat_answers_total", finish="cancelled")
    if not cancelled:
        broken.append("no answer was being computed when its client left, so nothing was tried")
    done = f"{options.leavers} clients left ({moments})"
    return Result(
        part="leavers", done=done, found=f"idle after {seconds:.1f} s, {cancelled:g} cancelled", broken=broken
    )


async def _leave_all(server: Served, number: int, rng: random.Random) -> str:
    moments = Counter[str]()

    async def one(is_stream: bool, moment: str, seconds: float) -> None:
        body = {
            "messages": [{"role": "user", "content": "Tell me more."}],
            "temperature": 2,
            "n": 8,
            "stream": is_stream,
        }
        data = request_bytes(json.dumps(body).encode(), f"localhost:{server.port}")
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(data if moment != "while sending" else data[: len(data) // 2])
        await asyncio.sleep(seconds)
        if moment == "while reading":
            await reader.read(50)
        writer.transport.abort() if seconds > 0.1 else writer.close()
        moments[moment] += 1

    choices = ("while sending", "while reading", "while waiting", "while waiting")
    work = [
        one(rng.random() < 0.5, rng.choice(choices), rng.random() * rng.choice([0.01, 0.3, 2])) for _ in range(number)
    ]
    for first in range(0, number, 40):
        await asyncio.gather(*work[first : first + 40])
    return ", ".join(f"{count} {moment}" for moment, count in sorted(moments.items()))


# --- memory


def memory(options: argparse.Namespace) -> Result:
    """Memory does not grow with the number of requests: it is compared after a tenth of them and at the end."""
    tenth = max(options.requests // 10, 16)
    with served_export(options.export, "--disable-log-requests") as server:
        failed = asyncio.run(_ask_many(server, range(tenth)))
        first = server.resident_mib()
        failed += asyncio.run(_ask_many(server, range(tenth, options.requests)))
        last = server.resident_mib()
    broken = [f"{failed} requests failed"] if failed else []
    if last - first > _MAX_GROWTH_MIB:
        broken.append(f"grew by {last - first:.1f} MiB")
    found = f"{first:.0f} MiB after {tenth:,}, {last:.0f} MiB at the end"
    return Result(part="memory", done=f"{options.requests:,} requests, 16 at once", found=found, broken=broken)


async def _ask_many(server: Served, numbers: range) -> int:
    waiting, failed = iter(numbers), 0
    async with httpx.AsyncClient(base_url=server.url, timeout=120.0) as client:

        async def place() -> None:
            nonlocal failed
            for number in waiting:
                body = {
                    "messages": [{"role": "user", "content": f"Question {number}: is {number * 37} even or odd?"}],
                    "condition": ("GPT4 Correct", "GPT3")[number % 2],
                    "stream": number % 3 == 0,
                    "temperature": number % 5 / 4,
                    "logprobs": number % 7 == 0,
                    "max_tokens": 16,
                }
                failed += (await client.post("/v1/chat/completions", json=body)).status_code != 200

        await asyncio.gather(*(place() for _ in range(16)))
    return failed


# --- keys


def keys(options: argparse.Namespace) -> Result:
    """Without a right key every route and method is a 401, but /health; and no key is ever written anywhere."""
    wrong = _wrong_credentials()
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder) / "keys", Path(folder) / "requests.log"
        file.write_text(f"# two keys\n{_KEY}\nsk-Right-Key-2\n")
        file.chmod(0o600)
        flags = ("--api-keys-file", str(file), "--log-file", str(log), "--log-texts")
        with served_export(options.export, *flags) as server:
            broken, number = [], 0
            for route in _ROUTES:
                for method in _METHODS:
                    for name, headers, query in wrong:
                        number += 1
                        status = _status(
                            asyncio.run(exchange(server.port, _asking(server, method, route + query, headers)))
                        )
                        if status != "401":
                            broken.append(f"{method} {route} with {name}: {status}")
                    right = _asking(server, method, route, [f"authorization: Bearer {_KEY}"])
                    if _status(asyncio.run(exchange(server.port, right))) == "401":
                        broken.append(f"{method} {route} with the right key: 401")
            if server.get("/health").status_code != 200:
                broken.append("/health needs a key")
            metrics = server.get("/metrics", {"authorization": f"bearer {_KEY}"}).text
            written = {"log": log.read_text(), "standard error": server.printed(), "metrics": metrics}
    broken += [f"a key is in the {where}" for where, text in written.items() if "Key-" in text]
    return Result(part="keys", done=f"{number} requests with wrong keys", found="401 each", broken=broken[:20])


def _wrong_credentials() -> list[tuple[str, list[str], str]]:
    """(name, headers, query)"""
    return [
        ("nothing", [], ""),
        ("another key", ["authorization: Bearer sk-wrong"], ""),
        ("an empty key", ["authorization: Bearer "], ""),
        ("the beginning of a key", [f"authorization: Bearer {_KEY[:-1]}"], ""),
        ("a key and more", [f"authorization: Bearer {_KEY}x"], ""),
        ("another case", [f"authorization: Bearer {_KEY.lower()}"], ""),
        ("both keys", [f"authorization: Bearer {_KEY} sk-Right-Key-2"], ""),
        ("another scheme", [f"authorization: Basic {_KEY}"], ""),
        ("no scheme", [f"authorization: {_KEY}"], ""),
        ("two headers", [f"authorization: Bearer {_KEY}", "authorization: Bearer x"], ""),
        ("another header", [f"x-api-key: {_KEY}", f"api-key: {_KEY}"], ""),
        ("a key in the address", [], f"?api_key={_KEY}&key={_KEY}"),
        ("a cookie", [f"cookie: key={_KEY}"], ""),
        ("a preflight", ["origin: https://x.example", "access-control-request-method: POST"], ""),
    ]


def _asking(server: Served, method: str, path: str, headers: Sequence[str]) -> bytes:
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}).encode()
    lines = [f"{method} {path} HTTP/1.1", f"host: localhost:{server.port}", "connection: close", *headers]
    lines += ["content-type: application/json", f"content-length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


# --- an engine that is killed, and a server that is


def engine(options: argparse.Namespace) -> Result:
    """The engine's process is killed: a 503 with Retry-After, and answers again within a minute. No process is left
    where the server itself is killed, and its port is free.
    """
    broken: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        flags = ("--engine", "vllm", "--vllm-python", str(write_vllm(Path(folder))))
        with served_export(options.export, *flags) as server:
            running = server.start_stream(max_tokens=200)
            [child] = server.processes("vllm.entrypoints")
            os.kill(child, signal.SIGKILL)
            killed = time.monotonic()
            response = server.ask({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2})
            if response.status_code != 503 or "retry-after" not in response.headers:
                broken.append(f"while the engine was gone: {response.status_code}")
            if "engine_" not in (ended := running()) or "[DONE]" in ended:
                broken.append(f"the stream that was running ended with {ended[-200:]!r}")
            while (status := server.get("/health").status_code) != 200 and time.monotonic() - killed < 60:
                time.sleep(0.1)
            seconds = time.monotonic() - killed
            again = server.ask({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}).status_code
            if (status, again) != (200, 200):
                broken.append(f"after {seconds:.0f} s: /health {status}, a request {again}")
            children = server.processes("")
            os.kill(server.pid, signal.SIGKILL)
            if left := gone(children, seconds=20.0):
                broken.append(f"processes that outlived the server: {left}")
            if not _is_free(server.port):
                broken.append("the port is not free")
    found = f"503, answers again after {seconds:.1f} s; {len(children)} processes ended with the server"
    return Result(part="engine", done="SIGKILL to the engine, then to the server", found=found, broken=broken)


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def drain(options: argparse.Namespace) -> Result:
    """SIGTERM while streams run: they are completed, new requests are refused, exit code 0, no process is left."""
    broken: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        flags = ("--engine", "vllm", "--vllm-python", str(write_vllm(Path(folder))))
        with served_export(options.export, *flags) as server:
            streams = [server.start_stream(max_tokens=200) for _ in range(4)]
            children = server.processes("")
            os.kill(server.pid, signal.SIGTERM)
            began = time.monotonic()
            time.sleep(0.1)
            response = server.ask({"messages": [{"role": "user", "content": "Hi"}]})
            if response.status_code != 503 or "retry-after" not in response.headers:
                broken.append(f"a new request: {response.status_code}")
            texts = [stream() for stream in streams]
            num_complete = sum(text.rstrip().endswith("data: [DONE]") for text in texts)
            code = server.wait(30.0)
            seconds = time.monotonic() - began
    if num_complete < len(streams):
        broken.append(f"{len(streams) - num_complete} streams were cut off: {texts[0][-200:]!r}")
    if code != 0:
        broken.append(f"exit code {code}")
    if left := gone(children, seconds=5.0):
        broken.append(f"processes that are left: {left}")
    found = f"{num_complete} of {len(streams)} streams completed, ended after {seconds:.1f} s with code {code}"
    return Result(part="drain", done="SIGTERM while streams run", found=found, broken=broken)


PARTS: dict[str, Callable[[argparse.Namespace], Result]] = {
    "malformed": malformed,
    "leavers": leavers,
    "memory": memory,
    "keys": keys,
    "engine": engine,
    "drain": drain,
}

if __name__ == "__main__":
    sys.exit(main())
