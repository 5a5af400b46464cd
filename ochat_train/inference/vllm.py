"""The engine beside this process: vLLM in its own environment, started, watched and ended by us.

It listens on a Unix socket in a folder that only this user can enter, with a random key. Its process group ends with
this process, however that ends (`keeper.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

from data_pipeline.errors import UserError
from ochat_train.adapter.folder import is_adapter
from ochat_train.inference import keeper
from ochat_train.inference.completions import CompletionsClient
from ochat_train.inference.engine import AnswerSettings, EngineError, EngineUnavailable, Piece, cancelled
from ochat_train.inference.served_model import ServedModel
from ochat_train.inference.streams import Server
from ochat_train.inference.vllm_command import VllmPython, base_name, command_of, environment
from ochat_train.system.requirements import http_library

_START_SECONDS = 1800.0  # large models load from slow disks, and kernels are compiled
_STILL_SECONDS = 30.0  # between two lines that say that it still starts
_WATCH_SECONDS = 0.5
_HEALTH_SECONDS = 5.0
_MOST_FAILED_CHECKS = 3
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 1.0, 60.0  # before it is started again
_LONGEST_SOCKET_PATH = 100  # in bytes; Linux has room for 107, other systems for less
_LAST_LINES = 25  # of its log, where it does not start


class VllmEngine:
    """`Engine` of a vLLM server that we start. adapters: name -> folder, further models. flags: passed on."""

    name = "vllm"

    def __init__(
        self,
        served: ServedModel,
        vllm: VllmPython,
        *,
        adapters: Mapping[str, Path],
        flags: Sequence[str],
        say: Callable[[str], None],
    ) -> None:
        http_library()
        self._served, self._vllm, self._say = served, vllm, say
        self._adapters, self._flags = dict(adapters), tuple(flags)
        self._command(listen=())  # refuses now what vLLM would refuse after minutes
        self._folder: Path | None = None
        self._keeper: subprocess.Popen[bytes] | None = None
        self._client: CompletionsClient | None = None
        self._watch: asyncio.Task[None] | None = None
        self._is_ready = False

    @property
    def versions(self) -> Mapping[str, str]:
        """Packages that compute the answers."""
        return {"vllm": self._vllm.version}

    @property
    def context_tokens(self) -> int:
        """Of prompt and answer together."""
        return self._served.context_tokens

    @property
    def unsupported(self) -> Mapping[str, str]:
        """What it cannot do: adapters that it was not started with."""
        return {} if self._adapters else {"adapter": "the server was started without adapters"}

    async def start(self) -> None:
        """Start vLLM and wait until it answers. Raises UserError, with the end of its log, where it does not."""
        self._folder = Path(tempfile.mkdtemp(prefix="ochat-vllm-"))  # mode 0700
        self._say(f"engine: vLLM {self._vllm.version} starts; its log: {self._log}")
        try:
            await self._launch()
        except EngineError as error:
            text = f"{error}; the end of its log ({self._log}):\n{self._end_of_log()}"
            self._stop()
            raise UserError("vLLM", text) from None
        except BaseException:
            self._stop()
            raise
        self._say(f"engine: vLLM {self._vllm.version} is ready")
        self._watch = asyncio.create_task(self._keep_running())

    async def close(self) -> None:
        """End vLLM and all its processes. Its log is removed."""
        watch, self._watch = self._watch, None
        await cancelled(watch)
        await self._disconnect()
        await asyncio.to_thread(self._stop)
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def is_ready(self) -> bool:
        """Whether its process runs and answered when it was last looked at, some seconds ago."""
        return self._is_ready and self._keeper is not None and self._keeper.poll() is None

    def stream(self, prompt_ids: Sequence[int], settings: AnswerSettings) -> AsyncIterator[Piece]:
        """The pieces of one answer; see `Engine.stream`."""
        client = self._client
        if client is None or not self.is_ready():
            raise EngineUnavailable("vLLM is not running")
        name = settings.adapter or (self._served.name if is_adapter(self._served.folder) else base_name(self._served))
        if settings.adapter is not None and settings.adapter not in self._adapters:
            raise EngineError(f"adapter {settings.adapter!r}: the server was started without it")
        return client.stream(prompt_ids, settings, model=name)

    @property
    def _log(self) -> Path:
        assert self._folder is not None
        return self._folder / "vllm.log"

    def _command(self, listen: Sequence[str]) -> list[str]:
        return command_of(self._served, self._vllm, adapters=self._adapters, flags=self._flags, listen=listen)

    async def _launch(self) -> None:
        """Start the process and wait until it answers. Raises EngineError."""
        assert self._folder is not None
        server, listen = _address(self._folder)
        variables = {
            "VLLM_NO_USAGE_STATS": "1",
            **environment(self._vllm.path),
            "VLLM_API_KEY": str(server.key),  # in the environment, since everybody sees a command line
            "VLLM_USE_RUST_FRONTEND": "0",  # it takes other flags
        }
        with self._log.open("ab") as log:
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", keeper.__file__, str(self._folder), *self._command(listen)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=variables,
                cwd=self._folder,  # so that no file of this folder is imported as a module
                start_new_session=True,  # Ctrl-C is for us, and we end it
            )
        client = CompletionsClient(server, self._served.tokenizer, stop_ids=self._served.stop_ids)
        try:
            await self._wait_until_ready(client, self._keeper)
            ids = list(range(min(8, self.context_tokens - 1)))
            if await client.count_prompt(ids, model=base_name(self._served)) != len(ids) or not client.sends_ids:
                raise EngineError("this version does not take and send token ids")
        except BaseException:
            await client.close()
            raise
        self._client, self._is_ready = client, True

    async def _wait_until_ready(self, client: CompletionsClient, process: subprocess.Popen[bytes]) -> None:
        began = said = time.monotonic()
        while True:
            if (code := process.poll()) is not None:
                raise EngineError(f"it ended with exit code {code} while starting")
            with contextlib.suppress(EngineUnavailable):
                status, _ = await client.get("/health")
                if status == 200:
                    return
            now = time.monotonic()
            if now - began > _START_SECONDS:
                raise EngineError(f"it did not answer within {_START_SECONDS:g} s")
            if now - said > _STILL_SECONDS:
                said = now
                self._say(f"vLLM is still starting ({now - began:.0f} s)")
            await asyncio.sleep(_WATCH_SECONDS)

    async def _keep_running(self) -> None:
        """Start again what has ended or does not answer, after 1, 2, 4 .. 60 seconds."""
        wait, failed, checked = _FIRST_WAIT_SECONDS, 0, time.monotonic()
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            process, client = self._keeper, self._client
            ended = process is None or process.poll() is not None
            if not ended and client is not None and time.monotonic() - checked > _HEALTH_SECONDS:
                checked = time.monotonic()
                failed = 0 if await _is_healthy(client) else failed + 1
                self._is_ready = failed < _MOST_FAILED_CHECKS  # a busy server may answer late
                wait = _FIRST_WAIT_SECONDS if failed == 0 else wait
            if not ended and client is not None and failed < _MOST_FAILED_CHECKS:
                continue
            self._is_ready = False
            code = process.poll() if process is not None else None
            reason = "does not answer" if code is None else f"ended with exit code {code}"
            self._say(f"vLLM {reason}; starting it again in {wait:g} s; its log: {self._log}")
            await self._disconnect()
            await asyncio.to_thread(self._stop)
            await asyncio.sleep(wait)
            wait, failed = min(2 * wait, _LONGEST_WAIT_SECONDS), 0
            try:
                await self._launch()
                self._say("vLLM is ready again")
            except EngineError as error:
                self._say(f"vLLM did not start: {error}")

    async def _disconnect(self) -> None:
        client, self._client, self._is_ready = self._client, None, False
        if client is not None:
            await client.close()

    def _stop(self) -> None:
        """End the process group; blocks."""
        process, self._keeper = self._keeper, None
        if process is None:
            return
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended by itself
            process.stdin.write(keeper.KEEP)
            process.stdin.flush()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()  # which tells the keeper
        try:
            process.wait(keeper.GRACE_SECONDS + 5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _end_of_log(self) -> str:
        try:
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-_LAST_LINES:])


def _address(folder: Path) -> tuple[Server, list[str]]:
    """Where it listens, with a new key, and the flags that say so: a Unix socket in `folder`, or a port of this machine
    where the path is too long for one.
    """
    key, path = secrets.token_urlsafe(32), folder / "socket"
    if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
        path.unlink(missing_ok=True)
        return Server(url="http://vllm", key=key, socket=str(path)), ["--uds", str(path)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return Server(url=f"http://127.0.0.1:{port}", key=key), ["--host", "127.0.0.1", "--port", str(port)]


async def _is_healthy(client: CompletionsClient) -> bool:
    try:
        status, _ = await client.get("/health")
    except EngineUnavailable:
        return False
    return status == 200
