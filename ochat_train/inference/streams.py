"""Streamed answers of another server, as bytes: by aiohttp where it is installed, by httpx otherwise.

Every token of every answer comes through here. aiohttp reads HTTP in compiled code; httpx reads it in Python, which
takes several times as long as all else that is done for a token.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from ochat_train.system.pretrained import reason_of
from ochat_train.system.requirements import installed_version

if TYPE_CHECKING:
    import aiohttp
    import httpx

_OF_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
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
        return self.socket is not None or urlsplit(self.url).hostname in _OF_THIS_MACHINE

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

    def chunks(self) -> AsyncIterator[bytes]:
        """Its body, as it arrives. Raises BrokenStream."""
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
        self._response, self.status = response, response.status_code

    async def chunks(self) -> AsyncIterator[bytes]:
        import httpx

        try:
            async for chunk in self._response.aiter_bytes():
                yield chunk
        except httpx.HTTPError as error:
            raise BrokenStream(error) from None

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
            return _AiohttpResponse(await self._session.post(self._url + path, json=body, allow_redirects=False))
        except (aiohttp.ServerTimeoutError, TimeoutError) as error:
            raise BrokenStream(error, is_connection=isinstance(error, aiohttp.ConnectionTimeoutError)) from None
        except aiohttp.ClientError as error:
            raise BrokenStream(error, is_connection=isinstance(error, aiohttp.ClientConnectionError)) from None

    async def close(self) -> None:
        await self._session.close()


class _AiohttpResponse:
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response, self.status = response, response.status

    async def chunks(self) -> AsyncIterator[bytes]:
        import aiohttp

        read = self._response.content.readany  # all that has arrived
        try:
            while chunk := await read():
                yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise BrokenStream(error) from None

    async def close(self) -> None:
        self._response.close()
