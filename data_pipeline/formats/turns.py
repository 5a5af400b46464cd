"""Format `turns`: texts of user and assistant in turn, or objects that hold a prompt and its answer."""

from __future__ import annotations

from data_pipeline.formats.chat import ChatReader
from data_pipeline.formats.fields import Fields
from data_pipeline.formats.row_format import RowFormat

TURNS = RowFormat(
    name="turns",
    fields=Fields(messages="conversation"),
    parser=ChatReader,
    example={"conversation": ["What is 6 times 7?", "42.", "And 6 times 8?", "48."]},
)
