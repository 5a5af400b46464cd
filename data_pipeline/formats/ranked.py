"""Format `ranked`: a prompt with a list of answers, each an object with its text, model, rank or score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data_pipeline.formats.fields import Fields
from data_pipeline.formats.known_keys import ALWAYS_HARMLESS
from data_pipeline.formats.row_format import ParsedRow, RowFormat
from data_pipeline.formats.transcripts import prompt_messages
from data_pipeline.formats.unread import UnreadFieldError, content_leaves
from data_pipeline.formats.values import list_of, message_of, object_of, system_of


class RankedReader:
    """Reads every answer of a row as one conversation."""

    def __init__(self, fields: Fields, ignored: frozenset[str]) -> None:
        self._fields, self._ignored = fields, ignored
        self._known = frozenset((*ignored, f"{fields.answers}.{fields.answer}", f"{fields.answers}.{fields.system}"))

    def __call__(self, row: Any) -> Sequence[ParsedRow]:
        """The conversations of a row, one for each answer. Dotted names of fields reach into each answer.

        The system text is the answer's own, or that of the row.
        """
        fields = self._fields
        key, text_key, prompt_key = fields.answers or "", fields.answer or "", fields.prompt or ""
        parsed = []
        for number, item in enumerate(list_of(row.get(key), row, key)):
            answer = object_of(item, f"{key}[{number}]")
            if not answer.keys() <= ALWAYS_HARMLESS:
                for found in content_leaves(answer, f"{key}.", self._known):
                    raise UnreadFieldError(*found)
            messages = prompt_messages(row.get(prompt_key), prompt_key)
            messages.append(message_of("assistant", answer.get(text_key), None, f"{key}[{number}].{text_key}"))
            system = system_of(answer if fields.system in answer else row, fields.system)
            own = {**row, key: answer}
            parsed.append(ParsedRow(system=system, messages=messages, answer=str(number + 1), own=own))
        return parsed


RANKED = RowFormat(
    name="ranked",
    fields=Fields(prompt="prompt", answers="answers", answer="answer"),
    parser=RankedReader,
    example={
        "prompt": "What is 6 times 7?",
        "answers": [
            {"answer": "42.", "model": "large", "rank": 1},
            {"answer": "41.", "model": "small", "rank": 2},
        ],
    },
)
