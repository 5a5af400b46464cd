"""What a training shows while it runs: one line on a terminal, and a plain line every ten seconds in log files."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tqdm import tqdm
from tqdm.utils import disp_len, disp_trim

from data_pipeline.text_rules import visible_line
from ochat_train.report.tables import number_text
from ochat_train.runs.metrics import StepMetrics
from ochat_train.system.messages import log_notice, print_notice, shows_progress

SLOW_DATA_RATIO = 0.01  # a step that waits longer for data says so
_FEWEST_BAR_CHARACTERS = 8
_MOST_BAR_CHARACTERS = 30
_UNKNOWN_COLUMNS = 80


class TimeLeft:
    """How long the remaining steps take at the pace so far, validations and checkpoints included.

    The pace is taken from the end of the first step that is seen, whose time holds what happens once (compiling).
    """

    def __init__(self, *, first_step: int, now: float) -> None:
        self._from, self._is_warm = (first_step, now), False

    def seconds(self, step: int, *, num_steps: int, now: float) -> float:
        """Seconds left after `step`, which has just ended."""
        start_step, start = self._from
        left = (now - start) / (step - start_step) * (num_steps - step)
        if not self._is_warm:
            self._from, self._is_warm = (step, now), True
        return left


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of the progress line. rank: the smaller, the longer it stays where the line is too long."""

    text: str
    rank: int


def progress_parts(metrics: StepMetrics, *, num_steps: int, seconds_left: float) -> list[Part]:
    """What is worth showing of a step, in the order in which it is read."""
    means, speed = metrics.means, metrics.speed
    class_losses = [f"{visible_line(name)} {number_text(row.loss, '.3f')}" for name, row in means.classes.items()]
    loss = "not finite" if means.loss is None else f"{means.loss:.4f}"
    parts = [
        Part(text=f"step {metrics.step}/{num_steps}", rank=0),
        Part(text=f"epoch {metrics.epoch}", rank=8),
        Part(text=f"loss {loss}", rank=1),
        Part(text=f"({', '.join(class_losses)})", rank=3),
        Part(text=_speed_text(speed.tokens_per_second), rank=4),
    ]
    if speed.mfu is not None:
        parts.append(Part(text=f"MFU {speed.mfu:.1%}", rank=6))
    if speed.memory_gib is not None:
        parts.append(Part(text=f"{speed.memory_gib:.0f} GiB", rank=7))
    if speed.data_wait_ratio > SLOW_DATA_RATIO:
        parts.append(Part(text=f"{speed.data_wait_ratio:.0%} waiting for data", rank=5))
    return [*parts, Part(text=f"{duration_text(seconds_left)} left", rank=2)]


def _speed_text(tokens_per_second: float) -> str:
    """In thousands, unless that would show next to nothing."""
    if tokens_per_second < 1000:
        return f"{tokens_per_second:.0f} tok/s"
    return f"{tokens_per_second / 1000:,.1f}k tok/s"


def fitted(parts: Sequence[Part], *, width: int) -> str:
    """The parts as one line of at most `width` columns; the least important are left out where it is too long."""
    kept = list(parts)
    while disp_len(text := "  ".join(part.text for part in kept)) > width and len(kept) > 1:
        kept.remove(max(kept, key=lambda part: part.rank))
    return str(disp_trim(text, width))


def terminal_line(parts: Sequence[Part], *, done_ratio: float, width: int) -> str:
    """The parts, with a bar before them where there is room for one."""
    text = fitted(parts, width=width)
    room = min(_MOST_BAR_CHARACTERS, width - disp_len(text) - len("100% ||  "))
    if room < _FEWEST_BAR_CHARACTERS:
        return text
    full = int(done_ratio * room)
    return f"{int(100 * done_ratio):3d}% |{'█' * full}{' ' * (room - full)}|  {text}"


def duration_text(seconds: float) -> str:
    """Minutes and seconds, with hours and days where there are any."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02d}:{minutes:02d}:{seconds:02d}"
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _stderr_columns() -> int:
    """Width of the terminal that stderr is; stdout may be a file, or another terminal."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        columns = 0
    return columns or _UNKNOWN_COLUMNS  # a terminal without a window has none


class ProgressLine:
    """One line on a terminal; without a terminal a plain line every ten seconds, so that log files stay readable.

    shown: whether this rank shows anything. clock: seconds.
    """

    LINE_EVERY_SECONDS = 10.0

    def __init__(
        self, *, first_step: int, num_steps: int, shown: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._shown, self._num_steps, self._clock = shown, num_steps, clock
        self._terminal = sys.stderr.isatty()
        self._has_bar = shown and shows_progress()
        self._last_line = -math.inf
        self._text = ""  # of the last step
        self._time_left = TimeLeft(first_step=first_step, now=clock())
        self._bar = tqdm(bar_format="{desc}", disable=not self._has_bar)

    def update(self, metrics: StepMetrics) -> None:
        """Show a finished step. A line that cannot be written (a full disk behind a log file) is lost."""
        if self._shown:
            with contextlib.suppress(OSError):
                self._show(metrics)

    def doing(self, what: str) -> None:
        """Show what happens between two steps, in front of what the line already says; on a terminal only."""
        if self._has_bar:
            with contextlib.suppress(OSError):
                text = f"{what}  {self._text}" if self._text else what
                self._bar.set_description_str(disp_trim(text, _stderr_columns() - 1))

    def _show(self, metrics: StepMetrics) -> None:
        now, step = self._clock(), metrics.step
        left = self._time_left.seconds(step, num_steps=self._num_steps, now=now)
        parts = progress_parts(metrics, num_steps=self._num_steps, seconds_left=left)
        if self._has_bar:
            width = _stderr_columns() - 1  # a full line would wrap
            self._text = fitted(parts, width=width)
            self._bar.set_description_str(terminal_line(parts, done_ratio=step / self._num_steps, width=width))
        if step == self._num_steps or now - self._last_line >= self.LINE_EVERY_SECONDS:
            say = log_notice if self._terminal else print_notice
            say("  ".join(part.text for part in parts))
            self._last_line = now

    def print(self, text: str) -> None:
        """Print lines above the progress line."""
        if self._shown:
            print_notice(text)

    def close(self) -> None:
        """Finish the line; it stays on the terminal."""
        with contextlib.suppress(OSError):
            self._bar.close()
