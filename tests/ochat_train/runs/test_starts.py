"""When a run was started, and what its starts add up to."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from ochat_train.runs.starts import RunStart, spent, utc_time
from ochat_train.training.outputs import MetricsWriter
from tests.support.results import no_trackers, run_facts, step_metrics


def start(time: str, *, previous_end: str | None = None, device: str = "cuda", ranks: int = 8) -> RunStart:
    return RunStart(
        step=0,
        time=f"2026-11-27T{time}+00:00",
        previous_end=previous_end and f"2026-11-27T{previous_end}+00:00",
        hardware={"ranks": ranks, "device": device},
        versions={},
    )


def test_starts_add_up_to_gpu_hours_without_the_time_between_them() -> None:
    starts = [start("01:00:00"), start("05:00:00", previous_end="02:30:00", ranks=4)]
    found = spent(starts, last_time="2026-11-27T06:00:00.000+00:00")
    assert found is not None
    assert (found.seconds, found.gpu_hours) == (2.5 * 3600, 1.5 * 8 + 1.0 * 4)


def test_a_start_that_logged_no_step_and_a_clock_that_was_set_back_count_nothing() -> None:
    starts = [start("01:00:00"), start("05:00:00", previous_end=None), start("07:00:00", previous_end="04:00:00")]
    found = spent(starts, last_time="2026-11-27T07:30:00+00:00")
    assert found is not None
    assert found.seconds == 1800


def test_processes_without_gpus_have_no_gpu_hours() -> None:
    found = spent([start("01:00:00", device="cpu")], last_time="2026-11-27T02:00:00+00:00")
    assert found is not None
    assert (found.seconds, found.gpu_hours) == (3600, None)
    assert spent([], last_time="2026-11-27T02:00:00+00:00") is None
    assert spent([start("01:00:00")], last_time=None) is None


def test_time_is_utc_and_read_back() -> None:
    time = datetime.fromisoformat(utc_time())
    assert time.utcoffset() == timedelta(0)


def test_a_start_notes_when_the_one_before_it_ended_before_lost_lines_are_removed(tmp_path: Path) -> None:
    """The steps after the checkpoint are lost, and so is the time that they took; it was paid for all the same."""
    facts = run_facts(tmp_path)
    first = MetricsWriter(tmp_path, no_trackers(tmp_path), first_step=0, facts=facts)
    for step in range(1, 8):
        first.write(step_metrics(step, time=f"2026-11-27T01:00:0{step}+00:00"))
    second = MetricsWriter(tmp_path, no_trackers(tmp_path), first_step=5, facts=facts)
    assert second.failure is None
    starts = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    assert [(row["step"], row["previous_end"]) for row in starts] == [(0, None), (5, "2026-11-27T01:00:07+00:00")]
    assert [RunStart.from_json(row).to_json() for row in starts] == starts
    kept = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["time"][-8:-6] for row in kept] == ["01", "02", "03", "04", "05"], "times of kept steps stay"


@pytest.mark.parametrize("text", ["", "\n", "no json\n", "[1]\n", '{"step": 1}\n', '{"time": 3}\n'])
def test_an_end_that_cannot_be_read_is_not_known(text: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(text)
    MetricsWriter(tmp_path, no_trackers(tmp_path), first_step=0, facts=run_facts(tmp_path))
    assert json.loads((tmp_path / "starts.jsonl").read_text())["previous_end"] is None
