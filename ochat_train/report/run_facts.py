"""When and where a run was trained, for how long and for how much, as lines of text."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from ochat_train.report.cost import gpu_hours_text
from ochat_train.report.page import Section, text_cells
from ochat_train.report.progress_line import duration_text
from ochat_train.runs.history import RunHistory
from ochat_train.runs.starts import Hardware, Spent, spent

_NOT_RECORDED = "not recorded: an older version started this run"


def facts_section(history: RunHistory, *, price: float | None) -> Section:
    """`run_facts` as a table."""
    rows = [text_cells(fact) for fact in run_facts(history, price=price).items()]
    return Section(heading="This run", rows=rows)


def run_facts(history: RunHistory, *, price: float | None) -> dict[str, str]:
    """Name and text of each fact. price: of a GPU-hour, in the user's currency; None: not known."""
    last = history.steps[-1]
    facts = {"steps": f"{last.step:,} ({last.nonfinite_steps:,} not finite); last epoch {last.epoch}, counted from 0"}
    starts = history.starts
    found = spent(starts, last_time=last.time)
    if found is None or last.time is None:
        return facts | dict.fromkeys(("started", "time", "hardware", "cost", "versions"), _NOT_RECORDED)
    facts["started"] = f"{_date(starts[0].time)}; last logged step {_date(last.time)}"
    facts["time"] = _time_text(history, found)
    facts["hardware"] = "; then ".join(dict.fromkeys(_hardware_text(start.hardware) for start in starts))
    facts["cost"] = "no GPU" if found.gpu_hours is None else gpu_hours_text(found.gpu_hours, price=price)
    facts["versions"] = "; then ".join(dict.fromkeys(_versions_text(start.versions) for start in starts))
    return facts


def _time_text(history: RunHistory, found: Spent) -> str:
    starts = history.starts
    times = "1 start" if len(starts) == 1 else f"{len(starts)} starts, lost steps included"
    text = f"{duration_text(found.seconds)} from start to last logged step ({times})"
    if starts[0].step:
        text += f"; the time before step {starts[0].step:,} is not recorded"
    return text


def _date(time: str) -> str:
    return datetime.fromisoformat(time).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _hardware_text(hardware: Hardware) -> str:
    ranks = hardware.get("ranks")
    if hardware.get("device") == "cuda":
        return f"{ranks} x {hardware.get('gpu')} ({hardware.get('gpu_memory_gib')} GiB)"
    processes = "1 process" if ranks == 1 else f"{ranks} processes"
    return f"{processes}, no GPU, {hardware.get('cpus_per_host')} CPUs per host"


def _versions_text(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
