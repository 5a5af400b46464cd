"""What a training shows: one line that fits the terminal, plain lines in a file, nothing on other ranks."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
import struct
import termios
from dataclasses import replace
from typing import Any

import pytest

from data_pipeline.look.text import table
from ochat_train.ablation.results import AblationResults, ArmResult
from ochat_train.ablation.results_table import results_text
from ochat_train.evaluation.condition_matrix import ConditionMatrix
from ochat_train.evaluation.results import (
    Answer,
    ClassScores,
    Evaluation,
    Sample,
    Validation,
    ValidationResult,
)
from ochat_train.evaluation.verdict import Learnt
from ochat_train.report.matrix_section import verdict_lines
from ochat_train.report.progress_line import (
    Part,
    ProgressLine,
    TimeLeft,
    duration_text,
    fitted,
    progress_parts,
    terminal_line,
)
from ochat_train.report.text import class_sums_text, validation_text
from ochat_train.runs.metrics import EpochMeans, StepMetrics
from ochat_train.system.messages import print_message
from tests.support.processes import run_jobs
from tests.support.results import class_means, means, step_metrics
from tests.support.small_recipe import RecipeFactory

NASTY = "a\x1b[2Jb\bc\u202ed\x9b"  # clears the screen, goes back, turns the direction, begins another command
SHOWN = r"a\u001b[2Jb\bc\u202ed\u009b"
SPEED = {"tokens_per_second": 101_234.0, "mfu": 0.487, "memory_gib": 65.6, "data_wait_ratio": 0.0}
CLASSES = {"expert": class_means(loss=0.5123), "suboptimal": class_means(loss=None)}


def step_of(step: int = 1234, *, loss: float | None = 0.94214, classes: Any = CLASSES, **speed: Any) -> StepMetrics:
    return step_metrics(step, epoch=1, loss=loss, classes=classes, speed={**SPEED, **speed})


class Screen(io.StringIO):
    """A stderr that is a terminal or a file."""

    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


def parts(**changes: Any) -> list[Any]:
    return progress_parts(step_of(**changes), num_steps=5000, seconds_left=3_725.4)


def test_a_wide_line_has_everything() -> None:
    line = (
        "step 1234/5000  epoch 1  loss 0.9421  (expert 0.512, suboptimal -)  101.2k tok/s  MFU 48.7%  66 GiB  "
        "1:02:05 left"
    )
    assert fitted(parts(), width=200) == line
    assert "  12% waiting for data  " in fitted(parts(data_wait_ratio=0.12), width=200)
    assert "  loss not finite  " in fitted(parts(loss=None), width=200)
    assert "  17 tok/s  " in fitted(parts(tokens_per_second=17.4), width=200), "not 0.0k"
    assert fitted(parts(mfu=None, memory_gib=None), width=200) == line.replace("  MFU 48.7%  66 GiB", "")


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (100, "step 1234/5000  loss 0.9421  (expert 0.512, suboptimal -)  101.2k tok/s  MFU 48.7%  1:02:05 left"),
        (90, "step 1234/5000  loss 0.9421  (expert 0.512, suboptimal -)  101.2k tok/s  1:02:05 left"),
        (79, "step 1234/5000  loss 0.9421  (expert 0.512, suboptimal -)  1:02:05 left"),
        (50, "step 1234/5000  loss 0.9421  1:02:05 left"),
        (30, "step 1234/5000  loss 0.9421"),
        (20, "step 1234/5000"),
        (5, "step "),
    ],
)
def test_the_least_important_parts_go_first(width: int, line: str) -> None:
    assert fitted(parts(), width=width) == line


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_a_terminal_line_never_wraps(ratio: float) -> None:
    bars = 0
    for width in range(1, 200):
        line = terminal_line(parts(), done_ratio=ratio, width=width)
        assert len(line) <= width
        if bar := re.match(r" *(\d+)% \|(█*)( *)\|  ", line):
            bars += 1
            assert int(bar[1]) == 100 * ratio
            assert len(bar[2]) == int(ratio * (len(bar[2]) + len(bar[3])))
    assert bars > 50


def columns(text: str) -> int:
    """Columns of a text of letters, digits, bar and wide characters, in a terminal."""
    return sum(2 if character >= "\u2e80" else 1 for character in text)


def test_wide_characters_take_two_columns() -> None:
    wide = parts(classes={"专家": class_means(loss=0.5), "次优": class_means(loss=1.5)})
    line = "step 1234/5000  loss 0.9421  (专家 0.500, 次优 1.500)  1:02:05 left"
    assert (len(line), columns(line)) == (63, 67)
    assert fitted(wide, width=67) == line
    assert fitted(wide, width=66) == "step 1234/5000  loss 0.9421  1:02:05 left"
    assert fitted([Part(text="专家专家", rank=0)], width=5) == "专家"
    assert all(columns(terminal_line(wide, done_ratio=0.5, width=width)) <= width for width in range(1, 200))


def test_columns_of_a_table_are_aligned_where_characters_take_two_places() -> None:
    lines = table(("class", "nll"), [("专家", "0.1"), ("éxpert", "0.2"), ("suboptimal", "0.3")]).splitlines()
    assert lines == ["class       nll", "专家        0.1", "éxpert      0.2", "suboptimal  0.3"]


def test_the_width_is_that_of_the_terminal_of_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    """stdout is a file here."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 50, 0, 0))
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        line = ProgressLine(first_step=0, num_steps=5000, shown=True)
        line.update(step_of())
        line.close()
    text = b""
    with contextlib.suppress(OSError):  # it is closed, so this is how it ends
        while chunk := os.read(ours, 10_000):
            text += chunk
    os.close(ours)
    rows = re.split(r"[\r\n]+", text.decode())
    assert "step 1234/5000  loss 0.9421" in rows[-2]
    assert max(map(columns, rows)) <= 49


def test_time_left_leaves_out_what_happens_once_and_counts_what_recurs() -> None:
    time_left = TimeLeft(first_step=10, now=0.0)
    assert time_left.seconds(11, num_steps=21, now=100.0) == 1000.0  # all that is known yet
    assert time_left.seconds(12, num_steps=21, now=102.0) == 18.0
    assert time_left.seconds(13, num_steps=21, now=110.0) == 40.0  # with a validation of 6 s
    assert time_left.seconds(21, num_steps=21, now=150.0) == 0.0
    assert [duration_text(s) for s in (59.6, 3599, 90_061)] == ["1:00", "59:59", "1d 01:01:01"]


def shown(screen: Screen, monkeypatch: pytest.MonkeyPatch, *, is_main: bool = True) -> str:
    """What a training of 30 steps of 3 s writes."""
    monkeypatch.setattr("sys.stderr", screen)
    now = 0.0
    line = ProgressLine(first_step=0, num_steps=30, shown=is_main, clock=lambda: now)
    for step in range(1, 31):
        now += 3.0
        line.update(step_of(step))
        if step == 15:
            line.print("validation")
    line.close()
    return screen.getvalue()


def test_a_file_gets_plain_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(Screen(is_terminal=False), monkeypatch)
    steps = [int(step) for step in re.findall(r"^step (\d+)/30  .* left$", text, flags=re.MULTILINE)]
    assert steps == [1, 5, 9, 13, 17, 21, 25, 29, 30]
    assert text.count("\n") == len(steps) + 1
    assert "\nvalidation\n" in text
    assert all(character == "\n" or character.isprintable() for character in text)


def test_a_terminal_gets_one_line_and_other_ranks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(Screen(is_terminal=True), monkeypatch)
    rows = re.split(r"[\r\n]", text)
    assert max(map(len, rows)) <= 79
    assert text.count("\n") == 2  # after `validation`, and at the end
    assert "step 30/30" in text
    for is_terminal in (True, False):
        assert shown(Screen(is_terminal=is_terminal), monkeypatch, is_main=False) == ""


def test_lines_go_above_the_progress_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", screen := Screen(is_terminal=True))
    line = ProgressLine(first_step=0, num_steps=30, shown=True)
    line.update(step_of(7))
    print_message("step 7: a spike")
    text = screen.getvalue()
    assert re.search(r"\r *\rstep 7: a spike\n\r?.*step 7/30", text.replace("\x1b[A", "")), text
    line.close()


def test_the_line_says_what_happens_between_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """It moves while a run validates; a file gets no lines for it."""
    for is_terminal in (True, False):
        monkeypatch.setattr("sys.stderr", screen := Screen(is_terminal=is_terminal))
        line = ProgressLine(first_step=0, num_steps=30, shown=True)
        line.update(step_of(7))
        for done in (1, 2):
            line.doing(f"validating {done}/2")
        rows = re.split(r"[\r\n]", screen.getvalue())
        found = [row.split("  ")[:2] for row in rows if row.startswith("validating")]
        assert found == ([["validating 1/2", "step 7/30"], ["validating 2/2", "step 7/30"]] if is_terminal else [])
        assert max(map(len, rows)) <= 79 or not is_terminal
        line.close()


def test_an_error_comes_after_the_line_and_the_last_table_holds_what_was_done(make_recipe: RecipeFactory) -> None:
    """A run on a terminal that fails in step 3, is resumed after step 2, and started once more when it is finished."""
    recipe = make_recipe(train__max_steps=4, train__max_nonfinite_steps=1, checkpoint__save_every_steps=2)
    train = {"command": ["train", recipe], "terminal": True}
    fault = {"fault": {"step": 3, "do": "nan_weight"}}
    prepare = {"command": ["prepare", recipe, "--workers", "1"]}
    outputs, codes = run_jobs(prepare, {**train, **fault}, train, train, num_ranks=1)
    assert codes == [0], outputs[0][-4000:]
    _, failed, resumed, finished, _ = re.split(r"exit code \d\n", outputs[0])
    assert re.search(r"step 3/4  .* left *\nochat train: step 3: loss or gradient was not finite [^\n]*\n\Z", failed), (
        failed
    )
    assert "\ntraining, epoch 0, steps 3 to 4\nclass " in resumed, resumed
    assert "resumes from" in finished
    assert "training, epoch" not in finished


# ---- what data and the model may do to a terminal ----


def test_no_text_of_data_or_model_reaches_the_terminal_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    epoch = EpochMeans(epoch=0, steps=None, means=means({NASTY: class_means()}))
    scores = ClassScores(loss=1.0, nll=1.0, accuracy=0.5, conversations=1, supervised_tokens=5)
    learnt = Learnt(
        condition=NASTY,
        nearest=NASTY,
        margin=0.5,
        low=0.25,
        high=0.75,
        smallest=0.02,
        verdict="weak",
        conversations=1,
    )
    scores = replace(scores, conversations=2)  # so that a note says why matrix and nll differ
    matrix = ConditionMatrix(conditions=[NASTY, "B"], nll={NASTY: [1.0, 2.0]}, learnt={NASTY: learnt})
    had_none = replace(matrix, learnt={NASTY: replace(learnt, verdict=None)})
    assert verdict_lines(had_none) == ["It was trained with one condition, so there was none to learn."]
    assert [line.split(":")[1] for line in verdict_lines(matrix)] == [" weak"], "the control"
    evaluation = Evaluation(loss=1.0, classes={NASTY: scores}, matrix=matrix)
    answer = Answer(condition=NASTY, text=NASTY, finished=True)
    result = ValidationResult(
        validation=Validation(step=1, evaluation=evaluation, seconds=1.0),
        samples=[Sample(step=1, prompt=f"{NASTY}\nmore", answers=[answer])],
    )
    line = [part.text for part in progress_parts(step_of(classes={NASTY: class_means()}), num_steps=1, seconds_left=0)]
    texts = {class_sums_text(epoch): 1, validation_text(result): 7, "\n".join(line): 1}
    monkeypatch.setattr("sys.stderr", screen := Screen(is_terminal=False))
    print_message(f"{NASTY}\n\tstays")
    texts[screen.getvalue()] = 1
    for text, times in texts.items():
        assert all(character in "\n\t" or character.isprintable() for character in text), repr(text)
        assert text.count(SHOWN) == times, text


def test_the_table_of_an_ablation_shows_names_as_they_may_be_shown() -> None:
    results = AblationResults(
        recipe=NASTY,
        steps=1,
        seeds=1,
        reference="c-rlft",
        inference_class=NASTY,
        inference_condition=NASTY,
        arms={"sft": ArmResult(title=NASTY, conversations=1, epochs=1.0, scores={})},
    )
    text = results_text(results)
    assert all(character == "\n" or character.isprintable() for character in text), repr(text)
    assert text.count(SHOWN) == 4  # recipe, condition, class, arm
