"""Format `openchat_tokenized`: what OpenChat's `ochat.data.generate_dataset` writes.

`read/openchat_parquet.py` reads it. The class of a row is found by the condition among its tokens, and its weights are
the loss weights.
"""

from __future__ import annotations

from data_pipeline.formats.fields import Fields
from data_pipeline.formats.row_format import RowFormat

OPENCHAT_TOKENIZED = RowFormat(
    name="openchat_tokenized",
    fields=Fields(system=None, id=None, tools=None),
    parser=None,
    example=None,
    carries_class=True,
    holds_tokens=True,
)
