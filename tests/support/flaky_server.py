"""A chat server with OpenAI's API whose replies a test writes one by one, failures among them."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Mapping[str, str], bytes]


def said(text: object, *, finish: str | None = "stop", tokens: int | None = 1) -> Reply:
    """A chat completion."""
    usage = None if tokens is None else {"completion_tokens": tokens}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return 200, {}, json.dumps({"choices": [choice], "usage": usage}).encode()


def failed(status: int, message: str = "no", code: str | None = None, **headers: str) -> Reply:
    """An error in OpenAI's shape."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, names, json.dumps({"error": {"message": message, "code": code}}).encode()


@dataclass(kw_only=True)
class FlakyServer:
    """models: rows of /v1/models. reply: to each body; None breaks the connection off. bodies, keys: what came."""

    models: Sequence[Mapping[str, Any]] = ({"id": "m", "owned_by": "somebody"},)
    reply: Callable[[Mapping[str, Any], int], Reply | None] = lambda body, number: said("x")
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    url: str = ""


@contextlib.contextmanager
def running(server: FlakyServer) -> Iterator[FlakyServer]:
    """The server on a free port, until the end of the block."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send((200, {}, json.dumps({"data": list(server.models)}).encode()))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                server.bodies.append(body)
                server.keys.add(self.headers.get("authorization"))
                number = sum(each["messages"] == body["messages"] for each in server.bodies)
            self._send(server.reply(body, number))

        def _send(self, reply: Reply | None) -> None:
            if reply is None:
                self.close_connection = True
                return
            status, headers, data = reply
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing is printed."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        server.url = f"http://127.0.0.1:{http.server_address[1]}"
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
