"""Format `preference`: two answers to a prompt, a chosen and a rejected one. A row gives two conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.errors import RowError
from data_pipeline.formats.fields import Fields
from data_pipeline.formats.prompt_answer import after_prompt, answer_turn, read_turns
from data_pipeline.formats.row_format import ParsedRow, RowFormat
from data_pipeline.formats.transcripts import is_transcript, prompt_messages, transcript
from data_pipeline.formats.values import message_of, missing_key, system_of
from data_pipeline.text_rules import shown

WINNER = "winner"  # of rows that compare two models, whose answers are not in order
_WINNERS: Mapping[str, tuple[str, str]] = {
    "model_a": ("chosen", "rejected"),
    "model_b": ("rejected", "chosen"),
    "tie": ("tie", "tie"),
    "tie (bothbad)": ("bothbad", "bothbad"),
    "both_bad": ("bothbad", "bothbad"),
}
ANSWERS = ("chosen", "rejected", "tie", "bothbad")


class PreferenceReader:
    """Reads both answers of a row: texts after a prompt, lists of messages, or transcripts."""

    def __init__(self, fields: Fields, ignored: frozenset[str]) -> None:
        self._fields, self._ignored = fields, ignored

    def __call__(self, row: Any) -> Sequence[ParsedRow]:
        """The two conversations of a row."""
        fields = self._fields
        assert fields.chosen is not None, "a format names it"
        assert fields.rejected is not None, "a format names it"
        keys = (fields.chosen, fields.rejected)
        for key in keys:
            if key not in row:
                raise missing_key(row, key)
        names = self._names(row) if keys == ("conversation_a", "conversation_b") else ("chosen", "rejected")
        parsed = []
        for key, name in zip(keys, names, strict=True):
            one = self._conversation(row, key)
            parsed.append(ParsedRow(system=one.system, messages=one.messages, num_cut=one.num_cut, answer=name))
        return parsed

    def _names(self, row: Mapping[str, Any]) -> tuple[str, str]:
        winner = row.get(WINNER)
        if not isinstance(winner, str) or winner not in _WINNERS:
            raise RowError("wrong_type", f"{WINNER}: expected one of {', '.join(_WINNERS)}, found {shown(winner)}")
        return _WINNERS[winner]

    def _conversation(self, row: Mapping[str, Any], key: str) -> ParsedRow:
        fields, value = self._fields, row[key]
        prompt = row.get(fields.prompt) if fields.prompt and fields.prompt not in self._ignored else None
        if isinstance(value, list):
            return self._of_messages(row, key, value)
        if isinstance(prompt, list) or isinstance(value, Mapping):
            return self._of_messages(row, key, [answer_turn(value, prompt)])
        if prompt in (None, "") and is_transcript(value):
            return ParsedRow(system=system_of(row, fields.system), messages=transcript(value, key))
        messages = prompt_messages(prompt, fields.prompt or "prompt")
        messages.append(message_of("assistant", value, None, key))
        return ParsedRow(system=system_of(row, fields.system), messages=messages)

    def _of_messages(self, row: Mapping[str, Any], key: str, answer: list[Any]) -> ParsedRow:
        """An answer that is a list of messages: the whole conversation, or what comes after the prompt."""
        fields = self._fields
        turns = after_prompt(row, fields.prompt, answer, key, self._ignored)
        return read_turns(turns, key=key, system=row.get(fields.system or ""), ignored=self._ignored)


PREFERENCE = RowFormat(
    name="preference",
    fields=Fields(prompt="prompt", chosen="chosen", rejected="rejected"),
    parser=PreferenceReader,
    example={"prompt": "What is 6 times 7?", "chosen": "42.", "rejected": "41."},
    has_pairs=True,
)
