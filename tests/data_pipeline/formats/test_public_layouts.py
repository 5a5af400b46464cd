"""Rows in the layouts of public datasets are read by `format: auto`, and exactly their answers are supervised.

The independent count: the tokens with a weight, decoded, are the answers that plain Python finds in the row.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer

from data_pipeline.errors import UserError
from data_pipeline.formats.detect import layout_of
from data_pipeline.formats.table import FORMATS
from data_pipeline.settings.sources import SourceSettings
from tests.support.data import control_ids, make_job, prepare_rows, tokenizer_spec
from tests.support.doc_pages import section
from tests.support.processes import ROOT
from tests.support.public_layouts import CLASS, LAYOUTS, PAIR, PublicLayout, table
from tests.support.rows import write_jsonl

CLASSES = {
    "expert": {"condition": "GPT4 Correct", "weight": 1.0},
    "other": {"condition": "GPT3", "weight": 0.1},
    "1": {"condition": "First", "weight": 1.0},
    "2": {"condition": "Second", "weight": 0.5},
}
SCORED = {"classes": {"expert": {"condition": "GPT4 Correct"}}, "beta": 1.0}


def supervised_texts(
    row_ids: list[int], weights: list[float], backend: Tokenizer, controls: frozenset[int]
) -> list[str]:
    """The text of each stretch of supervised tokens."""
    stretches = groupby(zip(row_ids, weights, strict=True), key=lambda pair: pair[1] > 0)
    texts = [[token for token, _ in pairs if token not in controls] for is_on, pairs in stretches if is_on]
    return [str(backend.decode(ids)).strip() for ids in texts]


@pytest.mark.parametrize("layout", LAYOUTS, ids=[layout.name for layout in LAYOUTS])
def test_a_public_layout(layout: PublicLayout, tmp_path: Path, small_tokenizer_dir: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [layout.row])
    described = {"path": str(path), "format": "auto", **(layout.source or CLASS)}
    more = SCORED if "reward_field" in described else {"classes": CLASSES}
    settings = {**more, "max_length_tokens": 4096}
    job = make_job(tmp_path / "a", [described], small_tokenizer_dir, ignore_fields=list(layout.ignored), **settings)
    if layout.refused:
        with pytest.raises(UserError, match=layout.refused):
            prepare_rows(job)
        return
    manifest, rows = prepare_rows(job)
    spec = tokenizer_spec(small_tokenizer_dir, "openchat_3.5")
    backend, controls = Tokenizer.from_str(spec.backend), control_ids(spec)
    found = [supervised_texts(row.input_ids, row.loss_weights, backend, controls) for row in rows]
    assert found == [[text.strip() for text in texts] for texts in layout.supervised(layout.row)]
    assert manifest.ledger.dropped == {}
    if layout.ignored:  # the control: without these names it stops
        with pytest.raises(UserError, match="would not be trained on"):
            prepare_rows(make_job(tmp_path / "b", [described], small_tokenizer_dir, **settings))


def test_what_is_found_can_be_written_into_a_recipe() -> None:
    """As `ochat init` does, which reads back what it wrote."""
    for layout in LAYOUTS:
        found = layout_of(layout.row)
        if not isinstance(found, str):
            said = {**(PAIR if FORMATS[found.format].has_pairs else CLASS), **yaml.safe_load(f"{{{found}}}")}
            assert SourceSettings.model_validate({"path": "a", **said}).row_fields == found.fields, layout.name


def test_the_page_has_the_table() -> None:
    page = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")
    assert table() in section(page, "Public datasets")
