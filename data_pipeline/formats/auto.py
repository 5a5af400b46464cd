"""Format `auto`: the layout is found in the rows (`read/layout.py`), and read as one of the other formats."""

from __future__ import annotations

from data_pipeline.formats.fields import Fields
from data_pipeline.formats.row_format import RowFormat

AUTO = RowFormat(name="auto", fields=Fields(), parser=None, example=None)
