"""Streamed answers of another server, as bytes: by aiohttp where it is installed, by httpx otherwise.

Every token of every answer comes through here. aiohttp reads HTTP in compiled code; httpx reads it in Python, which
takes several times as long as all else that is done for a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ochat_train.system.addresses import is_this_machine
from ochat_train.system.pretrained import reason_of
from ochat_train.system.requirements import installed_version

if TYPE_CHECKING:
    import aiohttp
    import httpx

CONNECT_SECONDS = 10.0
READ_SECONDS = 600.0  # between two pieces of an answer; the first may wait for others


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where a server is. url: without `/v1`. socket: path of its Unix socket, None for TCP. key: None for none."""

    url: str
    key: str | None = None
    socket: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine; a proxy of the environment is never asked for it."""
        return self.socket is not None or is_this_machine(self.url)

    @property
    def headers(self) -> dict[str, str]:
        """Of every request."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}


class BrokenStream(Exception):
    """There is no response, or no more of it. is_connection: whether the connection was not made, or closed without a
    byte of the response, so that asking again may help.
    """

    def __init__(self, error: Exception, *, is_connection: bool = False) -> None:
        super().__init__(f"{type(error).__name__}: {reason_of(error)}")
        self.is_connection = is_connection


class Response(Protocol):
    """A response whose body has not been read."""

    @property
    def status(self) -> int:
        """Of HTTP."""
        ...

    async def read(self) -> bytes:
        """What has arrived of its body since the last time; waits for some; empty at its end. Raises BrokenStream."""
        ...

    async def close(self) -> None:
        """Close the connection, unless all was read."""
        ...


class Streams(Protocol):
    """Asks one server. Made inside an event loop."""

    async def post(self, path: str, body: Mapping[str, Any]) -> Response:
        """Send JSON. Raises BrokenStream where no response begins."""
        ...

    async def close(self) -> None:
        """End all connections."""
        ...


def make_streams(server: Server, client: httpx.AsyncClient) -> Streams:
    """client: what asks without aiohttp; it stays its maker's to close."""
    return _AiohttpStreams(server) if installed_version("aiohttp") else _HttpxStreams(client)


class _HttpxStreams:
    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def post(self, path: str, body: Mapping[str, Any]) -> Response:
        import httpx

        try:
            request = self._client.build_request("POST", path, json=body)
            return _HttpxResponse(await self._client.send(request, stream=True))
        except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError) as error:
            raise BrokenStream(error, is_connection=True) from None
        except httpx.HTTPError as error:
            raise BrokenStream(error) from None

    async def close(self) -> None:
        pass


class _HttpxResponse:
    def __init__(self, response: httpx.Response) -> None:
        self._response, self.status, self._chunks = response, response.status_code, response.aiter_bytes()

    async def read(self) -> bytes:
        import httpx

        try:
            async for chunk in self._chunks:
                if chunk:
                    return chunk
        except httpx.HTTPError as error:
            raise BrokenStream(error) from None
        return b""

    async def close(self) -> None:
        await self._response.aclose()


class _AiohttpStreams:
    def __init__(self, server: Server) -> None:
        import aiohttp

        # without limits: how many answers are computed at once is decided before them
        connector = aiohttp.UnixConnector(server.socket, limit=0) if server.socket else aiohttp.TCPConnector(limit=0)
        self._url = server.url
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=server.headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=not server.is_local,
        )

    async def post(self, path: str, body: Mapping[str, Any]) -> Response:
        import aiohttp

        try:
            response = await self._session.post(self._url + path, json=body, allow_redirects=False)
            return _AiohttpResponse(response, aiohttp.ClientError)
        except (aiohttp.ServerTimeoutError, TimeoutError) as error:
            raise BrokenStream(error, is_connection=isinstance(error, aiohttp.ConnectionTimeoutError)) from None
        except aiohttp.ClientError as error:
            raise BrokenStream(error, is_connection=isinstance(error, aiohttp.ClientConnectionError)) from None

    async def close(self) -> None:
        await self._session.close()


class _AiohttpResponse:
    """broken: the kind of error that the library raises; importing it for every read would cost more than the read."""

    def __init__(self, response: aiohttp.ClientResponse, broken: type[Exception]) -> None:
        self._response, self.status, self._body = response, response.status, response.content
        self._broken = (broken, TimeoutError, OSError)

    async def read(self) -> bytes:
        try:
            data: bytes = await self._body.readany()
        except self._broken as error:
            raise BrokenStream(error) from None
        return data

    async def close(self) -> None:
        self._response.close()
