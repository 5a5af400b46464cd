"""From the messages of a request to the ids of training.

The template of the export writes the prompt, by the same function as in training. What it would leave out silently is
refused, and so is an export whose template lets a person write control tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.text_rules import RESERVED_CHARACTER
from ochat_train.inference.token_texts import TokenTexts
from ochat_train.serving.errors import ApiError, bad_request
from ochat_train.serving.requests import ChatRequest, Message, PromptRequest
from ochat_train.serving.served import OfferedModel
from ochat_train.system.pretrained import PROBE, TemplateError, prompt_ids

_PROBES = {"system", "tool", "tools", "tool_calls", "reasoning"}


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """ids: [T]. text: what the template wrote, control tokens included."""

    ids: list[int]
    text: str


class PromptWriter:
    """Prompts of one model. Not safe for several threads at once: tokenizers are not."""

    def __init__(self, model: OfferedModel) -> None:
        self._model, self._tokenizer = model, model.tokenizer

    def ids(self, request: PromptRequest, condition: str | None) -> list[int]:
        """The ids of a prompt. Raises ApiError (400) with the template's reason where it has no place for something."""
        messages, variables = self._checked(request, condition)
        ids: list[int] = self._write(messages, **variables)
        return ids

    def prompt(self, request: PromptRequest, condition: str | None) -> Prompt:
        """The same with its text."""
        messages, variables = self._checked(request, condition)
        ids = self._write(messages, **variables)
        text = self._write(messages, tokenize=False, **variables)
        return Prompt(ids=ids, text=text.replace(RESERVED_CHARACTER, ""))

    def token_texts(self, ids: Sequence[int]) -> list[dict[str, Any]]:
        """Each id with its text, and whether it is a control token."""
        control, vocabulary = self._control_ids, self._tokenizer.convert_ids_to_tokens(list(ids))
        return [
            {"id": i, "text": name if i in control else self._text_of(i), "is_control": i in control}
            for i, name in zip(ids, vocabulary, strict=True)
        ]

    def _text_of(self, token: int) -> str:
        """A part of a character is U+FFFD: JSON holds whole characters only."""
        return self._token_texts.of(token).encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    def check_plain(self) -> None:
        """Raise UserError where a person who types control tokens gets them."""
        typed = "".join(f" {token}" for token in self._control_ids.values())
        messages = [[{"role": "user", "content": text}] for text in ("x", f"x{typed}")]
        try:
            counts = [
                sum(i in self._control_ids for i in self._write(m, **self._variables(None, self._model.default)))
                for m in messages
            ]
        except ApiError as error:
            problem = f"its chat template does not take a message: {error.message}"
            raise UserError(self._tokenizer.name_or_path, problem, "serve a folder of `ochat export`") from None
        if counts[0] != counts[1]:
            raise UserError(
                self._tokenizer.name_or_path,
                "its chat template lets a person who types control tokens write real ones",
                "serve a folder of `ochat export`, whose template does not",
            )

    @cached_property
    def _token_texts(self) -> TokenTexts:
        return TokenTexts(self._tokenizer)

    @cached_property
    def _control_ids(self) -> dict[int, str]:
        return {i: str(token) for i, token in self._tokenizer.added_tokens_decoder.items() if token.special}

    def _checked(self, request: PromptRequest, condition: str | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        messages = [self._message(message, number) for number, message in enumerate(request.messages)]
        if messages[-1]["role"] == "assistant":
            text = "the last message is the assistant's; this server answers, and does not continue answers"
            raise bad_request(text, param=f"messages[{len(messages) - 1}].role")
        variables = self._variables(request.tools or None, condition)
        self._check_names(messages, variables)
        self._check_shown(request, messages)
        return messages, variables

    def _check_shown(self, request: PromptRequest, messages: Sequence[dict[str, Any]]) -> None:
        """Raise ApiError for a part of the conversation that the template leaves out silently."""
        for number, message in enumerate(messages):
            place = f"messages[{number}]"
            parts = {
                message["role"]: (f"{place}.role", message["content"].strip()),
                "tool_calls": (f"{place}.tool_calls", message.get("tool_calls")),
                "reasoning": (f"{place}.reasoning_content", message.get("reasoning_content", "").strip()),
            }
            for name, (param, is_there) in parts.items():
                if is_there and name in _PROBES and name in self._not_shown:
                    raise bad_request(f"the prompt format of this model shows nothing of `{name}`", param=param)
        if request.tools and "tools" in self._not_shown:
            raise bad_request("the prompt format of this model shows nothing of `tools`", param="tools")

    def _variables(self, tools: Any, condition: str | None) -> dict[str, Any]:
        return {
            "add_generation_prompt": True,
            **({} if tools is None else {"tools": tools}),
            **({} if condition is None else {"condition": condition}),
        }

    def _message(self, message: Message, number: int) -> dict[str, Any]:
        """A message as templates take it: without what is not given."""
        place = f"messages[{number}]"
        role = "system" if message.role == "developer" else message.role
        for field in ("tool_calls", "reasoning_content", "reasoning"):
            if getattr(message, field) and role != "assistant":
                text = f"only assistant messages have `{field}`"
                raise bad_request(text, param=f"{place}.{field}")
        if message.tool_call_id and role != "tool":
            raise bad_request("only tool messages have `tool_call_id`", param=f"{place}.tool_call_id")
        if message.content is None and not (message.tool_calls or message.reasoning_content or message.reasoning):
            raise bad_request(f"`{place}.content` is missing", param=f"{place}.content")
        given = {"name": message.name, "tool_call_id": message.tool_call_id}
        fields = {field: text for field, text in given.items() if text}  # many clients send "" for none
        found: dict[str, Any] = {"role": role, "content": message.content or "", **fields}
        if reasoning := self._reasoning(message, place):
            found["reasoning_content"] = reasoning
        if message.tool_calls:
            found["tool_calls"] = [
                self._tool_call(call.model_dump(exclude_none=True), f"{place}.tool_calls[{n}]")
                for n, call in enumerate(message.tool_calls)
            ]
        return found

    def _reasoning(self, message: Message, place: str) -> str:
        """The reasoning, under whichever of its two names."""
        names = {text for text in (message.reasoning_content, message.reasoning) if text}
        if len(names) > 1:
            text = "`reasoning_content` and `reasoning` are two names of one field, and differ"
            raise bad_request(text, param=f"{place}.reasoning")
        return names.pop() if names else ""

    def _tool_call(self, call: dict[str, Any], place: str) -> dict[str, Any]:
        try:
            arguments = json.loads(call["function"]["arguments"] or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            param = f"{place}.function.arguments"
            raise bad_request(f"`{param}` must be a JSON object as text", param=param)
        if self._model.parses_arguments:
            call["function"]["arguments"] = arguments
        return call

    def _check_names(self, messages: Sequence[dict[str, Any]], variables: Mapping[str, Any]) -> None:
        """Raise ApiError for a name that the template leaves out. A tool's is also in the call that it answers."""
        named = [n for n, message in enumerate(messages) if "name" in message and message["role"] != "tool"]
        if not named:
            return
        without = [{k: v for k, v in message.items() if k != "name"} for message in messages]
        if self._write(messages, **variables) == self._write(without, **variables):
            param = f"messages[{named[0]}].name"
            raise bad_request("the prompt format of this model shows nothing of `name`", param=param)

    @cached_property
    def _not_shown(self) -> frozenset[str]:
        """Which of `_PROBES` the template takes and leaves out silently. Tried once."""
        user, arguments = {"role": "user", "content": "x"}, {} if self._model.parses_arguments else "{}"

        def calls(name: str) -> dict[str, Any]:
            call = {"type": "function", "id": "call12345", "function": {"name": name, "arguments": arguments}}
            return {"role": "assistant", "content": "", "tool_calls": [call]}

        function = {"name": PROBE, "description": PROBE, "parameters": {"type": "object", "properties": {}}}
        tried: dict[str, tuple[list[dict[str, Any]], Any]] = {
            "system": ([{"role": "system", "content": PROBE}, user], None),
            "tool": ([user, calls("f"), {"role": "tool", "content": PROBE, "tool_call_id": "call12345"}], None),
            "tools": ([user], [{"type": "function", "function": function}]),
            "tool_calls": ([user, calls(PROBE)], None),
            # last, because some formats show the reasoning of earlier answers no more, as in training
            "reasoning": ([user, {"role": "assistant", "content": "y", "reasoning_content": PROBE}], None),
        }
        assert tried.keys() == _PROBES
        return frozenset(name for name, (messages, tools) in tried.items() if not self._shows_probe(messages, tools))

    def _shows_probe(self, messages: Sequence[dict[str, Any]], tools: Any) -> bool:
        """Whether the probe is in the prompt. A template that refuses it does not leave it out silently."""
        try:
            return PROBE in self._write(messages, tokenize=False, **self._variables(tools, self._model.default))
        except ApiError:
            return True

    def _write(self, messages: Sequence[dict[str, Any]], **variables: Any) -> Any:
        try:
            return prompt_ids(self._tokenizer, messages, **variables)
        except TemplateError as error:
            raise bad_request(f"this conversation has no prompt: {error.reason}", param="messages") from None


def check_length(num_prompt_tokens: int, request: ChatRequest, context_tokens: int) -> int:
    """How many tokens an answer may have at most. Raises ApiError where prompt and answer are over the context."""
    room = context_tokens - num_prompt_tokens
    # LiteLLM and others know an error of this kind by these words, and shorten the conversation then
    limit = f"this model's maximum context length is {context_tokens:,} tokens"
    if room < 1:
        text = f"the prompt has {num_prompt_tokens:,} tokens, and {limit}"
        raise bad_request(text, param="messages", code="context_length_exceeded")
    name = "max_completion_tokens" if request.max_completion_tokens is not None else "max_tokens"
    wanted = request.max_completion_tokens or request.max_tokens or room
    if wanted > room:
        text = (
            f"`{name}` is {wanted:,}, and {room:,} tokens are left: the prompt has {num_prompt_tokens:,}, and {limit}"
        )
        raise bad_request(text, param=name, code="context_length_exceeded")
    return wanted
