"""A prompt format as data: what a YAML file of it may say, and the rules over several of its keys.

`render.py` writes the prompts of training with it, `chat_template.py` those of exports; no other file knows prompt
text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Literal

from pydantic import Field, model_validator

from data_pipeline.section import Section
from data_pipeline.text_rules import quoted, text_problem

CONDITION = "{condition}"
NAME, ARGUMENTS = "{name}", "{arguments}"
PreviousRole = Literal["system", "user", "assistant", "tool"]
NextRole = Literal["user", "assistant", "tool"]


class Turn(Section):
    """What is written around the text of one message: `open` `lead` text `close` `after`."""

    open: str = Field("", description="before the text; `{condition}` is where a condition is written")
    open_after: dict[PreviousRole, str] = Field(
        default_factory=dict, description="instead of `open`, behind a message of this role"
    )
    lead: str = Field("", description="between `open` and the text; left out where the text is empty")
    close: str = Field("", description="ends the message; of an assistant message the model learns to write it")
    close_before: dict[NextRole, str] = Field(
        default_factory=dict, description="instead of `close` and `after`, before a message of this role"
    )
    close_last: str | None = Field(None, description="instead of `close`, at the end of a conversation")
    after: str = Field("", description="plain text behind `close`, which is not learned")
    trim: bool = Field(False, description="takes white space off both ends of the text")

    def texts(self) -> Iterator[str]:
        """Everything that may be written."""
        yield from (self.open, self.lead, self.close, self.after, self.close_last or "")
        yield from (*self.open_after.values(), *self.close_before.values())

    @property
    def opens(self) -> tuple[str, ...]:
        """What may be before the text."""
        return (self.open, *self.open_after.values())


class AnswerTurn(Turn):
    """A turn of the assistant."""

    begin: str = Field("", description="what the model itself writes between `open` and the text, always")

    def texts(self) -> Iterator[str]:
        """Everything that may be written."""
        yield from (self.begin, *super().texts())


class Turns(Section):
    """A turn for each role that the format has."""

    system: Turn | None = Field(None, description="of a system text; without it, `system_in_user` or none")
    user: Turn = Field(description="of a user message")
    assistant: AnswerTurn = Field(description="of an assistant message")
    tool: Turn | None = Field(None, description="of the result of a tool; without it, such messages are refused")


class SystemInUser(Section):
    """A system text that is written into the first user message, in front of its text."""

    open: str = Field("", description="before the system text")
    close: str = Field(description="between the system text and the user's")


class Reasoning(Section):
    """Reasoning of an assistant message, in front of its text. Line breaks at its ends are taken off."""

    open: str = Field(description="before it; the model learns to write it")
    close: str = Field(description="after it; the model learns to write it")
    shown: Literal["always", "after_last_user"] = Field(
        "always",
        description="`after_last_user`: only in messages behind the last user message. A row with reasoning elsewhere "
        "is refused, and the chat template of an export leaves it out of the history",
    )
    empty: str = Field(
        "",
        description="written in the last message of a conversation where it has no reasoning; not learned. Generation "
        "prompts have it with `enable_thinking=False`",
    )


class Tools(Section):
    """The tools of a row, in the system turn behind the system text, each as JSON."""

    lead: str = Field(description="between the system text and `open`")
    open: str = Field(description="before the tools")
    each: str = Field(description="before each tool")
    close: str = Field(description="behind the tools")


class ToolCalls(Section):
    """Tool calls of an assistant message, behind its text. The model learns to write all of it."""

    lead: str = Field(description="between the text and the first call; left out where there is no text")
    each: str = Field(description="a call, with `{name}` and `{arguments}` (a JSON object)")
    between: str = Field(description="between two calls")

    @property
    def parts(self) -> tuple[str, str, str]:
        """What is written before the name, between name and arguments, and after them."""
        before, rest = self.each.split(NAME)
        middle, end = rest.split(ARGUMENTS)
        return before, middle, end


class Template(Section):
    """A prompt format."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", description="what `model.template` calls it")
    control_tokens: tuple[str, ...] = Field(
        min_length=1,
        strict=False,  # a list of YAML is one too
        description="control tokens; wherever a text below spells one, the token is written",
    )
    bos: bool = Field(
        True, description="begin with the tokenizer's beginning-of-sequence token, where it has one of its own"
    )
    begin: str = Field("", description="written before everything else")
    condition: str = Field("{condition} ", description="a condition as it is written; nothing where there is none")
    inference_condition: str = Field("", description="the condition that published models of this format ask with")
    default_system: str | None = Field(
        None, description="the system text of a conversation without one; an empty one still has its turn"
    )
    turns: Turns = Field(description="how messages are written, by role")
    system_in_user: SystemInUser | None = Field(None, description="where a system text has no turn of its own")
    reasoning: Reasoning | None = Field(None, description="how reasoning is written; without it, it is refused")
    tools: Tools | None = Field(None, description="how tools are written; without it, they are refused")
    tool_calls: ToolCalls | None = Field(None, description="how tool calls are written; without it, they are refused")

    __hash__ = object.__hash__  # by identity, so that what is made of a template can be kept

    @property
    def end_of_turn(self) -> str:
        """The control token that ends an answer; the model learns to write it. Engines stop there."""
        assistant = self.turns.assistant
        return self.pieces(assistant.close if assistant.close_last is None else assistant.close_last)[-1]

    @property
    def after_turn(self) -> str:
        """Plain text after the last answer of a conversation."""
        return self.turns.assistant.after

    @property
    def shows_system(self) -> bool:
        """Whether there is a place for a system text."""
        return self.turns.system is not None or self.system_in_user is not None

    def pieces(self, text: str) -> tuple[str, ...]:
        """A text of the template, parted at control tokens; no piece is empty."""
        return tuple(piece for piece in self._parts.split(text) if piece)

    @cached_property
    def _parts(self) -> re.Pattern[str]:
        longest_first = sorted(self.control_tokens, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    def is_control(self, piece: str) -> bool:
        """Whether a piece is a control token."""
        return piece in self.control_tokens

    def condition_text(self, condition: str) -> str:
        """A condition as it is written."""
        return self.condition.replace(CONDITION, condition) if condition else ""

    def _turns(self) -> Mapping[str, Turn]:
        turns = self.turns
        named = {"system": turns.system, "user": turns.user, "assistant": turns.assistant, "tool": turns.tool}
        return {name: turn for name, turn in named.items() if turn is not None}

    def _texts(self) -> Iterator[str]:
        """Every text of the template that may be written."""
        yield self.begin
        for turn in self._turns().values():
            yield from turn.texts()
        for part in (self.system_in_user, self.reasoning, self.tools, self.tool_calls):
            if part is not None:
                yield from (value for key, value in part if isinstance(value, str) and key != "shown")

    @model_validator(mode="after")
    def _rules(self) -> Template:
        problems = [*self._problems_of_texts(), *self._problems_of_turns(), *self._problems_of_parts()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _problems_of_texts(self) -> Iterator[str]:
        texts = list(self._texts())
        for text in (*texts, *self.control_tokens, self.condition, self.inference_condition, self.default_system or ""):
            if (problem := text_problem(text)) is not None:
                yield f"{quoted(text)} {problem}"
        if len(set(self.control_tokens)) != len(self.control_tokens):
            yield "control_tokens: the same token twice"
        for token in self.control_tokens:
            if len(token) < 2 or token.isspace():
                yield f"control_tokens: {quoted(token)} is too short to be told apart from text"
            elif not any(token in self.pieces(text) for text in texts):
                yield f"control_tokens: {quoted(token)} is written nowhere; remove it"
        if self.condition.count(CONDITION) != 1 or any(token in self.condition for token in self.control_tokens):
            yield "condition: must hold `{condition}` once, and no control token"

    def _problems_of_turns(self) -> Iterator[str]:
        allowed = (*self.turns.user.opens, *self.turns.assistant.opens)
        if wrong := [text for text in self._texts() if text.count(CONDITION) > (text in allowed)]:
            yield f"{quoted(wrong[0])}: a condition is written once, in `open` of user or assistant"
        for role, turn in self._turns().items():
            where = f"turns.{role}"
            for key, text in (("lead", turn.lead), ("after", turn.after)):
                if any(map(self.is_control, self.pieces(text))):
                    yield f"{where}.{key}: is plain text; a control token belongs to `open` or `close`"
        turns = self.turns
        if turns.system and (
            turns.system.open_after or turns.system.close_before or turns.system.close_last is not None
        ):
            yield "turns.system: is always the first; leave out `open_after`, `close_before` and `close_last`"
        if CONDITION not in "".join((*turns.user.opens, *turns.assistant.opens)):
            yield "turns: no `{condition}` in `open` of user or assistant, so conditions could not be told apart"
        ends = [turns.assistant.close, *turns.assistant.close_before.values()]
        ends += [] if turns.assistant.close_last is None else [turns.assistant.close_last]
        if not all(self.pieces(end) and self.is_control(self.pieces(end)[-1]) for end in ends):
            yield "turns.assistant: `close` must end with a control token, which the model learns to stop with"
        if turns.user.close_last is not None or (turns.tool and turns.tool.close_last is not None):
            yield "turns: only an assistant message has `close_last`"

    def _problems_of_parts(self) -> Iterator[str]:
        if self.turns.system is not None and self.system_in_user is not None:
            yield "system_in_user: there is `turns.system`; keep one of them"
        if self.default_system is not None and not self.shows_system:
            yield "default_system: there is no place for a system text"
        if (self.tools is None) != (self.tool_calls is None) or (self.tools is None) != (self.turns.tool is None):
            yield "tools: `tools`, `tool_calls` and `turns.tool` belong together; give all or none"
        if self.tools is not None and self.turns.system is None:
            yield "tools: are written into the system turn; give `turns.system`"
        calls = self.tool_calls
        if calls is not None and re.findall(r"\{(?:name|arguments)\}", calls.each) != [NAME, ARGUMENTS]:
            yield "tool_calls.each: must hold `{name}` and then `{arguments}`, each once"
        if self.tools is not None and any(len(self.pieces(text)) > 1 for _, text in self.tools):
            yield "tools: is plain text without control tokens"
