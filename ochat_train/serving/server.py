"""The process of `ochat serve`: sockets, signals, and a server that gives up on slow connections."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import uvicorn

from data_pipeline.errors import UserError
from ochat_train.inference.engine import Engine
from ochat_train.serving.app import App
from ochat_train.serving.connections import make_protocol
from ochat_train.serving.settings import Limits
from ochat_train.system.messages import print_message

_BACKLOG = 1024
_STATS_SECONDS = 10.0
# Longer than clients and proxies keep a connection that they do not use (60 s or less, usually): one that the server
# closes in the moment in which they use it again is an error there.
_IDLE_SECONDS = 75


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Sockets that are bound and do not listen yet. url: where the server will be."""

    sockets: Sequence[socket.socket]
    url: str

    def listen(self) -> None:
        """Let clients connect; the server answers them once it runs."""
        for one in self.sockets:
            one.listen(_BACKLOG)

    def close(self) -> None:
        """Give the addresses back. Does nothing where the server has ended and closed them."""
        for one in self.sockets:
            one.close()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host's addresses. Raises UserError for a name without one."""
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for _, address in _addresses(host))


def bind(host: str, port: int) -> Bound:
    """Sockets for all addresses of a host. port: 0 for a free one. Raises UserError where it cannot be used."""
    sockets: list[socket.socket] = []
    try:
        for family, address in _addresses(host):
            one = _bound(family, address, port, is_optional=bool(sockets))
            if one is not None:
                sockets.append(one)
                port = one.getsockname()[1]
    except OSError as error:
        for one in sockets:
            one.close()
        what = f"--port {port}"
        raise UserError(what, f"{host}:{port} cannot be used: {error.strerror}", "name another one") from None
    shown = f"[{host}]" if ":" in host else host
    return Bound(sockets=sockets, url=f"http://{shown}:{port}")


def _bound(family: int, address: str, port: int, *, is_optional: bool) -> socket.socket | None:
    """is_optional: whether the address may be missing, as ::1 is on machines without IPv6."""
    # With the protocol named, asyncio switches Nagle's algorithm off; otherwise each response takes 40 ms longer.
    one = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind((address, port))
    except OSError as error:
        one.close()
        if is_optional and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return None
        raise
    return one


def _addresses(host: str) -> list[tuple[int, str]]:
    """(family, address) of a host, IPv4 first."""
    try:
        rows = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise UserError(f"--host {host}", "has no address", "name an address of this machine") from None
    return sorted({(int(row[0]), str(row[4][0])) for row in rows})


async def run_server(
    app: App,
    engine: Engine,
    bound: Bound,
    limits: Limits,
    *,
    prints_stats: bool,
    on_start: Callable[[Callable[[], None]], None] = lambda end: None,
) -> None:
    """Answer requests until a signal; then finish what is running, close the engine, and return.

    The engine has been started. on_start: gets a function that does what a signal does, for servers in a thread, which
    gets none.
    """
    _allow_many_connections()
    asyncio.get_running_loop().set_exception_handler(Complaints())
    server = _Server(app, limits)
    stats = asyncio.ensure_future(_print_stats(app)) if prints_stats else None
    try:
        on_start(server.end)
        await server.serve(sockets=list(bound.sockets))
    finally:
        if stats is not None:
            stats.cancel()
        await engine.close()


class _Server(uvicorn.Server):
    """The first signal refuses new requests and lets the running ones finish; the second one ends at once."""

    def __init__(self, app: App, limits: Limits) -> None:
        config = uvicorn.Config(
            app,
            http=make_protocol(limits.header_seconds),
            ws="none",
            lifespan="off",
            access_log=False,
            log_level="error",  # of warnings there is one for each byte stream that is not HTTP, which anybody can send
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_IDLE_SECONDS,
            timeout_graceful_shutdown=1,
        )
        super().__init__(config)
        # uvicorn writes a traceback for each request that a stop ends
        logging.getLogger("uvicorn.error").addFilter(_is_no_stop)
        self._app, self._limits = app, limits
        self._drains_until: float | None = None
        self._has_said_so = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by a signal. uvicorn's own would raise the signal again at the end, which would end `ochat` by it."""
        self.end()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's, and the end of the terminal (SIGHUP), unless it is meant to be outlived (`nohup`)."""
        before = signal.getsignal(signal.SIGHUP)
        if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
            before = None
        else:
            signal.signal(signal.SIGHUP, self._hang_up)
        try:
            with super().capture_signals():
                yield
        finally:
            if before is not None:
                signal.signal(signal.SIGHUP, before)

    def _hang_up(self, sig: int, frame: FrameType | None) -> None:
        if self._drains_until is None:  # a terminal that ends may send it twice
            self.end()

    def end(self) -> None:
        """Drain; at the second call, end."""
        if self._drains_until is not None:
            self.should_exit = self.force_exit = True
            return
        self._app.traffic.is_draining = True
        self._drains_until = time.monotonic() + self._limits.drain_seconds

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; True ends the server."""
        num_left = self._app.traffic.num_requests
        if self._drains_until is not None and num_left and not (self._has_said_so or self.should_exit):
            self._has_said_so = True
            seconds = self._limits.drain_seconds
            print_message(f"ending: {seconds:g} s to finish {_requests(num_left)}; another signal ends at once")
        if self._drains_until is not None and (num_left == 0 or time.monotonic() >= self._drains_until):
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the requests that are left, so that the engine is free when it is closed."""
        if self.force_exit or self._app.traffic.num_requests:
            tasks = list(self.server_state.tasks)
            if tasks:
                print_message(f"ended {_requests(len(tasks))} before the answer was complete")
            for task in tasks:
                task.cancel()
        await super().shutdown(sockets=sockets)


def _requests(number: int) -> str:
    return f"{number} request{'' if number == 1 else 's'}"


def _is_no_stop(record: logging.LogRecord) -> bool:
    """A filter of a log: whether a record is about more than the end of a request by a stop."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def _allow_many_connections() -> None:
    """As many open files as this process may have: each connection is one, and the usual limit is 1,024."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(OSError, ValueError):  # "unlimited" is refused by some systems
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Complaints:
    """What asyncio says about itself. Where no file is left for a connection, it says so a thousand times a second."""

    def __init__(self) -> None:
        self._said: float | None = None

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exception handler of a loop: one line in ten seconds for those, and asyncio's own for the others."""
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in (
            errno.EMFILE,
            errno.ENFILE,
            errno.ENOBUFS,
            errno.ENOMEM,
        ):
            loop.default_exception_handler(context)
        elif self._said is None or time.monotonic() - self._said >= _STATS_SECONDS:
            self._said = time.monotonic()
            print_message(f"warning: a connection was not accepted: {error.strerror}; raise the limit (ulimit -n)")


async def _print_stats(app: App) -> None:
    """A line now and then while there is work."""
    while True:
        await asyncio.sleep(_STATS_SECONDS)
        if app.admission.num_running or app.admission.num_waiting:
            print_message(f"running {app.admission.num_running}, waiting {app.admission.num_waiting}")
