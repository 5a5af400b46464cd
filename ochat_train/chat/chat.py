"""The chat: reads lines, asks, shows answers while they are written, and obeys commands."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_pipeline.text_rules import did_you_mean, quoted
from ochat_train.chat.answerer import Answerer, ChatError, ChatModel, Question
from ochat_train.chat.commands import Call, help_text, read_line
from ochat_train.chat.loop_thread import LoopThread
from ochat_train.chat.saved import save
from ochat_train.chat.screen import Screen
from ochat_train.chat.session import Session, Turn
from ochat_train.inference.engine import Piece, ended
from ochat_train.system.exits import StoppedBySignalError

_NONE = "no condition"
_HIGHEST_TEMPERATURE = 2.0  # of OpenAI's API
_OFF = "off"
_FEWEST_TOKENS_OF_A_RATE = 10

Stream = asyncio.Queue[Piece | Exception | None]


@dataclass(kw_only=True)
class _Shown:
    """An answer, as far as it was shown. problem: why it ended, None if the model ended it."""

    text: str = ""
    num_tokens: int = 0
    finish: str | None = None
    problem: ChatError | None = None
    is_over: bool = False
    began: float = field(default_factory=time.monotonic)
    first: float = 0.0

    def add(self, piece: Piece | Exception | None) -> None:
        if isinstance(piece, ChatError) or piece is None:
            self.problem, self.is_over = piece, True
            return
        if isinstance(piece, Exception):
            raise piece  # a fault of ours
        self.first = self.first or time.monotonic()
        self.text += piece.text
        self.num_tokens += piece.num_tokens
        self.finish = piece.finish or self.finish

    def turn(self, number: int, user: str, condition: str | None) -> Turn | None:
        """What joins the history; nothing for an answer that never began."""
        is_whole = self.is_over and self.problem is None and self.finish != "length"
        if not self.text and not is_whole:
            return None
        return Turn(number=number, user=user, answer=self.text, condition=condition, is_whole=is_whole)


class Chat:
    """A chat with one model. any_condition: whether conditions that were not trained are allowed."""

    def __init__(
        self,
        answerer: Answerer,
        facts: ChatModel,
        session: Session,
        *,
        screen: Screen,
        loop: LoopThread,
        any_condition: bool,
    ) -> None:
        self._answerer, self._facts, self._screen, self._loop = answerer, facts, screen, loop
        self._any_condition, self.session = any_condition, session
        self._asked: list[Question] = []  # the last questions
        self._last: tuple[int, str] | None = None  # number and text of the last message
        self._commands: dict[str, Callable[[str], None]] = {
            "condition": self._condition,
            "compare": self._compare,
            "system": self._system,
            "temperature": self._temperature,
            "max-tokens": self._max_tokens,
            "seed": self._seed,
            "retry": lambda _: self._retry(),
            "undo": lambda _: self._undo(),
            "reset": lambda _: self._reset(),
            "prompt": lambda _: self._prompt(),
            "save": self._save,
            "help": lambda _: self._screen.say(help_text()),
        }

    def run(self, lines: Iterator[str]) -> None:
        """Read lines until they end, or until `/quit`."""
        for line in lines:
            try:
                read = read_line(line)
                if isinstance(read, Call):
                    if read.name == "quit":
                        return
                    self._commands[read.name](read.argument)
                elif read is not None:
                    self._ask(read)
            except ChatError as error:
                self._screen.problem(str(error))

    def prompts(self) -> Iterator[str]:
        """What is shown before each line that is typed: the conditions that answer it."""
        while True:
            yield " | ".join(self._label(lane.condition) for lane in self.session.lanes)

    def check_condition(self, condition: str) -> str:
        """The condition. Raises ChatError for one that was not trained."""
        known = self._facts.conditions
        if self._any_condition or not known or condition in known:
            return condition
        hint = did_you_mean(condition, known)
        raise ChatError(
            f"unknown condition {quoted(condition)}{'; ' + hint if hint else ''}\n"
            f"trained: {', '.join(map(quoted, known))}"
        )

    def _label(self, condition: str | None) -> str:
        found = self._facts.default if condition is None else condition
        return self._facts.name if found is None else found or _NONE

    # Questions

    def _ask(self, message: str) -> None:
        session, number = self.session, self.session.next_number
        self._last = (number, message)
        self._asked = [
            Question(
                messages=lane.messages(session.system, message),
                condition=lane.condition,
                temperature=session.temperature,
                max_new_tokens=session.max_new_tokens,
                seed=session.seed,
            )
            for lane in session.lanes
        ]
        shown = self._loop.run(self._answers(self._asked))
        pairs = zip(shown, session.lanes, strict=True)
        self.session = session.answered([answer.turn(number, message, lane.condition) for answer, lane in pairs])
        if not self._screen.is_terminal and not all(answer.is_over for answer in shown):
            raise StoppedBySignalError("stopped")

    async def _answers(self, questions: Sequence[Question]) -> list[_Shown]:
        """Ask all questions at once, and show the answers one after another. Ctrl-C stops all of them."""
        streams: list[Stream] = [asyncio.Queue() for _ in questions]
        shown = [_Shown() for _ in questions]
        tasks = [asyncio.create_task(self._collect(*pair)) for pair in zip(questions, streams, strict=True)]
        is_stopped = False
        try:
            for question, answer, stream in zip(questions, shown, streams, strict=True):
                if len(questions) > 1:
                    self._screen.heading(self._label(question.condition))
                try:
                    while not answer.is_over and not is_stopped:
                        self._take(answer, await stream.get())
                except asyncio.CancelledError:
                    is_stopped = True
                    await ended(tasks)
                while not answer.is_over and not stream.empty():
                    self._take(answer, stream.get_nowait())
                self._end_answer(answer)
        finally:
            await ended(tasks)
        return shown

    async def _collect(self, question: Question, stream: Stream) -> None:
        try:
            async with aclosing(self._answerer.pieces(question)) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    stream.put_nowait(piece)
        except Exception as error:  # whoever shows the answer sorts it out
            stream.put_nowait(error)
        else:
            stream.put_nowait(None)

    def _take(self, answer: _Shown, piece: Piece | Exception | None) -> None:
        answer.add(piece)
        if isinstance(piece, Piece):
            self._screen.piece(piece.text)

    def _end_answer(self, answer: _Shown) -> None:
        if answer.text or answer.problem is None:
            self._screen.end_answer(answer.text)
        if answer.problem is not None:
            self._screen.problem(str(answer.problem))
        elif not answer.is_over:
            self._screen.note("(stopped)")
        elif answer.finish == "length":
            self._screen.note("(cut off: no more tokens allowed)")
        elif not answer.text:
            self._screen.note("(an empty answer)")
        if self._screen.is_terminal and answer.num_tokens:
            self._screen.note(_speed(answer))

    # Commands

    def _condition(self, argument: str) -> None:
        if argument:
            self.session = self.session.under([self.check_condition(_unquoted(argument))])
        known = ", ".join(map(quoted, self._facts.conditions)) or "the model does not say which"
        self._screen.say(f"condition: {' | '.join(self._label(lane.condition) for lane in self.session.lanes)}")
        if not argument:
            self._screen.say(f"trained: {known}")

    def _compare(self, argument: str) -> None:
        conditions = split_conditions(argument) if argument else list(self._facts.conditions[:2])
        if len(set(conditions)) < 2 or len(set(conditions)) != len(conditions):
            raise ChatError("name two or more different conditions: /compare A | B")
        self.session = self.session.under([self.check_condition(condition) for condition in conditions])
        self._screen.say(f"comparing: {' | '.join(map(self._label, conditions))}")

    def _system(self, argument: str) -> None:
        if argument:
            self.session = replace(self.session, system="" if argument == _OFF else argument)
        self._screen.say(f"system message: {quoted(self.session.system) if self.session.system else 'none'}")

    def _temperature(self, argument: str) -> None:
        if argument:
            self.session = replace(self.session, temperature=read_temperature(argument))
        self._screen.say(f"temperature: {self.session.temperature:g}")

    def _max_tokens(self, argument: str) -> None:
        if argument:
            self.session = replace(self.session, max_new_tokens=_number(argument, smallest=1))
        self._screen.say(f"longest answer: {self.session.max_new_tokens or 'as many tokens as fit'}")

    def _seed(self, argument: str) -> None:
        if argument:
            self.session = replace(self.session, seed=_number(argument, smallest=0))
        self._screen.say(f"seed: {'random' if self.session.seed is None else self.session.seed}")

    def _retry(self) -> None:
        if self._last is None:
            raise ChatError("there is no message to answer again")
        number, message = self._last
        if self.session.next_number > number:  # it has an answer
            self.session, _ = self.session.undone()
        self._ask(message)

    def _undo(self) -> None:
        self.session, message = self.session.undone()
        if message is None:
            raise ChatError("there is no message to take back")
        self._last = None
        self._screen.say(f"taken back: {quoted(message)}")

    def _reset(self) -> None:
        self.session, self._last, self._asked = self.session.reset(), None, []
        self._screen.say("the conversation is forgotten")

    def _prompt(self) -> None:
        if not self._asked:
            raise ChatError("nothing was sent yet")
        for question in self._asked:
            prompt = self._loop.run(self._answerer.prompt(question))
            self._screen.heading(f"{self._label(question.condition)}: {len(prompt.ids)} tokens")
            self._screen.say(prompt.text)
            self._screen.say(" ".join(map(str, prompt.ids)))

    def _save(self, argument: str) -> None:
        path = Path(argument).expanduser()
        self._screen.say(save(self.session, path, model=self._facts.name, default=self._facts.default))


def _speed(answer: _Shown) -> str:
    """How fast an answer was; a rate of a few tokens says nothing."""
    count = f"{answer.num_tokens} token{'' if answer.num_tokens == 1 else 's'}"
    seconds = time.monotonic() - answer.first
    has_rate = answer.num_tokens >= _FEWEST_TOKENS_OF_A_RATE and seconds > 0
    rate = f", {(answer.num_tokens - 1) / seconds:.1f} tokens/s" if has_rate else ""
    return f"{count}{rate}, {answer.first - answer.began:.2f} s to the first"


def split_conditions(text: str, separator: str = "|") -> list[str]:
    """The conditions of a text, without the spaces around them; `""` is the empty one."""
    return [_unquoted(part.strip()) for part in text.split(separator)]


def read_temperature(text: str) -> float:
    """A temperature. Raises ChatError for what is not one."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= _HIGHEST_TEMPERATURE:
        raise ChatError(f"{quoted(text)} is not a temperature between 0 and {_HIGHEST_TEMPERATURE:g}")
    return value


def _number(text: str, *, smallest: int) -> int | None:
    """A whole number, None for `off`."""
    if text == _OFF:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19 and int(text) >= smallest):
        raise ChatError(f"{quoted(text)} is not a whole number of at least {smallest}, or `{_OFF}`")
    return int(text)


def _unquoted(text: str) -> str:
    return "" if text in ('""', "''") else text
