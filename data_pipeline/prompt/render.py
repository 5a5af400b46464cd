"""Prompts of training: a tagged conversation to segments.

A prompt is a row of control tokens with text between them, for example for `openchat_3.5`:

    <s>  GPT4 Correct User: Hello  <|end_of_turn|>  GPT4 Correct Assistant: Hi  <|end_of_turn|>
         `------ prefix -----'`content'

Everything between two control tokens is tokenized as one text with control tokens switched off. So what a person typed
(or a condition) can never become a control id, and the ids are those of the whole prompt string, with any white space.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from data_pipeline.conversation import ControlToken, Conversation, Role, Segment, Span, TaggedConversation, Text
from data_pipeline.errors import RowError
from data_pipeline.prompt.part_weights import message_weights
from data_pipeline.prompt.templates import Template


def render(tagged: TaggedConversation, template: Template, *, bos_token: str | None) -> tuple[Segment, ...]:
    """The segments of a whole conversation. Content and end of turn have the weight of their message, all else 0.

    Raises RowError for a conversation with a part that the template cannot show.
    """
    require_shown(tagged.conversation, template)
    return tuple(_segments(tagged, template, bos_token))


def require_shown(conversation: Conversation, template: Template) -> None:
    """Raise RowError for a conversation with a part that the template cannot show."""
    found = "tools" if conversation.tools else ""
    for message in conversation.messages:
        if message.role not in template.role_names:
            found = "results of tools"
        elif message.tool_calls or message.reasoning:
            found = "tool calls" if message.tool_calls else "reasoning"
    if found:
        problem = f"the template `{template.name}` has no place for {found}"
        raise RowError("unshown_part", f"{problem}; use another `model.template`, or remove it from the row")


def header_segments(template: Template, role: Role | Literal["system"], condition: str) -> tuple[Segment, ...]:
    """What the template writes before the content of a message: nothing where a system text has no header."""
    if role == "system":
        return tuple(_header(template, template.system_name, "", 0.0))
    return tuple(_header(template, _with_condition(condition, template.role_names[role]), "", 0.0))


def _segments(tagged: TaggedConversation, template: Template, bos_token: str | None) -> Iterator[Segment]:
    # no control token parts the text after a turn from a header that begins with text: both are one text
    between = template.after_turn if template.header_open is None else ""
    before = ""
    if bos_token:
        yield ControlToken(text=bos_token)
    if tagged.conversation.system:
        yield from _header(template, template.system_name, tagged.conversation.system, 0.0)
        yield from _end(template, 0.0)
        before = between
    for message, weight in zip(tagged.conversation.messages, tagged.message_weights, strict=True):
        role = _with_condition(tagged.condition, template.role_names[message.role])
        weights = message_weights(message, weight, tagged.part_weights)
        spans = weights.text if message.spans else ()
        yield from _header(template, role, message.content, weights.text[0].weight, before=before, spans=spans)
        yield from _end(template, weights.end)
        before = between
    if before:
        yield Text(prefix=before)


def texts_after(control_token: str | None, template: Template, condition: str) -> tuple[str, ...]:
    """What the template may write right after a control token and before any content. control_token: None for the
    beginning of a row.

    The counterpart of `render` for showing rows: ids do not say where a role prefix ends.
    """
    roles = [_with_condition(condition, name) for name in template.role_names.values()]
    roles += [template.system_name] if template.system_name else []
    if control_token is not None and control_token == template.header_close:
        return (template.header_suffix,) if template.header_suffix else ()
    before = template.after_turn if control_token == template.end_of_turn else ""
    if template.header_open and control_token != template.header_open:
        return (before,) if before else ()
    headers = tuple(before + role + ("" if template.header_close else template.header_suffix) for role in roles)
    return (before, *headers) if before else headers


def _with_condition(condition: str, role: str) -> str:
    return f"{condition} {role}" if condition else role


def _header(
    template: Template,
    role: str | None,
    content: str,
    weight: float,
    *,
    before: str = "",
    spans: tuple[Span, ...] = (),
) -> Iterator[Segment]:
    prefix = before
    if role is not None:
        if template.header_open:
            yield ControlToken(text=template.header_open)
        prefix += role
        if template.header_close:
            yield Text(prefix=prefix)
            yield ControlToken(text=template.header_close)
            prefix = ""
        prefix += template.header_suffix
        if content:
            content = template.content_lead + content
            if spans:
                spans = (Span(text=template.content_lead + spans[0].text, weight=spans[0].weight), *spans[1:])
    if prefix or content:
        yield Text(prefix=prefix, content=content, weight=weight, spans=spans)


def _end(template: Template, weight: float) -> Iterator[Segment]:
    yield ControlToken(text=template.end_of_turn, weight=weight)
    if template.after_turn and template.header_open is not None:
        yield Text(prefix=template.after_turn)
