"""The formats that a source can have, in the order in which `ochat init` tries them."""

from __future__ import annotations

from collections.abc import Mapping

from data_pipeline.formats.alpaca import ALPACA
from data_pipeline.formats.messages import MESSAGES
from data_pipeline.formats.openchat import OPENCHAT
from data_pipeline.formats.openchat_tokenized import OPENCHAT_TOKENIZED
from data_pipeline.formats.row_format import RowFormat
from data_pipeline.formats.sharegpt import SHAREGPT

FORMATS: Mapping[str, RowFormat] = {
    row_format.name: row_format for row_format in (OPENCHAT, SHAREGPT, MESSAGES, ALPACA, OPENCHAT_TOKENIZED)
}
TEXT_FORMATS: tuple[str, ...] = tuple(name for name, row_format in FORMATS.items() if not row_format.holds_tokens)
