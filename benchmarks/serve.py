"""Speed of `ochat serve` beside other servers of the same export, in one run on one machine.

    python benchmarks/serve.py EXPORT                           # beside `transformers serve`
    python benchmarks/serve.py EXPORT --vllm-python PY          # on vLLM, beside vLLM without our layer
    python benchmarks/serve.py EXPORT --vllm-python PY --shape 7b --max-tokens 256     # random weights

Each server starts by itself, answers a few requests that do not count, and then as many at once as `--at-once` says,
all of them streams, from `--clients` processes. Every request has its own prompt and asks for greedy answers. The usage
that the server reports counts tokens. The last column is the throughput as a share of the baseline's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
_OURS = "from ochat_train.cli import run_as_script; run_as_script()"  # `ochat`, installed or not
_START_SECONDS = 300.0
_REQUEST_SECONDS = 300.0
_MISTRAL_7B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 32_002,
    "max_position_embeddings": 8192,
}


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server to measure. command: without its port. extra: fields of every request that only it needs."""

    name: str
    command: tuple[str, ...]
    model: str
    extra: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One request. seconds: until its first text, and until its end. tokens: of the answer."""

    first_seconds: float
    seconds: float
    tokens: int
    status: int


def main() -> None:
    """Measure every server at every number of requests at once, and print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("export", type=Path)
    parser.add_argument("--vllm-python", help="the Python in whose environment vLLM is; default: `transformers serve`")
    parser.add_argument("--vllm-flags", default="", help="for vLLM, ours and plain")
    parser.add_argument(
        "--shape", choices=("7b",), help="random weights of this size, with the export's tokenizer; vLLM"
    )
    parser.add_argument("--at-once", default="1,16,64")
    parser.add_argument("--per-place", type=int, default=4, help="requests for each of those at once")
    parser.add_argument("--max-tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--clients", type=int, default=1, help="processes that ask")
    parser.add_argument("--condition", default="GPT4 Correct")
    parser.add_argument("--only", help="one server: ours or the baseline's name")
    parser.add_argument("--json", type=Path, help="write all figures here")
    arguments = parser.parse_args()
    levels = [int(level) for level in arguments.at_once.split(",")]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        export = arguments.export.resolve()
        if arguments.shape:
            export = random_model(export, Path(folder) / "random")
        servers = listed_servers(export, arguments)
        for server in servers:
            if arguments.only in (None, server.name):
                results += measure(server, levels, arguments)
                if arguments.json:
                    arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print_table(results, baseline=servers[-1].name)


def listed_servers(export: Path, arguments: argparse.Namespace) -> list[Server]:
    """Ours, and the baseline last."""
    flags = shlex.split(arguments.vllm_flags)
    if arguments.shape:
        flags += ["--load-format", "dummy"]
    ours = (sys.executable, "-c", _OURS, "serve", str(export))
    condition = {"condition": arguments.condition}
    if arguments.vllm_python is None:
        plain = (sys.executable, "-m", "transformers.cli.transformers", "serve", str(export))
        return [
            Server(name="ours", command=(*ours, "--engine", "transformers"), model="", extra=condition),
            Server(
                name="transformers serve",
                command=(*plain, "--continuous-batching", "--cb-num-blocks", "256", "--cb-block-size", "32"),
                model=str(export),
                extra={},
            ),
        ]
    vllm = (arguments.vllm_python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(export))
    with_vllm = ("--engine", "vllm", "--vllm-python", arguments.vllm_python)
    return [
        Server(name="ours", command=(*ours, *with_vllm, *(("--", *flags) if flags else ())), model="", extra=condition),
        Server(
            name="vLLM",
            command=(*vllm, "--served-model-name", "plain", "--host", "127.0.0.1", *flags),
            model="plain",
            extra={"chat_template_kwargs": condition},
        ),
    ]


def random_model(export: Path, folder: Path) -> Path:
    """An export without weights, of Mistral-7B's shapes: vLLM makes random ones."""
    shutil.copytree(export, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.safetensors.index.json"))
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, **_MISTRAL_7B, "dtype": "bfloat16"}), encoding="utf-8")
    return folder


def measure(server: Server, levels: Sequence[int], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Figures of one server at every level."""
    print(f"{server.name} ...", file=sys.stderr, flush=True)
    results = []
    with running(server) as (url, start_seconds):
        ask_all(server, url, at_once=2, number=4, arguments=arguments)
        for level in levels:
            begun = time.monotonic()
            answered = ask_all(server, url, at_once=level, number=level * arguments.per_place, arguments=arguments)
            seconds = time.monotonic() - begun
            good = [one for one in answered if one.status == 200]
            if not good:
                raise SystemExit(f"{server.name}: none of {len(answered)} requests was answered, {level} at once")
            tokens = sum(one.tokens for one in good)
            results.append(
                {
                    "server": server.name,
                    "at_once": level,
                    "requests": len(answered),
                    "failed": len(answered) - len(good),
                    "requests_per_second": len(good) / seconds,
                    "tokens_per_second": tokens / seconds,
                    "first_seconds": statistics.median(one.first_seconds for one in good),
                    "first_seconds_95": sorted(one.first_seconds for one in good)[int(0.95 * (len(good) - 1))],
                    "tokens_each": tokens / len(good),
                    "start_seconds": start_seconds,
                }
            )
            print(f"    {level} at once: {tokens / seconds:,.0f} tokens/s", file=sys.stderr, flush=True)
    return results


@contextmanager
def running(server: Server) -> Iterator[tuple[str, float]]:
    """Its address, and the seconds until it answered."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = list(server.command)
    at = command.index("--") if "--" in command else len(command)  # what comes after is for vLLM
    command[at:at] = ["--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    begun = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            while not _answers(f"http://127.0.0.1:{port}"):
                if process.poll() is not None or time.monotonic() - begun > _START_SECONDS:
                    log.seek(0)
                    raise SystemExit(f"{server.name} did not start: {shlex.join(command)}\n{log.read()[-4000:]}")
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}", time.monotonic() - begun
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=40)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2.0).status_code == 200
    except httpx.HTTPError:
        return False


def ask_all(server: Server, url: str, *, at_once: int, number: int, arguments: argparse.Namespace) -> list[Answered]:
    """Requests from all client processes together."""
    model = server.model or httpx.get(f"{url}/v1/models", timeout=30.0).json()["data"][0]["id"]
    base = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "max_tokens": arguments.max_tokens,
        **server.extra,
    }
    processes = min(arguments.clients, at_once)
    shares = [(url, base, list(range(first, number, processes)), at_once // processes) for first in range(processes)]
    if processes == 1:
        return _client(shares[0])
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.map(_ready, range(processes), chunksize=1)  # imports take longer than a request
        return [one for part in pool.map(_client, shares, chunksize=1) for one in part]


def _ready(number: int) -> int:
    return number


def _client(share: tuple[str, dict[str, Any], list[int], int]) -> list[Answered]:
    return asyncio.run(_ask_share(*share))


async def _ask_share(url: str, base: dict[str, Any], numbers: list[int], at_once: int) -> list[Answered]:
    waiting, answered = iter(numbers), []
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=_REQUEST_SECONDS, limits=limits) as client:

        async def place() -> None:
            for number in waiting:
                answered.append(await _ask(client, {**base, "messages": _messages(number)}))

        await asyncio.gather(*(place() for _ in range(at_once)))
    return answered


def _messages(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Question {number}: is {number * 37 % 1009} even or odd? Say why."}]


async def _ask(client: httpx.AsyncClient, body: dict[str, Any]) -> Answered:
    begun, first, last = time.monotonic(), 0.0, b""
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            async for chunk in response.aiter_raw():
                if not first and b'"content":"' in chunk.replace(b'"content": "', b'"content":"'):
                    first = time.monotonic() - begun
                last = (last + chunk)[-4000:]
    except httpx.HTTPError:  # a server that breaks a stream off has failed at this request
        return Answered(first_seconds=0.0, seconds=time.monotonic() - begun, tokens=0, status=0)
    seconds = time.monotonic() - begun
    tokens = 0
    for line in reversed(last.split(b"\n")):
        if line.startswith(b"data: {") and b'"usage"' in line:
            usage = json.loads(line.removeprefix(b"data: ")).get("usage")
            tokens = usage["completion_tokens"] if usage else 0
            break
    return Answered(first_seconds=first or seconds, seconds=seconds, tokens=tokens, status=response.status_code)


def print_table(results: Sequence[dict[str, Any]], *, baseline: str) -> None:
    """One line per server and level."""
    speeds = {(row["server"], row["at_once"]): row["tokens_per_second"] for row in results}
    print(
        f"{'server':<20}{'at once':>8}{'requests':>9}{'failed':>7}{'requests/s':>11}{'tokens/s':>10}"
        f"{'first, ms':>10}{'95 %, ms':>9}{'tokens each':>12}{'of ' + baseline:>22}"
    )
    for row in results:
        other = speeds.get((baseline, row["at_once"]))
        share = f"{row['tokens_per_second'] / other:.1%}" if other else "-"
        print(
            f"{row['server']:<20}{row['at_once']:>8}{row['requests']:>9}{row['failed']:>7}"
            f"{row['requests_per_second']:>11.1f}{row['tokens_per_second']:>10,.0f}{1000 * row['first_seconds']:>10.0f}"
            f"{1000 * row['first_seconds_95']:>9.0f}{row['tokens_each']:>12.1f}{share:>22}"
        )


if __name__ == "__main__":
    main()
