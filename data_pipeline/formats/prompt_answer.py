"""Format `prompt_answer`: one prompt and one answer, with an optional input, history and system text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.conversation import Message
from data_pipeline.errors import RowError
from data_pipeline.formats.chat import ChatReader
from data_pipeline.formats.fields import ROLES, Fields
from data_pipeline.formats.row_format import ParsedRow, RowFormat
from data_pipeline.formats.transcripts import prompt_messages
from data_pipeline.formats.unread import UnreadFieldError
from data_pipeline.formats.values import message_of, missing_key, system_of, text_of
from data_pipeline.text_rules import shown


class PromptAnswerReader:
    """Reads rows with a prompt and an answer. Either may be a list of messages instead of text."""

    def __init__(self, fields: Fields, ignored: frozenset[str]) -> None:
        self._fields = fields
        self._ignored = ignored

    def __call__(self, row: Any) -> Sequence[ParsedRow]:
        """The conversation of a row."""
        fields = self._fields
        assert fields.prompt is not None, "a format names it"
        assert fields.answer is not None, "a format names it"
        if fields.prompt not in row and fields.answer not in row:
            raise missing_key(row, fields.prompt)
        if isinstance(row.get(fields.prompt), list) or isinstance(row.get(fields.answer), list):
            return [self._of_messages(row)]
        system = system_of(row, fields.system)
        messages = [*self._history(row), *self._prompt(row)]
        messages.append(message_of("assistant", row.get(fields.answer), None, fields.answer))
        return [ParsedRow(system=system, messages=messages)]

    def _prompt(self, row: Mapping[str, Any]) -> list[Message]:
        """The prompt, with the input after a blank line; either of them alone where the other is empty."""
        prompt_key, input_key = self._fields.prompt or "", self._fields.input
        extra = row.get(input_key) if input_key else None
        prompt = row.get(prompt_key)
        extra_text = "" if extra in (None, "") else text_of(extra, input_key or "")
        if not extra_text.strip():
            return prompt_messages(prompt, prompt_key)
        text = "" if prompt is None else text_of(prompt, prompt_key)
        return [message_of("user", f"{text}\n\n{extra_text}" if text.strip() else extra_text, None, prompt_key)]

    def _history(self, row: Mapping[str, Any]) -> list[Message]:
        key = self._fields.history
        history = (row.get(key) if key else None) or []
        if not isinstance(history, list):
            raise RowError("wrong_type", f"{key}: expected a list, found {shown(history)}")
        messages = []
        for number, pair in enumerate(history):
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise RowError("wrong_type", f"{key}[{number}]: expected [prompt, answer], found {shown(pair)}")
            messages.append(message_of("user", pair[0], None, f"{key}[{number}][0]"))
            messages.append(message_of("assistant", pair[1], None, f"{key}[{number}][1]"))
        return messages

    def _of_messages(self, row: Mapping[str, Any]) -> ParsedRow:
        """A prompt or an answer that is a list of messages."""
        fields = self._fields
        if self._history(row) or (fields.input is not None and row.get(fields.input)):
            raise RowError("wrong_type", f"{fields.prompt}: a list of messages, beside `{fields.input}` or a history")
        answer = row.get(fields.answer or "")
        after = answer if isinstance(answer, list) else [answer_turn(answer, row.get(fields.prompt or ""))]
        turns = after_prompt(row, fields.prompt, after, fields.answer or "", self._ignored)
        return read_turns(turns, key=fields.answer or "", system=row.get(fields.system or ""), ignored=self._ignored)


def answer_turn(answer: Any, prompt: Any) -> Mapping[str, Any]:
    """An answer as a turn after the turns of a prompt, under the same keys. One that is a turn is one already."""
    if isinstance(answer, Mapping):
        return answer
    is_sharegpt = isinstance(prompt, list) and prompt and isinstance(prompt[0], Mapping) and "from" in prompt[0]
    return {"from": "gpt", "value": answer} if is_sharegpt else {"role": "assistant", "content": answer}


def after_prompt(
    row: Mapping[str, Any], prompt_key: str | None, answer: list[Any], key: str, ignored: frozenset[str]
) -> list[Any]:
    """The turns of a conversation from its prompt and the turns of its answer, which may repeat the prompt.

    Raises UnreadFieldError where the answer begins with a prompt and the row's is no message of it.
    """
    prompt = row.get(prompt_key) if prompt_key and prompt_key not in ignored else None
    if prompt in (None, "", []):
        return answer
    turns = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    own = next((speaker for turn in answer if (speaker := _said(turn)[0]) != "system"), "")
    if own != "user":
        if answer and isinstance(answer[0], Mapping) and "from" in answer[0] and not isinstance(prompt, list):
            turns = [{"from": "human", "value": prompt}]
        return [*turns, *answer]
    said = [_said(turn) for turn in answer]
    texts = [text for _, text in said]
    is_there = _said(turns[0])[1] in texts if len(turns) == 1 else [_said(turn) for turn in turns] == said[: len(turns)]
    if not is_there:
        raise UnreadFieldError(prompt_key or "", prompt, f"a prompt, and `{key}` another,")
    return answer


def _said(turn: Any) -> tuple[str, Any]:
    """Role and text of a turn."""
    if not isinstance(turn, Mapping):
        return "", turn
    role, text = (turn.get("role") or turn.get("from")), turn.get("content", turn.get("value"))
    name = str(role).strip().lower()
    return ROLES.get(name, name), text.strip() if isinstance(text, str) else text


def read_turns(turns: list[Any], *, key: str, system: Any, ignored: frozenset[str]) -> ParsedRow:
    """A conversation from objects of `role` and `content`, or of `from` and `value`."""
    first = turns[0] if turns else None
    is_sharegpt = isinstance(first, Mapping) and "from" in first
    names = Fields(messages=key, role="from" if is_sharegpt else "role", content="value" if is_sharegpt else "content")
    [parsed] = ChatReader(names, ignored)({key: turns, "system": system})
    return parsed


PROMPT_ANSWER = RowFormat(
    name="prompt_answer",
    fields=Fields(prompt="prompt", answer="completion"),
    parser=PromptAnswerReader,
    example={"prompt": "What is 6 times 7?", "completion": "42."},
)
