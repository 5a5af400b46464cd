"""The chat in a pipe and on a real pseudo-terminal, with a server that a test writes and with an engine in process."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import pty
import select
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from data_pipeline.errors import UserError
from ochat_train.chat.answerer import Answerer, ChatError, ChatModel, Question, SentPrompt
from ochat_train.chat.by_url import ServerAnswerer
from ochat_train.chat.run import ChatOptions, run_chat
from ochat_train.inference.engine import Piece
from tests.support.chat_stand_in import StandIn, served
from tests.support.processes import PYTHONPATH, ROOT
from tests.support.waiting import wait_for

SECONDS = 60.0  # more than anything here takes


@pytest.fixture
def server() -> Iterator[StandIn]:
    with served(StandIn()) as stand_in:
        yield stand_in


class Scripted:
    """Answers what a test says. closed: answers that were ended early or came to their end."""

    def __init__(self, answer: Callable[[Question], list[Piece]]) -> None:
        self.answer, self.closed, self.is_closed = answer, 0, False

    async def start(self) -> ChatModel:
        return ChatModel(name="small", conditions=("A", "B"), default="A")

    async def close(self) -> None:
        self.is_closed = True

    async def pieces(self, question: Question) -> AsyncIterator[Piece]:
        try:
            for piece in self.answer(question):
                await asyncio.sleep(0)
                yield piece
        finally:
            self.closed += 1

    async def prompt(self, question: Question) -> SentPrompt:
        return SentPrompt(text=f"<s>{question.messages[-1]['content']}", ids=[1, 2, 3])


def piped(answerer: Answerer, text: str, monkeypatch: pytest.MonkeyPatch, options: ChatOptions | None = None) -> None:
    """A chat whose lines come from another program."""
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    run_chat(lambda: answerer, options or ChatOptions())


def said(question: Question) -> list[Piece]:
    last = question.messages[-1]["content"]
    text = f"{question.condition}/{len(question.messages)}/{question.temperature:g}/{last}"
    return [Piece(text=text[:3], num_tokens=1), Piece(text=text[3:], num_tokens=1, finish="stop")]


def test_lines_of_a_pipe_are_answered(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answerer = Scripted(said)
    lines = ["one", "", "/condition B", "two", "/compare A | B", "/temperature 0.5", "three", "/undo", "/retry", "four"]
    lines.remove("/retry")
    piped(answerer, "\n".join(lines), monkeypatch)
    assert capsys.readouterr().out.splitlines() == [
        "None/1/0/one",
        "condition: B",
        "B/3/0/two",
        "comparing: A | B",
        "temperature: 0.5",
        "[A]",
        "A/5/0.5/three",
        "[B]",
        "B/5/0.5/three",
        "taken back: 'three'",
        "[A]",
        "A/5/0.5/four",
        "[B]",
        "B/5/0.5/four",
    ]
    assert (answerer.closed, answerer.is_closed) == (6, True)


def test_settings_change_what_is_asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[Question] = []

    def answer(question: Question) -> list[Piece]:
        asked.append(question)
        return [Piece(text="x", num_tokens=1, finish="length")]

    lines = "/system Be brief.\n/max-tokens 3\n/seed 7\n/prompt\n"
    with pytest.raises(UserError, match="nothing was sent yet"):
        piped(Scripted(answer), lines, monkeypatch)
    piped(
        Scripted(answer),
        lines.replace("/prompt", "hi\n/retry\n/prompt\n/system off\n/seed off\n/reset\nhi"),
        monkeypatch,
    )
    first, second, third = asked
    assert first == second, "the same question again, without its first answer"
    assert (first.max_new_tokens, first.seed, len(first.messages)) == (3, 7, 2)
    assert first.messages[0] == {"role": "system", "content": "Be brief."}
    assert (third.seed, len(third.messages)) == (None, 1)
    printed = capsys.readouterr()
    assert "[A: 3 tokens]\n<s>hi\n1 2 3\n" in printed.out
    assert "cut off: no more tokens allowed" in printed.err


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("/condition C", "unknown condition 'C'\ntrained: 'A', 'B'"),
        ("/compare A | C", "unknown condition 'C'"),
        ("/compare A", "two or more different"),
        ("/compare A | A", "two or more different"),
        ("/temperature hot", "'hot' is not a temperature"),
        ("/temperature nan", "'nan' is not a temperature"),
        ("/max-tokens 0", "is not a whole number of at least 1"),
        ("/seed -1", "is not a whole number of at least 0"),
        ("/undo", "no message to take back"),
        ("/retry", "no message to answer again"),
        ("/save chat.jsonl", "nothing to save"),
    ],
)
def test_in_a_pipe_a_problem_ends_the_chat(line: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answerer = Scripted(said)
    with pytest.raises(UserError) as error:
        piped(answerer, line, monkeypatch)
    assert problem in str(error.value)
    assert answerer.is_closed


def test_conditions_given_at_the_start_are_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="--condition: unknown condition 'C'"):
        piped(Scripted(said), "one", monkeypatch, ChatOptions(conditions=["C"]))
    piped(Scripted(said), "one", monkeypatch, ChatOptions(conditions=["C"], any_condition=True))
    assert capsys.readouterr().out == "C/1/0/one\n"


def test_a_failed_answer_is_said_and_a_fault_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(question: Question) -> list[Piece]:
        raise ChatError("the engine failed")

    def breaks(question: Question) -> list[Piece]:
        raise ZeroDivisionError

    with pytest.raises(UserError, match="the engine failed"):
        piped(Scripted(fails), "one\n/compare\ntwo", monkeypatch)
    with pytest.raises(ZeroDivisionError):
        piped(Scripted(breaks), "one", monkeypatch)


def test_bytes_that_are_no_text_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"one\n\xff\n"), encoding="utf-8"))
    with pytest.raises(UserError, match="standard input: is not utf-8"):
        run_chat(lambda: Scripted(said), ChatOptions())


def test_what_an_answer_holds_cannot_command_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = Piece(text="\x1b[2J\x1b]0;title\x07 \u202e \r ok é 👍\n", num_tokens=1, finish="stop")
    piped(Scripted(lambda question: [answer]), "one", monkeypatch)
    assert capsys.readouterr().out == "\\u001b[2J\\u001b]0;title\\u0007 \\u202e \\r ok é 👍\n\n"


# Servers


def test_a_server_is_asked_as_the_page_asks_it(
    server: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.keys = ("sk-a",)
    options = ChatOptions(conditions=["GPT3"], temperature=0.3, max_new_tokens=5, seed=2)
    piped(ServerAnswerer(f"{server.url}/v1/", model=None, key="sk-a"), "one\n/prompt", monkeypatch, options)
    assert server.bodies == [
        {
            "model": "small",
            "condition": "GPT3",
            "messages": [{"role": "user", "content": "one"}],
            "temperature": 0.3,
            "max_tokens": 5,
            "seed": 2,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]
    assert capsys.readouterr().out.startswith("GPT3: one after 0\n[GPT3: 10 tokens]\nuser: one\n")


def test_what_a_server_refuses_is_said(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    def problem(lines: str = "one", *, key: str = "sk-a", model: str | None = None, url: str = server.url) -> str:
        with pytest.raises(UserError) as error:
            piped(ServerAnswerer(url, model=model, key=key), lines, monkeypatch)
        return str(error.value)

    server.keys = ("sk-a",)
    assert "wrong key; put a key into the variable OCHAT_API_KEY" in problem(key="sk-b")
    assert "a key is needed" in problem(key="")
    assert "the server does not have it; it has 'small'" in problem(model="large")
    assert "cannot be reached" in problem(url="http://127.0.0.1:9")
    server.refused = (503, "the engine is not running")
    assert "the engine is not running; try again in 7 s" in problem()
    server.refused, server.breaks_off = None, True
    assert "the answer broke off" in problem()


@pytest.mark.parametrize("url", ["", "ftp://host", "http://", "http://host:99999", "http://[::1"])
def test_what_is_not_an_address_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="is not the address of a server"):
        ServerAnswerer(url, model=None, key="")
    with pytest.raises(UserError, match="set its key in OCHAT_API_KEY"):
        ServerAnswerer("http://me:secret@host", model=None, key="")


# The terminal

PROGRAM = """
import sys
from ochat_train.chat.by_url import ServerAnswerer
from ochat_train.chat.run import ChatOptions, run_chat
run_chat(lambda: ServerAnswerer(sys.argv[1], model=None, key=""), ChatOptions())
"""


class Terminal:
    """A chat on a pseudo-terminal, as a person sees it."""

    def __init__(self, url: str) -> None:
        self.screen = ""
        self._master, slave = pty.openpty()
        environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "TERM": "xterm"}
        command = [sys.executable, "-c", PROGRAM, url]
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, env=environment, preexec_fn=_own_terminal
        )
        os.close(slave)

    def types(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, text: str) -> str:
        """Read until a text appears; what came before it and the text itself are taken off the screen."""
        end = time.monotonic() + SECONDS
        while text not in self.screen:
            assert time.monotonic() < end, f"{text!r} is not in {self.screen!r}"
            self._read()
        before, _, self.screen = self.screen.partition(text)
        return before

    def interrupts_until(self, text: str) -> None:
        """Ctrl-C while a line is typed, until a text appears. Like a person, press again: Python's readline does not
        see a signal that arrives between a key and its wait for the next one.
        """
        end = time.monotonic() + SECONDS
        while text not in self.screen:
            assert time.monotonic() < end, f"{text!r} is not in {self.screen!r}"
            self.types("\x03")
            pause = time.monotonic() + 10
            while text not in self.screen and time.monotonic() < pause:
                self._read()
        self.until(text)

    def _read(self) -> None:
        if select.select([self._master], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):  # the program has ended
                self.screen += os.read(self._master, 65536).decode()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


def _own_terminal() -> None:
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C is a signal


@pytest.fixture
def terminal(server: StandIn) -> Iterator[Terminal]:
    opened = Terminal(server.url)
    yield opened
    opened.close()


def test_a_person_at_a_terminal(server: StandIn, terminal: Terminal) -> None:
    """Answers appear while they are written, Ctrl-C stops one, arrows bring back lines, Ctrl-D leaves."""
    server.gate = threading.Event()
    terminal.until("/help shows the commands")
    terminal.until("small> ")
    terminal.types("one\n")
    terminal.until("GPT4 Correct: one")  # the answer has not ended
    assert server.num_running == 1
    terminal.types("\x03")
    terminal.until("(stopped)")
    wait_for(lambda: server.num_running == 0)  # the server is told
    server.gate.set()
    terminal.until("> ")
    terminal.types("\x1b[A\n")  # the arrow upwards: the last line again
    terminal.until("GPT4 Correct: one after 2")
    terminal.until("4 tokens, 0.")
    terminal.until("> ")
    terminal.types("half a line")
    terminal.until("half a line")
    terminal.interrupts_until("Ctrl-D or /quit leaves")
    terminal.types("/nonsense\n")
    terminal.until("unknown command '/nonsense'")
    terminal.types("/condition GPT5\n")
    terminal.until("trained: 'GPT4 Correct', 'GPT3'")
    terminal.types("/compare\n")
    terminal.until("GPT4 Correct | GPT3> ")
    server.script = lambda body: ["\x1b[2Jcleared"]
    terminal.types("first\\\nsecond\n")
    terminal.until("[GPT4 Correct]")
    terminal.until("\\u001b[2Jcleared")
    terminal.until("[GPT3]")
    terminal.until("\\u001b[2Jcleared")
    assert server.bodies[-1]["messages"][-1]["content"] == "first\nsecond"
    terminal.until("> ")
    terminal.types("\x04")
    wait_for(lambda: terminal.process.poll() is not None)
    assert terminal.process.returncode == 0
