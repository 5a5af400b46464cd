"""Parts of a message: reasoning, text in stretches, tool calls, results of tools; and the tools that a row names.

Several names are in use for one thing, so this is where they are known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from data_pipeline import nesting
from data_pipeline.conversation import Message, Role, Span, ToolCall
from data_pipeline.errors import RowError
from data_pipeline.formats.known_keys import content_kind
from data_pipeline.formats.values import object_of, text_of, weight_of
from data_pipeline.text_rules import shown

_TEXT_KINDS = ("text", "input_text", "output_text")  # the last two in OpenAI's Responses API
_TEXT_PART_KEYS = frozenset(("type", "text", "weight", "annotations", "cache_control", "logprobs", "id"))
_LINK_KEYS = frozenset(  # of an annotation that points to something and quotes nothing
    ("type", "url", "title", "start_index", "end_index", "index", "file_id", "filename", "container_id")
)
_THINKING_KINDS = ("thinking", "reasoning")  # parts before the text, as Anthropic and Mistral write them
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_ARGUMENTS = ("arguments", "parameters", "input", "args")  # of a call: OpenAI, Llama, Anthropic, Gemini
_CALL_KEYS = frozenset(("id", "type", "function", "name", *_ARGUMENTS))
_THINK = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
_OPEN_THINK = re.compile(r"\s*<think>")


def message_with_parts(role: Role, turn: Mapping[str, Any], where: str) -> Message:
    """A message of OpenAI's chat format, with all its parts.

    Only an assistant message has reasoning and tool calls; with either of them its text may be empty. The result of a
    tool may be empty too. Raises RowError for anything else that is empty, and for a part that is not what it must be.
    """
    reasoning = _reasoning_of(turn, where)
    tool_calls = _tool_calls_of(turn.get("tool_calls"), f"{where}.tool_calls")
    content = turn.get("content")
    if isinstance(content, list) and role == "assistant":
        reasoning, content = _with_thinking(reasoning, content, f"{where}.content")
    if content is None and (reasoning or tool_calls):
        content = ""
    text, spans = _content_of(content, f"{where}.content", is_answer=role == "assistant")
    message = Message(
        role=role,
        content=text,
        weight=weight_of(turn.get("weight"), where),
        spans=spans,
        reasoning=reasoning,
        tool_calls=tool_calls,
        name=_optional_text(turn, "name", where) if role == "tool" else None,
        tool_call_id=_optional_text(turn, "tool_call_id", where) if role == "tool" else None,
    )
    if role != "assistant" and (message.reasoning or message.tool_calls):
        part = "reasoning" if message.reasoning else "tool calls"
        raise RowError("unsupported_content", f"{where}: only assistant messages can have {part}; remove the row")
    if not (text.strip() or role == "tool" or message.reasoning or message.tool_calls):
        raise RowError("empty_message", f"{where}: the message is empty; remove it or the row")
    return message


def _with_thinking(reasoning: str, parts: list[Any], where: str) -> tuple[str, list[Any]]:
    """The reasoning and the other parts of a text that begins with parts of thinking.

    Raises RowError for thinking after text, for hidden thinking, and where there is other reasoning too.
    """
    num = 0
    while num < len(parts) and isinstance(parts[num], Mapping) and parts[num].get("type") in _THINKING_KINDS:
        num += 1
    if not num:
        return reasoning, parts
    if reasoning:
        raise RowError("unsupported_content", f"{where}: has reasoning in a key and in a part; keep one")
    texts = [_thinking(part, f"{where}[{number}]") for number, part in enumerate(parts[:num])]
    return "\n\n".join(filter(str.strip, texts)), parts[num:]


def _thinking(part: Mapping[str, Any], where: str) -> str:
    """The text of a part of thinking: under the name of its type, under `text`, or in parts of its own."""
    given = [key for key in part.keys() - {"type", "signature", "closed", "id"} if part[key] not in (None, "", [], {})]
    if len(given) > 1 or not set(given) <= {"thinking", "reasoning", "text"}:
        raise RowError(
            "unsupported_content", f"{where}: expected one text, found {', '.join(map(shown, sorted(given)))}"
        )
    if not given:
        return ""
    value = part[given[0]]
    return text_of_content(value, f"{where}.{given[0]}")


def text_of_content(content: Any, where: str) -> str:
    """A text that has no weight: as one, or in parts."""
    return _content_of(content, where, is_answer=False)[0]


def tools_of(value: Any) -> str:
    """The functions that a row names as a JSON list, "" where there are none. value: a list, or one as JSON text."""
    if isinstance(value, str):
        value = _json_of(value, "tools") if value.strip() else None
    if not value:
        return ""
    if not isinstance(value, list):
        raise RowError("wrong_type", f"tools: expected a list, found {shown(value)}")
    for number, tool in enumerate(value):
        object_of(tool, f"tools[{number}]")
    return _as_json(value, "tools")


def with_reasoning_of_tags(messages: Sequence[Message], key: str) -> list[Message]:
    """Answers that begin with `<think>...</think>`: what is inside becomes their reasoning, what is after their text.

    White space around the tags is the template's to write, so it is taken off. Raises RowError for a tag that is not
    closed, for an answer that has reasoning of its own too, and for text in stretches, whose weights could not be kept.
    """
    return [_untagged(message, f"{key}, message {number}") for number, message in enumerate(messages, 1)]


def _untagged(message: Message, where: str) -> Message:
    if message.role != "assistant":
        return message
    if not _OPEN_THINK.match(message.content):
        if "</think>" in message.content.partition("<think>")[0]:
            problem = "`</think>` without `<think>` before it; write both around the reasoning, or none"
            raise RowError("unsupported_content", f"{where}: {problem}")
        return message
    found = _THINK.match(message.content)
    if found is None:
        raise RowError("unsupported_content", f"{where}: `<think>` is not closed; close it, or remove the row")
    if message.reasoning:
        raise RowError("unsupported_content", f"{where}: has reasoning in a key and in `<think>`; keep one")
    if message.spans:
        problem = "`<think>` in a text with weights of its own; write the reasoning as `reasoning_content`"
        raise RowError("unsupported_content", f"{where}: {problem}")
    reasoning, text = found[1].strip(), message.content[found.end() :]
    if not (text or reasoning or message.tool_calls):
        raise RowError("empty_message", f"{where}: the message is empty; remove it or the row")
    return replace(message, reasoning=reasoning, content=text)


def _content_of(content: Any, where: str, *, is_answer: bool) -> tuple[str, tuple[Span, ...]]:
    """The text, and its stretches where they have weights."""
    if not isinstance(content, list):
        return text_of(content, where), ()
    stretches = [_stretch(part, f"{where}[{number}]") for number, part in enumerate(content)]
    given = [weight for _, weight in stretches if weight is not None]
    if any(given) and not is_answer:
        raise RowError("invalid_weight", f"{where}: only the text of assistant messages can have weights")
    text = "".join(text for text, _ in stretches)
    if not is_answer or all(weight == 1.0 for weight in given):
        return text, ()
    return text, tuple(Span(text=text, weight=1.0 if weight is None else weight) for text, weight in stretches)


def _stretch(part: Any, where: str) -> tuple[str, float | None]:
    """A part of a content list. Without a `type`, it is one of text."""
    kind = part.get("type", "text") if isinstance(part, Mapping) else part
    if not isinstance(part, Mapping) or kind not in _TEXT_KINDS:
        raise RowError(
            "unsupported_content",
            f"{where}: only parts of type `text` are supported, found {shown(kind)}; remove the row",
        )
    annotations = part.get("annotations")
    quotes = [a for a in annotations or () if not (isinstance(a, Mapping) and a.keys() <= _LINK_KEYS)]
    for key in [*(part.keys() - _TEXT_PART_KEYS), *(("annotations",) if quotes else ())]:
        if part[key] not in (None, "", [], {}):  # Parquet gives every part the keys of all parts
            raise RowError("unsupported_content", f"{where}.{key}: a part of type `text` with {shown(part[key])}")
    return text_of(part.get("text"), f"{where}.text"), weight_of(part.get("weight"), where)


def _reasoning_of(turn: Mapping[str, Any], where: str) -> str:
    found = {key: turn[key] for key in REASONING_KEYS if turn.get(key) not in (None, "")}
    texts = {text_of(value, f"{where}.{key}") for key, value in found.items()}
    if len(texts) > 1:
        raise RowError("unsupported_content", f"{where}: {' and '.join(found)} hold different texts; keep one")
    text = texts.pop() if texts else ""
    return text if text.strip() else ""


def _tool_calls_of(value: Any, where: str) -> tuple[ToolCall, ...]:
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _json_of(value, where)
    if not value:
        return ()
    if not isinstance(value, list):
        raise RowError("wrong_type", f"{where}: expected a list, found {shown(value)}")
    return tuple(_tool_call(object_of(call, f"{where}[{n}]"), f"{where}[{n}]") for n, call in enumerate(value))


def _tool_call(call: Mapping[str, Any], where: str) -> ToolCall:
    kind = call.get("type")
    if kind not in (None, "function"):
        raise RowError("unsupported_content", f"{where}.type: only functions can be called, found {shown(kind)}")
    function = object_of(call["function"], f"{where}.function") if call.get("function") is not None else call
    given = [key for key in _ARGUMENTS if function.get(key) not in (None, "", {})]
    _refuse_unread(function, given, where)
    if function is not call:
        _refuse_unread(call, [key for key in _ARGUMENTS if call.get(key) not in (None, "", {})], where, most=0)
    name = text_of(function.get("name"), f"{where}.name")
    if not name.strip():
        raise RowError("unsupported_content", f"{where}.name: the function has no name")
    return ToolCall(
        name=name,
        arguments=_arguments_of(function[given[0]], f"{where}.{given[0]}") if given else "{}",
        id=_optional_text(call, "id", where),
    )


def _refuse_unread(call: Mapping[str, Any], given: Sequence[str], where: str, most: int = 1) -> None:
    """Raise RowError for a key of a call that holds something and is not read. given: its keys with arguments, of which
    there may be `most`.
    """
    for key in [*given[most:], *(call.keys() - _CALL_KEYS)]:
        value = call[key]
        if key in given or content_kind(key, value) is not None or (isinstance(value, Mapping) and value):
            problem = f"is not read, found {shown(value)}; write the call as `name` and `arguments`, and nothing else"
            raise RowError("unsupported_content", f"{where}.{key}: {problem}")


def _arguments_of(value: Any, where: str) -> str:
    """A JSON object as text: unchanged where the row has text, and as `json.dumps` writes it otherwise."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return "{}"
    if isinstance(value, str):
        object_of(_json_of(value, where), where)
        return text_of(value, where)
    return _as_json(dict(object_of(value, where)), where)


def _as_json(value: Any, where: str) -> str:
    """A value as JSON text. Raises RowError for what JSON has not: NaN, and times and decimals of Parquet."""

    def refuse(item: Any) -> None:
        raise item if isinstance(item, RowError) else TypeError(f"{shown(item)} is no value of JSON")

    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=refuse)
    except TypeError as error:
        raise RowError("wrong_type", f"{where}: {error}; write it as text") from None
    except ValueError:
        raise RowError("wrong_type", f"{where}: NaN and infinite numbers are no values of JSON; remove them") from None
    return text_of(text, where)


def _json_of(text: str, where: str) -> Any:
    try:
        return nesting.loads(text, constants=False)
    except ValueError as error:
        raise RowError("invalid_json", f"{where}: not JSON ({error}), found {shown(text)}") from None


def _optional_text(value: Mapping[str, Any], key: str, where: str) -> str | None:
    found = value.get(key)
    return None if found in (None, "") else text_of(found, f"{where}.{key}")
