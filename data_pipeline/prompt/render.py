"""Prompts of training: a tagged conversation to segments.

A prompt is a row of control tokens with text between them, for example for `openchat_3.5`:

    <s>  GPT4 Correct User: Hello  <|end_of_turn|>  GPT4 Correct Assistant: Hi  <|end_of_turn|>
         `------ prefix -----'`content'

Everything between two control tokens is tokenized as one text with control tokens switched off. So what a person typed
(or a condition) can never become a control id, and the ids are those of the whole prompt string, with any white space.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from data_pipeline.conversation import (
    Conversation,
    Message,
    Role,
    Segment,
    Span,
    TaggedConversation,
)
from data_pipeline.errors import RowError
from data_pipeline.prompt.part_weights import MessageWeights, message_weights
from data_pipeline.prompt.segment_writer import Place, Writer, write_close, write_open
from data_pipeline.prompt.template import AnswerTurn, PreviousRole, Template, Turn


def render(tagged: TaggedConversation, template: Template, *, bos_token: str | None) -> tuple[Segment, ...]:
    """The segments of a whole conversation. Parts of answers and their end have the weights of `part_weights.py`, all
    else 0.

    Raises RowError for a conversation with a part that the template cannot show.
    """
    writer = Writer(template, tagged.condition)
    if bos_token:
        writer.control(bos_token)
    writer.template(template.begin)
    _write(writer, tagged)
    return writer.finished()


def header_segments(template: Template, role: Role | Literal["system"], condition: str) -> tuple[Segment, ...]:
    """What the template writes before the content of a message: nothing where a system text has no header."""
    turn = getattr(template.turns, role)
    writer = Writer(template, condition)
    writer.template(turn.open if turn is not None else "")
    return writer.finished()


def system_text(conversation: Conversation, template: Template) -> str:
    """What is in the place of the system text: that of the conversation or of the template, and the tools."""
    system = conversation.system or template.default_system or ""
    if not conversation.tools:
        return system
    tools = template.tools
    assert tools is not None, "checked"
    described = "".join(tools.each + json.dumps(tool, ensure_ascii=False) for tool in json.loads(conversation.tools))
    return f"{system}{tools.lead if system else ''}{tools.open}{described}{tools.close}"


def _write(writer: Writer, tagged: TaggedConversation) -> None:
    conversation, template = tagged.conversation, writer.rules
    messages = conversation.messages
    _require_tools(conversation, template)
    system, turn = system_text(conversation, template), template.turns.system
    previous: PreviousRole | None = None
    waiting = ""  # a system text that the first user message has to take
    if turn is not None and (system or template.default_system is not None):
        _write_plain(writer, turn, system, 0.0, Place(previous=None, following=None, is_after_last_user=False))
        previous = "system"
    elif system:
        waiting = system
    last_user = _last_user(messages) if template.reasoning is not None else -1
    num_messages = len(messages)
    for number, (message, weight) in enumerate(zip(messages, tagged.message_weights, strict=True), 1):
        following = messages[number].role if number < num_messages else None
        has_parts = message.role == "assistant" and (
            template.reasoning is not None or message.reasoning or message.tool_calls or message.spans
        )
        part_weight = weight * tagged.part_weights.answer if message.role == "assistant" else weight
        if not (has_parts or waiting) and writer.plain(message, part_weight, previous, following):
            previous = message.role
            continue
        place = Place(previous, following, number - 1 > last_user)
        if has_parts:
            _write_answer(writer, message, message_weights(message, weight, tagged.part_weights), place)
        elif message.role == "assistant":
            _write_plain(writer, template.turns.assistant, message.content, part_weight, place)
        elif message.role == "user":
            _write_plain(writer, template.turns.user, message.content, weight, place, system=waiting)
            waiting = ""
        else:
            assert template.turns.tool is not None, "checked"
            _write_plain(writer, template.turns.tool, message.content, weight, place)
        previous = message.role
    if waiting:
        problem = (
            f"the template `{template.name}` writes the system text into the first user message, and there is none"
        )
        raise RowError("unshown_part", f"{problem}; remove the system text or use another `model.template`")


def _last_user(messages: Sequence[Message]) -> int:
    return max((number for number, message in enumerate(messages) if message.role == "user"), default=-1)


def _require_tools(conversation: Conversation, template: Template) -> None:
    if conversation.system and not template.shows_system:
        raise _unshown("a system text", template)
    if template.tools is not None:
        return
    if conversation.tools:
        raise _unshown("tools", template)
    for message in conversation.messages:
        if message.tool_calls or message.role == "tool":
            raise _unshown("tool calls and their results", template)


def _unshown(what: str, template: Template) -> RowError:
    problem = f"the template `{template.name}` has no place for {what}"
    return RowError("unshown_part", f"{problem}; use another `model.template`, or remove it from the row")


def _write_plain(writer: Writer, turn: Turn, content: str, weight: float, place: Place, *, system: str = "") -> None:
    """A message of one text. system: what a user message holds in front of it."""
    write_open(writer, turn, place)
    if system:
        wrap = writer.rules.system_in_user
        assert wrap is not None, "checked"
        writer.template(wrap.open)
        writer.content(system, 0.0)
        writer.template(wrap.close)
    if isinstance(turn, AnswerTurn):
        writer.template(turn.begin, weight)
    text = content.strip() if turn.trim else content
    if text:
        writer.content(turn.lead + text, weight)
    write_close(writer, turn, weight, place)


def _write_answer(writer: Writer, message: Message, weights: MessageWeights, place: Place) -> None:
    turn = writer.rules.turns.assistant
    write_open(writer, turn, place)
    _write_reasoning(writer, message, weights, place)
    spans = _trimmed(weights.text) if turn.trim else weights.text
    writer.template(turn.begin, spans[0].weight)
    lead, has_text = turn.lead, False
    for span in spans:
        if span.text:
            writer.content(lead + span.text, span.weight)
            lead, has_text = "", True
    if message.tool_calls:
        _write_calls(writer, message, weights.tool_calls, has_text=has_text)
    write_close(writer, turn, weights.end, place)


def _write_calls(writer: Writer, message: Message, weight: float, *, has_text: bool) -> None:
    calls = writer.rules.tool_calls
    assert calls is not None, "checked"
    before, middle, end = calls.parts
    for number, call in enumerate(message.tool_calls):
        if number or has_text:
            writer.template(calls.between if number else calls.lead, weight)
        writer.template(before, weight)
        writer.content(call.name, weight)
        writer.template(middle, weight)
        writer.content(call.arguments, weight)
        writer.template(end, weight)


def _write_reasoning(writer: Writer, message: Message, weights: MessageWeights, place: Place) -> None:
    template, rule = writer.rules, writer.rules.reasoning
    is_shown = rule is not None and (rule.shown == "always" or place.is_after_last_user)
    text = message.reasoning.strip("\n")
    if message.reasoning and rule is None:
        raise _unshown("reasoning", template)
    if message.reasoning and not is_shown:
        raise _unshown(
            "reasoning in an answer before the last user message, which it leaves out of the history", template
        )
    if rule is None or not is_shown:
        return
    if not text:
        if place.following is None:
            writer.template(rule.empty)
        return
    writer.template(rule.open, weights.reasoning)
    writer.content(text, weights.reasoning)
    writer.template(rule.close, weights.reasoning)


def _trimmed(spans: Sequence[Span]) -> tuple[Span, ...]:
    """Spans without white space at the ends of their whole text. None is left out: the last one may be empty."""
    whole = "".join(span.text for span in spans)
    start, end = len(whole) - len(whole.lstrip()), len(whole.rstrip())
    found, position = [], 0
    for span in spans:
        text = whole[max(position, start) : min(position + len(span.text), end)]
        found.append(replace(span, text=text))
        position += len(span.text)
    return tuple(found)
