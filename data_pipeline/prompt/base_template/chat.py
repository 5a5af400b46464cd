"""From a conversation to what a chat template sees: messages and tools as `apply_chat_template` gets them.

In every text the reserved character U+FDD0 is put inside each control token that it spells, so that none can be found
there. The exported template does the same (`wrapper.py`), and the tokenizer takes the character out again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline.conversation import Conversation, Message
from data_pipeline.prompt.base_template.template import ConditionPlace
from data_pipeline.text_rules import RESERVED_CHARACTER

Plain = Callable[[str], str]
LINE = "\n"  # between a condition and what follows it


@dataclass(frozen=True, kw_only=True)
class Chat:
    """What a template sees of a conversation. messages: with the system message. first: how many come before the first
    message of the conversation. condition: as it has to be shown, empty for none. lead: what follows every prompt for
    an answer, and begins it (a condition placed there).
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Any] | None
    first: int
    condition: str
    lead: str

    def variables(self, num_messages: int | None = None, *, asks: bool = False) -> dict[str, Any]:
        """For rendering the first messages (None: all). asks: with the prompt for an answer after them."""
        return {
            "messages": list(self.messages[:num_messages]),
            "tools": self.tools,
            "documents": None,
            "add_generation_prompt": asks,
        }


def plain_for(special_tokens: Sequence[str]) -> Plain:
    """A function that makes a text plain: no control token can be found in it."""
    if not special_tokens:
        return lambda text: text
    find = re.compile("|".join(map(re.escape, special_tokens))).search

    def plain(text: str) -> str:
        if find(text) is None:
            return text
        for token in special_tokens:  # one after the other, as the exported template does
            text = text.replace(token, token[:1] + RESERVED_CHARACTER + token[1:])
        return text

    return plain


def plain_value(value: Any, plain: Plain) -> Any:
    """A JSON value with all its texts made plain, names included."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, dict):
        return {plain(key): plain_value(item, plain) for key, item in value.items()}
    if isinstance(value, list):
        return [plain_value(item, plain) for item in value]
    return value


def chat_of(conversation: Conversation, condition: str, place: ConditionPlace, plain: Plain) -> Chat:
    """A conversation under a condition."""
    system, lead = conversation.system, ""
    if condition and place == "system":
        system = condition + LINE + system if system else condition
    elif condition:
        lead = plain(condition + LINE)
    messages = [_message(message, lead, plain) for message in conversation.messages]
    head = [{"role": "system", "content": plain(system)}] if system else []
    tools = plain_value(json.loads(conversation.tools), plain) if conversation.tools else None
    return Chat(messages=[*head, *messages], tools=tools, first=len(head), condition=plain(condition), lead=lead)


def _message(message: Message, lead: str, plain: Plain) -> dict[str, Any]:
    content = plain(message.content)
    if message.role != "assistant":
        found: dict[str, Any] = {"role": message.role, "content": content}
        if message.name is not None:
            found["name"] = plain(message.name)
        if message.tool_call_id is not None:
            found["tool_call_id"] = plain(message.tool_call_id)
        return found
    found = {"role": "assistant", "content": lead + content}
    if message.reasoning:
        # both names, as `transformers` gives a template that knows only one of them
        found["reasoning_content"] = found["thinking"] = plain(message.reasoning)
    if message.tool_calls:
        found["tool_calls"] = [
            {
                **({} if call.id is None else {"id": plain(call.id)}),
                "type": "function",
                "function": {
                    "name": plain(call.name),
                    "arguments": plain_value(json.loads(call.arguments), plain),
                },
            }
            for call in message.tool_calls
        ]
    return found
