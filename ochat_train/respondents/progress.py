"""How far an evaluation is: a bar with the time left on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable

from tqdm import tqdm

from ochat_train.system.messages import print_message

_LINE_EVERY_SECONDS = 10.0


class AskingProgress:
    """`Progress` of `num_questions`, of which `num_done` were answered before."""

    def __init__(self, num_questions: int, num_done: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._num_questions, self._num_done = num_questions, num_done
        self._clock, self._first_done = clock, num_done
        self._started = self._last_line = clock()
        self._bar = tqdm(
            total=num_questions,
            initial=num_done,
            desc="answers",
            unit="answer",
            smoothing=0.05,
            disable=not sys.stderr.isatty(),
        )

    def done(self) -> None:
        """Count one more."""
        self._num_done += 1
        with contextlib.suppress(OSError):
            self._bar.update()
        if self._bar.disable and (self._clock() - self._last_line >= _LINE_EVERY_SECONDS):
            self._last_line = self._clock()
            print_message(self.line())

    def line(self) -> str:
        """How far it is, in words."""
        per_answer = (self._clock() - self._started) / max(1, self._num_done - self._first_done)
        left = round(per_answer * (self._num_questions - self._num_done))
        minutes, seconds = divmod(left, 60)
        return f"{self._num_done:,} of {self._num_questions:,} answers, {minutes}:{seconds:02d} left"

    def close(self) -> None:
        """Finish the line."""
        with contextlib.suppress(OSError):
            self._bar.close()
