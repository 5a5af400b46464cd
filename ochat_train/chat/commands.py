"""Commands of a chat: lines that begin with `/`."""

from __future__ import annotations

from dataclasses import dataclass

from data_pipeline.text_rules import did_you_mean, quoted, text_problem
from ochat_train.chat.answerer import ChatError


@dataclass(frozen=True, kw_only=True)
class Command:
    """name: as typed. argument: what follows it, for people; in brackets where it may be left out. meaning: a line."""

    name: str
    argument: str = ""
    meaning: str

    @property
    def needs_argument(self) -> bool:
        """Whether it does nothing without its argument."""
        return bool(self.argument) and not self.argument.startswith("[")


COMMANDS: tuple[Command, ...] = (
    Command(name="condition", argument="[X]", meaning="answer under the condition X; without X: show the conditions"),
    Command(
        name="compare",
        argument="[A | B]",
        meaning="answer each message under A and under B; without them: the first two",
    ),
    Command(name="system", argument="[TEXT]", meaning="system message; `off` for none; without TEXT: show it"),
    Command(name="temperature", argument="[T]", meaning="temperature; 0 is greedy"),
    Command(name="max-tokens", argument="[N]", meaning="longest answer, in tokens; `off` for as many as fit"),
    Command(name="seed", argument="[N]", meaning="seed of the answers; `off` for a random one"),
    Command(name="retry", meaning="answer the last message again"),
    Command(name="undo", meaning="take back the last message and its answer"),
    Command(name="reset", meaning="forget the conversation"),
    Command(name="prompt", meaning="show text and ids of the last prompt that was sent"),
    Command(name="save", argument="FILE", meaning="write the conversation to FILE, as JSON lines for `ochat prepare`"),
    Command(name="help", meaning="show this list"),
    Command(name="quit", meaning="leave; so does Ctrl-D"),
)
_BY_NAME = {command.name: command for command in COMMANDS}


@dataclass(frozen=True, kw_only=True)
class Call:
    """A command as given."""

    name: str
    argument: str


def read_line(line: str) -> Call | str | None:
    """A command, a message to the model, or None for a line without either. `//` begins a message with `/`.

    Raises ChatError for a command that does not exist or lacks its argument, and for a message that no model can read.
    """
    text = line.strip("\r\n")
    if not text.strip():
        return None
    if not text.startswith("/") or text.startswith("//"):
        if (problem := text_problem(text)) is not None:
            raise ChatError(f"the message {problem}")
        return text[1:] if text.startswith("//") else text
    name, _, argument = text[1:].partition(" ")
    command = _BY_NAME.get(name)
    if command is None:
        known = " ".join(f"/{command.name}" for command in COMMANDS)
        hint = did_you_mean(f"/{name}", [f"/{known}" for known in _BY_NAME])
        raise ChatError(f"unknown command {quoted('/' + name)}{'; ' + hint if hint else ''}\ncommands: {known}")
    if command.needs_argument and not argument.strip():
        raise ChatError(f"say it like this: /{command.name} {command.argument}")
    if not command.argument and argument.strip():
        raise ChatError(f"/{command.name} takes nothing after it, not {quoted(argument.strip())}")
    return Call(name=name, argument=argument.strip())


def help_text() -> str:
    """All commands, a line each."""
    width = max(len(f"/{command.name} {command.argument}") for command in COMMANDS)
    lines = [f"{f'/{command.name} {command.argument}':{width}}  {command.meaning}" for command in COMMANDS]
    lines += ["", "All other lines are messages; `//` begins one with `/`, and `\\` at the end of a line continues it."]
    return "\n".join([*lines, "Ctrl-C stops an answer."])
