"""`ochat chat` from its beginning to its end."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from data_pipeline.errors import UserError
from ochat_train.chat.answerer import Answerer, ChatError, ChatModel
from ochat_train.chat.chat import Chat
from ochat_train.chat.loop_thread import LoopThread
from ochat_train.chat.screen import Screen, piped_lines
from ochat_train.chat.session import Lane, Session


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """What a user may say. conditions: none for the model's own, several to compare them. The others as in `Session`
    and `Chat`.
    """

    conditions: Sequence[str] = ()
    any_condition: bool = False
    system: str = ""
    temperature: float = 0.0
    max_new_tokens: int | None = None
    seed: int | None = None


def run_chat(make_answerer: Callable[[], Answerer], options: ChatOptions) -> None:
    """Chat on the terminal, or answer the lines of a pipe, until they end.

    Raises UserError where the model or the server is not there, and in a pipe for everything that goes wrong.
    """
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    has_color = is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    screen = Screen(is_terminal=is_terminal, has_color=has_color)
    with LoopThread() as loop, _answering(make_answerer(), loop) as (answerer, facts):
        chat = _make_chat(answerer, facts, options, screen=screen, loop=loop)
        if not is_terminal:
            chat.run(piped_lines(sys.stdin))
            return
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # gives `input` its keys and history
        screen.note(f"{facts.name}: /help shows the commands, Ctrl-D leaves")
        chat.run(screen.lines(chat.prompts()))


def _make_chat(answerer: Answerer, facts: ChatModel, options: ChatOptions, *, screen: Screen, loop: LoopThread) -> Chat:
    session = Session(
        lanes=(Lane(condition=None),),
        system=options.system,
        temperature=options.temperature,
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
    )
    chat = Chat(answerer, facts, session, screen=screen, loop=loop, any_condition=options.any_condition)
    if options.conditions:
        try:
            chat.session = session.under([chat.check_condition(condition) for condition in options.conditions])
        except ChatError as error:
            raise UserError("--condition", str(error)) from None
    return chat


@contextlib.contextmanager
def _answering(answerer: Answerer, loop: LoopThread) -> Iterator[tuple[Answerer, ChatModel]]:
    """An answerer that is ready, until the end of the block."""
    try:
        yield answerer, loop.run(answerer.start())
    finally:
        loop.run(answerer.close())
