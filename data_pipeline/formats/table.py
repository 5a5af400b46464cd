"""The formats that a source can have."""

from __future__ import annotations

from collections.abc import Mapping

from data_pipeline.formats.alpaca import ALPACA
from data_pipeline.formats.auto import AUTO
from data_pipeline.formats.messages import MESSAGES
from data_pipeline.formats.openchat import OPENCHAT
from data_pipeline.formats.openchat_tokenized import OPENCHAT_TOKENIZED
from data_pipeline.formats.preference import PREFERENCE
from data_pipeline.formats.prompt_answer import PROMPT_ANSWER
from data_pipeline.formats.ranked import RANKED
from data_pipeline.formats.row_format import RowFormat
from data_pipeline.formats.sharegpt import SHAREGPT
from data_pipeline.formats.turns import TURNS

FORMATS: Mapping[str, RowFormat] = {
    row_format.name: row_format
    for row_format in (
        AUTO,
        OPENCHAT,
        SHAREGPT,
        MESSAGES,
        TURNS,
        ALPACA,
        PROMPT_ANSWER,
        PREFERENCE,
        RANKED,
        OPENCHAT_TOKENIZED,
    )
}
TEXT_FORMATS: tuple[str, ...] = tuple(name for name, row_format in FORMATS.items() if row_format.parser is not None)
