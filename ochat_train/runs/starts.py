"""Where and when a run computed: a line of starts.jsonl for each start of it, and what that adds up to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

from ochat_train.system.json_values import fields_from

Hardware: TypeAlias = Mapping[str, str | int | float | None]
_SECONDS_AN_HOUR = 3600.0


def utc_time() -> str:
    """The time now, as run folders have it: ISO 8601 in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True, kw_only=True)
class RunStart:
    """A start of a run. step: that earlier starts had done. time: of the start (`utc_time`). previous_end: the time of
    the last line that the start before it wrote into metrics.jsonl, None where there was none. hardware, versions: what
    it computes with (`tracking/facts.py`).
    """

    step: int
    time: str
    previous_end: str | None
    hardware: Hardware
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """A line of starts.jsonl."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunStart:
        """From a line of starts.jsonl. Raises KeyError where a key is missing."""
        return cls(**fields_from(cls, values))


@dataclass(frozen=True, kw_only=True)
class Spent:
    """The time that all starts of a run computed. seconds: from each start to its last logged step. gpu_hours: this
    times the GPUs of each start, None where one had no GPU.
    """

    seconds: float
    gpu_hours: float | None


def spent(starts: Sequence[RunStart], *, last_time: str | None) -> Spent | None:
    """What the starts of a run add up to, steps that were lost and taken again included.

    last_time: of the last logged step. None where no start is recorded, as in runs of older versions.
    """
    if not starts or last_time is None:
        return None
    ends = [start.previous_end for start in starts[1:]] + [last_time]
    seconds = [_seconds(start.time, end) for start, end in zip(starts, ends, strict=True)]
    gpus = [_num_gpus(start.hardware) for start in starts]
    gpu_seconds = sum(count * time for count, time in zip(gpus, seconds, strict=True))
    return Spent(seconds=sum(seconds), gpu_hours=gpu_seconds / _SECONDS_AN_HOUR if all(gpus) else None)


def _seconds(start: str, end: str | None) -> float:
    """Seconds of a start; 0 where it was stopped before its first logged step, or the clock was set back."""
    if end is None:
        return 0.0
    return max(0.0, (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds())


def _num_gpus(hardware: Hardware) -> int:
    ranks = hardware.get("ranks")
    return ranks if hardware.get("device") == "cuda" and isinstance(ranks, int) else 0
