"""What layout a row has, by its keys and the shapes of their values alone. Pure functions; `format: auto` uses them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data_pipeline import nesting
from data_pipeline.errors import RowError
from data_pipeline.formats.fields import ANSWERS, CONTENT_KEYS, INPUTS, PROMPTS, ROLE_KEYS, ROLES, SYSTEMS, Fields
from data_pipeline.formats.table import FORMATS
from data_pipeline.text_rules import shown

_LISTS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns", "data")
_ANSWER_LISTS = ("answers", "completions", "responses")
_ANSWER_TEXTS = ("answer", "response", "text", "content", "completion", "output")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A format and the keys that it reads."""

    format: str
    fields: Fields

    def __str__(self) -> str:
        changes = self.fields.changes(FORMATS[self.format].fields)
        if not changes:
            return f"format: {self.format}"
        named = ", ".join(f"{name}: {value}" for name, value in changes.items())
        return f"format: {self.format}, fields: {{{named}}}"


def layout_of(row: Any) -> Layout | str:
    """The layout of a row, or why it has none that is known."""
    if isinstance(row, list):
        return _with_turns("messages", row, {}) or "a list whose entries are not messages"
    if not isinstance(row, Mapping):
        return "not an object"
    if "parent_id" in row and "role" in row and "text" in row:
        return "one message of a tree a row (`parent_id`); join each path from a prompt to its last answer first"
    if isinstance(row.get("items"), list) and row["items"]:
        return _layout("openchat", row)
    if (instruction := _unread_instruction(row)) is not None:
        return instruction
    for find in (_pairs, _messages, _ranked, _prompt_answer):
        if (found := find(row)) is not None:
            return found
    if _are_calls(row.get("answers")):
        how = " as JSON text" if isinstance(row["answers"], str) else ""
        return f"answers that are calls{how}; write them as `messages` with `tool_calls`"
    unclear = next((key for key in _LISTS if isinstance(row.get(key), str) and row[key].lstrip()[:1] in ("[", "{")), "")
    if unclear:
        return f"`{unclear}` is text that is neither JSON nor messages; write it as a list, or as JSON text"
    if (odd := _value_of_another_kind(row)) is not None:
        return odd
    if isinstance(row.get("text"), str):
        return "a single text, in which nothing says who speaks; make messages of it"
    return f"the keys {', '.join(map(repr, list(row)[:10])) or 'none'} are no known layout; name them in `fields`"


def _value_of_another_kind(row: Mapping[str, Any]) -> str | None:
    """What to say of a row with a usual key whose value is neither text nor messages, None without one."""
    for key in (*_LISTS, *_ANSWER_LISTS, *ANSWERS, *PROMPTS, *INPUTS, "chosen", "rejected"):
        value = row.get(key)
        if isinstance(value, RowError):
            return f"`{key}`: {value}"
        if value not in (None, "", []) and (key in (*_LISTS, *_ANSWER_LISTS) or not isinstance(value, str | list)):
            return f"`{key}` holds {shown(value)}, which is neither text nor a list of messages"
    return None


def _unread_instruction(row: Mapping[str, Any]) -> str | None:
    """Why the layout of a row stays open: its only prompt is an input, and a label may be its instruction."""
    names = [name for name in INPUTS if isinstance(row.get(name), str) and row[name].strip()]
    if not names or any(row.get(name) for name in (*PROMPTS, *_LISTS)) or "chosen" in row:
        return None
    for key in ("task", "title", "task_name", "topic", "subject"):
        if isinstance(value := row.get(key), str) and len(value.split()) > 1:
            fields = f"`format: prompt_answer, fields: {{prompt: {key}, input: {names[0]}, answer: ...}}`"
            return f"`{key}` may be the instruction to `{names[0]}`: give {fields}, or `prompt: {names[0]}` alone"
    return None


def _layout(name: str, row: Mapping[str, Any], **changes: Any) -> Layout:
    fields = replace(FORMATS[name].fields, **changes)
    return Layout(format=name, fields=replace(fields, system=_system(row, fields)))


def _system(row: Mapping[str, Any], fields: Fields) -> str | None:
    """The key of the system text. Where two are filled, the first, and the other is named as a field that is unread."""
    given = [name for name in SYSTEMS if row.get(name) not in (None, "")]
    return given[0] if given else fields.system


def _pairs(row: Mapping[str, Any]) -> Layout | None:
    if row.get("chosen") is not None and row.get("rejected") is not None:
        prompts = [name for name in PROMPTS if row.get(name) not in (None, "")]
        prompts += [name for name in _LISTS if _is_open(name, row)]
        prompt = prompts[0] if prompts else "prompt"
        return _layout("preference", row, prompt=prompt)
    if {"conversation_a", "conversation_b", "winner"} <= row.keys():
        return _layout("preference", row, chosen="conversation_a", rejected="conversation_b")
    return None


def _is_open(key: str, row: Mapping[str, Any]) -> bool:
    """Whether a key holds messages of which the last waits for an answer."""
    value = row.get(key)
    if not isinstance(value, list) or _with_turns(key, value, row) is None or not isinstance(value[-1], Mapping):
        return False
    roles = {ROLES.get(str(value[-1].get(name)).strip().lower()) for name in ROLE_KEYS}
    return bool(roles & {"user", "tool"})


def _messages(row: Mapping[str, Any]) -> Layout | None:
    for key in _LISTS:
        if (found := _with_turns(key, row.get(key), row)) is not None:
            return found
    return None


def _with_turns(key: str, value: Any, row: Mapping[str, Any]) -> Layout | None:
    """The layout of a list of messages; None for another value."""
    if isinstance(value, str):
        value = _loaded(value)
    if isinstance(value, Mapping) and value:
        lists = [column for column in value.values() if isinstance(column, list)]
        value = [{name: None for name in value}] if len(lists) == len(value) else None
    if not isinstance(value, list) or not value:
        return None
    first = value[0]
    if isinstance(first, str):
        return _layout("turns", row, messages=key) if all(isinstance(turn, str) for turn in value) else None
    if not isinstance(first, Mapping):
        return None
    role = next((name for name in ROLE_KEYS if name in first), None)
    content = next((name for name in CONTENT_KEYS if name in first), None)
    if role is not None and (content is not None or _any_content(value, role)):
        content = content or "content"
        base = "sharegpt" if (role, content) == ("from", "value") else "messages"
        return _layout(base, row, messages=key, role=role, content=content)
    names = {name.lower() for name in first}
    if {"input", "output"} <= names or any(ROLES.get(name) == "assistant" for name in names):
        return _layout("turns", row, messages=key)
    return None


def _any_content(turns: Sequence[Any], role: str) -> bool:
    """Whether messages without a content key are still messages: tool calls may be all they hold."""
    return role == "role" and any(isinstance(turn, Mapping) and "tool_calls" in turn for turn in turns)


def _are_calls(value: Any) -> bool:
    """Whether answers are calls of functions: a list of objects with arguments, or JSON text."""
    if isinstance(value, str):
        return _loaded(value) is not None
    return isinstance(value, list) and any(isinstance(e, Mapping) and "arguments" in e for e in value)


def _loaded(text: str) -> Any:
    if not text.lstrip().startswith(("[", "{")):
        return None
    try:
        return nesting.loads(text)
    except ValueError:
        return None


def _ranked(row: Mapping[str, Any]) -> Layout | None:
    for key in _ANSWER_LISTS:
        value = row.get(key)
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            text = next((name for name in _ANSWER_TEXTS if name in value[0]), None)
            prompt = next((name for name in PROMPTS if isinstance(row.get(name), str)), None)
            if text is not None and prompt is not None:
                return _layout("ranked", row, prompt=prompt, answers=key, answer=text)
    return None


def _prompt_answer(row: Mapping[str, Any]) -> Layout | None:
    """A prompt and an answer, each under exactly one of the usual names."""
    kinds = str | list
    answers = [name for name in ANSWERS if isinstance(row.get(name), kinds)]
    prompts = [name for name in PROMPTS if isinstance(row.get(name), kinds)]
    inputs = [name for name in INPUTS if isinstance(row.get(name), str)]
    if not prompts and not inputs:  # a list of messages is the prompt itself, whatever its name
        inputs = [name for name in INPUTS if _is_open(name, row)]
    if not answers or not (prompts or inputs):
        return None
    if prompts[:1] == ["instruction"] and answers[0] == "output":
        input_key = inputs[0] if inputs else "input"
        return _layout("alpaca", row, input=input_key)
    if not prompts:
        return _layout("prompt_answer", row, prompt=inputs[0], answer=answers[0])
    return _layout("prompt_answer", row, prompt=prompts[0], answer=answers[0], input=inputs[0] if inputs else None)
