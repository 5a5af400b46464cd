"""Events on their way to clients that read at once, slowly, or no more."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from ochat_train.inference.engine import Piece
from ochat_train.serving.errors import ApiError
from ochat_train.serving.events import Events, Head
from ochat_train.serving.sending import StreamSender

HEAD = Head(id="chatcmpl-1", created=1, model="m", fingerprint="fp", condition=None)


class Client:
    """Takes what is sent; `reads` says whether at once."""

    def __init__(self) -> None:
        self.reads = asyncio.Event()
        self.got: list[dict[str, Any]] = []
        self.num_waiting = self.num_cancelled = 0

    async def send(self, message: Any) -> None:
        try:
            self.num_waiting += 1
            while not self.reads.is_set():  # as a server waits whose buffers are full
                await self.reads.wait()
        except (asyncio.CancelledError, GeneratorExit):
            self.num_cancelled += 1
            raise
        finally:
            self.num_waiting -= 1
        self.got.append(message)

    def texts(self) -> list[str]:
        """The text of each event."""
        data = b"".join(message.get("body", b"") for message in self.got).decode()
        choices = [json.loads(line[6:])["choices"][0] for line in data.splitlines() if line]
        return [choice["delta"].get("content", f"[{choice['finish_reason']}]") for choice in choices]


def sender(client: Client, *, num_answers: int = 1, joins: bool = True) -> StreamSender:
    events = Events(HEAD, logprobs=not joins, with_usage=False)
    return StreamSender(client.send, events, num_answers=num_answers, joins=joins)


def piece(text: str, finish: Any = None) -> Piece:
    return Piece(text=text, num_tokens=1, finish=finish)


async def until(found: Any) -> None:
    for _ in range(10_000):
        if found():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not come to that")


def test_a_client_that_reads_gets_each_piece_before_the_next_is_computed() -> None:
    async def task() -> None:
        client = Client()
        client.reads.set()
        sending = sender(client)
        assert not sending.has_begun
        for number, text in enumerate(["a", "b", "c"]):
            sending.put(0, piece(text, "stop" if text == "c" else None))
            assert len(client.got) == number + 2, "sent by whoever brought it, after the start of the response"
        await sending.sent()
        assert client.texts() == ["", "a", "b", "c", "[stop]"]

    asyncio.run(task())


@pytest.mark.parametrize("joins", [True, False])
def test_what_a_slow_client_has_not_read_is_kept_in_order(joins: bool) -> None:
    async def task() -> None:
        client = Client()
        sending = sender(client, num_answers=2, joins=joins)
        for text in "abc":
            sending.put(0, piece(text))
            sending.put(1, piece(text.upper()))
        sending.put(0, piece("d", "length"))
        sending.put(1, piece("", "stop"))  # nothing here has waited for the client
        waiting = asyncio.ensure_future(sending.sent())
        await until(lambda: client.num_waiting == 1)
        await asyncio.sleep(0)
        assert client.got == []
        assert not waiting.done()
        client.reads.set()
        await waiting
        first = ["", "", "a"]  # the roles of both, and the piece that was on its way
        joined, apart = ["ABC", "[stop]", "bcd", "[length]"], ["A", "B", "C", "[stop]", "b", "c", "d", "[length]"]
        assert client.texts() == first + (joined if joins else apart)

    asyncio.run(task())


def test_an_error_comes_after_the_pieces_before_it() -> None:
    async def task() -> None:
        client = Client()
        sending = sender(client)
        sending.put(0, piece("a"))
        sending.fail(ApiError(503, "gone", code="gone"))
        waiting = asyncio.ensure_future(sending.sent())
        await until(lambda: client.num_waiting == 1)
        assert not waiting.done()
        client.reads.set()
        with pytest.raises(ApiError, match="gone"):
            await waiting
        assert client.texts() == ["", "a"]
        sending.put(0, piece("b"))
        assert client.texts() == ["", "a"], "nothing follows an error"
        untouched = sender(client)
        untouched.fail(ApiError(503, "at once", code="gone"))
        with pytest.raises(ApiError, match="at once"):
            await untouched.sent()
        assert not untouched.has_begun, "so that the response can have the status of the error"

    asyncio.run(task())


@pytest.mark.parametrize("num_steps", [1, 9])
def test_a_client_that_leaves_ends_the_send_that_waits_for_it(num_steps: int) -> None:
    """Also before the task that waits has begun."""

    async def task() -> None:
        client = Client()
        sending = sender(client)
        waiting = asyncio.ensure_future(sending.sent())
        await asyncio.sleep(0)
        sending.put(0, piece("a"))
        assert client.num_waiting == 1
        for _ in range(num_steps - 1):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert (client.num_cancelled, client.num_waiting) == (1, 0)

    asyncio.run(task())


@pytest.mark.parametrize("slowly", [False, True])
def test_a_server_that_fails_to_send_ends_the_response_and_not_the_engine(slowly: bool) -> None:
    async def task() -> None:
        reads = asyncio.Event()

        async def broken(message: Any) -> None:
            if slowly:
                await reads.wait()
            raise OSError("the socket is gone")

        sending = StreamSender(broken, Events(HEAD, logprobs=False, with_usage=False), num_answers=1, joins=True)
        sending.put(0, piece("a"))  # raises nothing here
        waiting = asyncio.ensure_future(sending.sent())
        await asyncio.sleep(0)
        reads.set()
        with pytest.raises(OSError, match="the socket is gone"):
            await waiting

    asyncio.run(task())
