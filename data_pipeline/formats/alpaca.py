"""Format `alpaca`: `instruction`, `input` and `output`, with an optional `history` of earlier pairs."""

from __future__ import annotations

from data_pipeline.formats.fields import Fields
from data_pipeline.formats.prompt_answer import PromptAnswerReader
from data_pipeline.formats.row_format import RowFormat

ALPACA = RowFormat(
    name="alpaca",
    fields=Fields(prompt="instruction", input="input", answer="output", history="history"),
    parser=PromptAnswerReader,
    example={
        "instruction": "Add the numbers.",
        "input": "6 and 7",
        "output": "13",
        "history": [["Hello", "Hi. What can I do for you?"]],
    },
)
