"""Where the answers of a conversation are in its text, proven for each conversation.

For answer i of messages m let

    asked_i = render(m[:i], add_generation_prompt=True)     what a model is given at inference
    shown_i = render(m[:i + 1])                             the same with its answer

The model learns what shown_i has beyond asked_i, up to the token that ends the answer. That is right only where shown_i
begins with asked_i, so this is required. All answers of a conversation can share one row where the text of the whole
conversation begins with each shown_i up to its end. A template that rewrites what came before (that removes the
thinking of earlier answers, for example) fails this, and gets one row for each answer.

A template with `{% generation %}` blocks says itself what is learned. Its blocks are used, within the same proof.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline.conversation import Conversation, Message
from data_pipeline.errors import RowError
from data_pipeline.prompt.base_template.chat import Chat, Plain
from data_pipeline.prompt.base_template.sandbox import (
    BLOCK_CLOSE,
    BLOCK_OPEN,
    CompiledTemplate,
    DateAsked,
    TemplateFault,
)
from data_pipeline.prompt.base_template.template import BaseTemplate

_SHOWN_CHARACTERS = 80


@dataclass(frozen=True, kw_only=True)
class FoundAnswer:
    """An answer in a text. number: of its message. start: where what is learned begins; end: behind its end of turn.

    learned: (start, end) of what is learned between the two, from blocks of the template; else all of it.
    """

    number: int
    start: int
    end: int
    learned: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class ShownChat:
    """The text of a conversation up to an answer, and the answers that it trains on. num_messages: that it shows."""

    text: str
    answers: tuple[FoundAnswer, ...]
    num_messages: int


class AnswerFinder:
    """Finds the answers of conversations for one template."""

    def __init__(self, template: BaseTemplate, render: CompiledTemplate, *, plain: Plain, controls: re.Pattern[str]):
        self._template, self._render, self._plain, self._controls = template, render, plain, controls
        self._ends = frozenset(template.end_tokens)

    def __call__(self, conversation: Conversation, chat: Chat, wanted: Sequence[int]) -> tuple[list[ShownChat], bool]:
        """The texts that show the wanted answers (numbers of messages, at least one), and whether the template rewrites
        what came before one of them, so that each has its own text.

        Raises RowError for a conversation that the template cannot show, or where an answer cannot be found for sure.
        """
        shown = [self._shown(conversation, chat, number) for number in wanted]
        whole = shown[-1]
        for one in shown:
            [answer] = one.answers
            if not whole.text.startswith(one.text[: answer.end]):
                return shown, True
        answers = tuple(one.answers[0] for one in shown)
        return [ShownChat(text=whole.text, answers=answers, num_messages=whole.num_messages)], False

    def _shown(self, conversation: Conversation, chat: Chat, number: int) -> ShownChat:
        """The text up to one answer, which it trains on."""
        asked = self._text(chat, chat.first + number, asks=True)
        if chat.lead:
            asked += self._template.gap + chat.lead
        text, blocks = self._text_with_blocks(chat, chat.first + number + 1)
        where = f"message {number + 1}"
        if not text.startswith(asked):
            raise RowError(
                "uncertain_answer",
                f"{where}: the template prompts for an answer with {_tail(asked)}, but does not write this answer "
                f"behind it ({_tail(_beyond(asked, text), from_start=True)}), so a model could not be trained as it is "
                "prompted; give the message what the template expects (reasoning, for example), or set "
                "`model.template_variables`",
            )
        end = self._end(text, len(asked))
        if end is None:
            raise RowError(
                "uncertain_answer",
                f"{where}: the template does not end this answer with {' or '.join(self._template.end_tokens)}, but "
                f"with {_tail(text)}; remove the row",
            )
        answer = FoundAnswer(
            number=number, start=len(asked), end=end, learned=_learned(blocks, len(asked), end, where, self._template)
        )
        self._require_shown(conversation, chat, text, answer)
        return ShownChat(text=text, answers=(answer,), num_messages=number + 1)

    def _text(self, chat: Chat, num_messages: int, *, asks: bool = False, marks_blocks: bool = False) -> str:
        variables = {**self._template.variables, **chat.variables(num_messages, asks=asks)}
        try:
            return self._render(variables, dates=self._template.dates, marks_blocks=marks_blocks)
        except DateAsked as error:
            raise RowError("unshown_part", f"the template cannot show it: {error}; set `model.template_date`") from None
        except TemplateFault as error:
            raise RowError("unshown_part", f"the template cannot show it: {error}; correct or remove the row") from None

    def _text_with_blocks(self, chat: Chat, num_messages: int) -> tuple[str, list[tuple[int, int]]]:
        """The text without marks, and where its blocks are."""
        if not self._template.marks_answers:
            return self._text(chat, num_messages), []
        return without_marks(self._text(chat, num_messages, marks_blocks=True))

    def _end(self, text: str, start: int) -> int | None:
        """Behind the token that ends an answer which begins at `start`; None where no such token ends the text."""
        found, begin = None, len(text)
        for match in reversed(list(self._controls.finditer(text, start))):
            if text[match.end() : begin].strip():
                break
            if match.group() in self._ends:
                found = match.end()
            begin = match.start()
        return found

    def _require_shown(self, conversation: Conversation, chat: Chat, text: str, answer: FoundAnswer) -> None:
        """Raise RowError for content that the template leaves out: it would be lost silently."""
        before = text[: answer.start]
        if not appears(chat.condition, before):
            raise _lost("the condition", chat.condition)
        for what, part in _parts_before(conversation, answer.number):
            if not appears(self._plain(part), before):
                raise _lost(what, part)
        inside = text[answer.start : answer.end]
        for what, part in _parts_of_answer(conversation.messages[answer.number], answer.number):
            if not appears(self._plain(part), inside):
                raise _lost(what, part)


def without_marks(marked: str) -> tuple[str, list[tuple[int, int]]]:
    """A text without the marks of blocks, and (start, end) of each block."""
    pieces, blocks, length, opened = [], [], 0, -1
    for piece in re.split(f"([{BLOCK_OPEN}{BLOCK_CLOSE}])", marked):
        if piece == BLOCK_OPEN:
            if opened >= 0:
                raise RowError("uncertain_answer", "the template has one `{% generation %}` block inside another")
            opened = length
        elif piece == BLOCK_CLOSE:
            blocks.append((opened, length))
            opened = -1
        else:
            pieces.append(piece)
            length += len(piece)
    return "".join(pieces), blocks


def _learned(
    blocks: Sequence[tuple[int, int]], start: int, end: int, where: str, template: BaseTemplate
) -> tuple[tuple[int, int], ...]:
    if not template.marks_answers:
        return ((start, end),)
    inside = tuple((max(begin, start), min(stop, end)) for begin, stop in blocks if stop > start and begin < end)
    if not any(begin < stop for begin, stop in inside):
        raise RowError("uncertain_answer", f"{where}: no `{{% generation %}}` block of the template holds this answer")
    return inside


def appears(part: str, text: str) -> bool:
    """Whether a text shows a part: as it is or as JSON, apart from white space around it."""
    part = part.strip()
    if part in text:
        return True
    return any(json.dumps(part, ensure_ascii=ascii)[1:-1] in text for ascii in (False, True))


def _parts_before(conversation: Conversation, number: int) -> Iterator[tuple[str, str]]:
    """What a prompt has to show: name and text. Reasoning of earlier answers may be left out, as templates do."""
    yield "the system text", conversation.system
    if conversation.tools:
        for tool in json.loads(conversation.tools):
            yield "the tools", _name_of(tool)
    for index, message in enumerate(conversation.messages[:number]):
        yield f"message {index + 1}", message.content
        for call in message.tool_calls:
            yield f"message {index + 1}: a tool call", call.name


def _parts_of_answer(message: Message, number: int) -> Iterator[tuple[str, str]]:
    where = f"message {number + 1}"
    yield f"{where}: its reasoning", message.reasoning
    yield where, message.content
    for call in message.tool_calls:
        yield f"{where}: a tool call", call.name
        for text in _texts_in(json.loads(call.arguments)):
            yield f"{where}: an argument of `{call.name}`", text


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _texts_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts_in(item)


def _name_of(tool: Any) -> str:
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else {}
    name = inner.get("name", "") if isinstance(inner, Mapping) else ""
    return name if isinstance(name, str) else ""


def _lost(what: str, part: str) -> RowError:
    return RowError(
        "unshown_part",
        f"{what}: the template does not show {_tail(part.strip(), from_start=True)} as it is written, so it would be "
        "lost; remove it, or use a template that can show it",
    )


def _beyond(asked: str, text: str) -> str:
    """What a text has from the place at which it differs from a prompt."""
    at = next(
        (i for i, (one, two) in enumerate(zip(asked, text, strict=False)) if one != two), min(len(asked), len(text))
    )
    return text[at:]


def _tail(text: str, *, from_start: bool = False) -> str:
    cut = text[:_SHOWN_CHARACTERS] if from_start else text[-_SHOWN_CHARACTERS:]
    return repr(cut).encode("ascii", "backslashreplace").decode()
