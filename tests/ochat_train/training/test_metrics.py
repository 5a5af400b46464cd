"""What a run writes of its steps: the sums of an epoch, and files that a resumed run continues, damaged or not."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch

from ochat_train.distributed.ranks import Ranks
from ochat_train.report.text import class_sums_text
from ochat_train.runs.lines import read_lines
from ochat_train.training.metrics import EpochSums
from ochat_train.training.outputs import MetricsWriter, open_outputs
from tests.support.results import no_trackers, step_metrics

# ---- the table of an epoch ----


@pytest.mark.parametrize(
    ("first_step", "last_step", "head", "tokens"),
    [
        (0, 8, "training, epoch 1", 4),  # epochs of 4 steps: all of the second one
        (4, 8, "training, epoch 1", 4),
        (2, 8, "training, epoch 1", 4),  # the first epoch is partial, and another is shown
        (6, 8, "training, epoch 1, steps 7 to 8", 2),
        (0, 3, "training, epoch 0, steps 1 to 3", 3),  # max_steps ends it
        (5, 6, "training, epoch 1, steps 6 to 6", 1),
    ],
)
def test_the_table_of_an_epoch_says_which_steps_it_holds(
    first_step: int, last_step: int, head: str, tokens: int
) -> None:
    sums = EpochSums(num_classes=1, first_step=first_step, steps_per_epoch=[4, 4])
    for step in range(first_step, last_step):
        sums.add(step // 4, torch.ones(1, 5, dtype=torch.float64), [1])
    summary = sums.metrics(["a"])
    assert summary is not None
    assert class_sums_text(summary).splitlines()[1] == head
    assert summary.means.tokens == tokens


def test_there_is_no_table_where_no_step_was_done() -> None:
    assert EpochSums(num_classes=1, first_step=8, steps_per_epoch=[4, 4]).metrics(["a"]) is None


# ---- files ----

# Blocks that were never written, half a line that the next one was written behind, other bytes, and what is not a row
DAMAGED = [
    b"\0" * 4096,
    b'{"step": 3, "lo{"step": 4, "loss": 1.0}',
    b'{"step": 4, "a": "\xff"}',
    b'{"step": NaN}',
    b"7",
    b"{}",
]


def damaged_file(path: Path) -> None:
    rows = [json.dumps({"step": step, "text": "x\u2028\r"}, ensure_ascii=False).encode() for step in (1, 2, 5, 6)]
    path.write_bytes(b"\n".join([*rows[:2], *DAMAGED, *rows[2:], b'{"step": 7, "lo']))


@pytest.mark.parametrize("name", ["metrics.jsonl", "validation.jsonl", "samples.jsonl"])
def test_damaged_lines_do_not_keep_a_run_from_going_on(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged_file(tmp_path / name)
    writer = MetricsWriter(tmp_path, no_trackers(tmp_path), first_step=5)
    notice = f"{tmp_path / name}: left out 6 line(s) that are damaged and cannot be read: 3, 4, 5, 6, 7, 8"
    assert capsys.readouterr().err.splitlines() == [notice]
    writer.write(step_metrics(6))
    kept = [{"step": step, "text": "x\u2028\r"} for step in (1, 2, 5)]
    assert read_lines(tmp_path / name) == kept + [step_metrics(6).to_json()] * (name == "metrics.jsonl")
    assert capsys.readouterr().err == "", "the damaged lines are gone"


def test_a_file_of_damaged_lines_has_a_short_notice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b"\0\n" * 1000)
    assert read_lines(tmp_path / "metrics.jsonl") == []
    assert capsys.readouterr().err.endswith(
        "left out 1,000 line(s) that are damaged and cannot be read: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ...\n"
    )


def test_the_progress_line_is_closed_whatever_ends_a_run(tmp_path: Path) -> None:
    ranks = Ranks(rank=0, num_ranks=1, device=torch.device("cpu"))
    opened, closed = open_outputs(tmp_path, no_trackers(tmp_path), ranks, first_step=0, num_steps=4), []
    with contextlib.suppress(ZeroDivisionError), opened as (writer, line):
        line.close = lambda: closed.append(True)  # type: ignore[method-assign]
        assert writer is not None
        writer.write(step_metrics(1))
        raise ZeroDivisionError
    assert closed == [True]
    assert read_lines(tmp_path / "metrics.jsonl") == [step_metrics(1).to_json()]
