"""Class table and ledger as rows of text, which terminals, pages and model cards share."""

from __future__ import annotations

from dataclasses import replace

import pytest

from data_pipeline.ledger import Ledger
from data_pipeline.look.tables import CLASS_HEAD, class_rows, ledger_reasons, ledger_summary
from data_pipeline.prepared.dataset import PreparedClass

ROW = PreparedClass(
    name="a\x1b[2J",
    condition="",
    weight=0.1,
    conversations=1234,
    tokens=56_789,
    supervised_tokens=2345,
    weight_share=0.256,
    smallest_weight=0.1,
    largest_weight=0.1,
    effective_conversations=1200.6,
)
LEDGER = Ledger(
    read=1010,
    kept=1000,
    truncated=3,
    tail_trimmed=0,
    control_text_kept_plain=2,
    condition_left_out=1,
    text_not_recovered=4,
    dropped={"overlong": 9, "no_text": 1},
    examples={"overlong": ["x.jsonl:2: too long"], "truncated": ["x.jsonl:3: cut"]},
)


def test_a_class_is_one_row() -> None:
    [row] = class_rows([ROW])
    assert dict(zip(CLASS_HEAD, row, strict=True)) == {
        "class": r"a\u001b[2J",
        "condition": "''",
        "weight": "0.1",
        "conversations": "1,234",
        "effective": "1,201",
        "tokens": "56,789",
        "supervised": "2,345",
        "weight share": "25.6%",
    }


def test_names_and_conditions_are_written_as_the_caller_wants() -> None:
    [row] = class_rows([ROW], name=repr, condition=lambda text: text or "none")
    assert row[:2] == (r"'a\x1b[2J'", "none")


@pytest.mark.parametrize(
    ("smallest", "largest", "text"),
    [(0.1, 0.5, "0.1 to 0.5"), (0.1, 0.1 + 1e-9, "0.1"), (None, None, "in rows")],
)
def test_weights_from_rows_are_shown_as_their_range(smallest: float | None, largest: float | None, text: str) -> None:
    [row] = class_rows([replace(ROW, weight=None, smallest_weight=smallest, largest_weight=largest)])
    assert row[2] == text


def test_a_ledger_is_a_line_and_its_reasons() -> None:
    assert ledger_summary(LEDGER) == (
        "read 1,010 = kept 1,000 + dropped 10; truncated 3, unsupervised tail trimmed 0, control strings kept as text "
        "2, condition left out 1"
    )
    found = [(row.reason, row.effect, row.num_conversations, list(row.examples)) for row in ledger_reasons(LEDGER)]
    assert found == [
        ("overlong", "dropped", 9, ["x.jsonl:2: too long"]),
        ("no_text", "dropped", 1, []),
        ("truncated", "kept, cut", 3, ["x.jsonl:3: cut"]),
        ("text_not_recovered", "kept, cut", 4, []),
    ]


def test_an_older_ledger_lacks_a_count() -> None:
    values = {key: value for key, value in vars(LEDGER).items() if key != "text_not_recovered"}
    assert [row.reason for row in ledger_reasons(Ledger(**values))] == ["overlong", "no_text", "truncated"]
