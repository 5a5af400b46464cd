"""`ochat report`: a run as one page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from data_pipeline.prepared.dataset import PreparedClass
from ochat_train.evaluation.results import Validation
from ochat_train.report.data_sections import class_section, ledger_section
from ochat_train.report.matrix_section import matrix_section, verdict_headline, verdict_lines
from ochat_train.report.page import Example, Section, render_page, require_place, text_cells, write_page
from ochat_train.report.pictures import Picture, Series, line_chart
from ochat_train.report.run_facts import facts_section
from ochat_train.report.tables import VERDICT_NOTE, number_text, shown_condition, subset_notes
from ochat_train.report.text import BENCHMARK_HEAD, benchmark_rows
from ochat_train.runs.history import RunHistory, read_run_history

CURVES_NOTE = (
    "Bold: a moving mean; faint behind it: every logged step (in long runs from the lowest to the highest of "
    "neighbouring steps). Dots: held-out conversations."
)


def write_run_page(run_dir: Path, out: Path, *, price: float | None = None) -> None:
    """Write the page of a run. price: of a GPU-hour, in the user's currency; None: not known.

    Raises UserError for a folder that is not a run, a run without steps, a bad `out`.
    """
    history = read_run_history(run_dir)
    recipe, last = history.run.recipe, history.steps[-1]
    require_place(out, option="--out", prepared_dirs=[Path(recipe.data.prepared_dir)])
    loss = number_text(last.means.loss, ".4f")
    subtitle = f"{run_dir.name}: step {last.step:,}, epoch {last.epoch}, loss {loss}"
    page = render_page(recipe.name, subtitle, list(_sections(history, price=price)))
    write_page(out, page, option="--out")


def _sections(history: RunHistory, *, price: float | None) -> Iterator[Section]:
    recipe = history.run.recipe.model_dump(mode="json", by_alias=True)
    yield _summary(history)
    yield facts_section(history, price=price)
    yield Section(
        heading="Loss of each class",
        paragraphs=[CURVES_NOTE],
        pictures=[line_chart(_losses(history), unit="nats per token")],
    )
    learning_rates = [row.learning_rate for row in history.steps]
    yield Section(heading="Learning rate", pictures=[_curve(history, learning_rates, "learning rate", is_noisy=False)])
    yield from _throughput(history)
    yield _gradients(history)
    if history.validations:
        yield from _matrix(history.validations[-1], history)
    if history.benchmarks:
        yield _benchmarks(history)
    yield _classes(history)
    if history.samples:
        yield _samples(history)
    yield ledger_section("Ledger of the data", history.run.prepared.ledger)
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    yield Section(heading="Recipe", preformatted=text, folded=True)


def _summary(history: RunHistory) -> Section:
    heading = "Was the conditioning learnt?"
    if not history.validations:
        text = "Nothing was held out (data.validation_ratio) or validated yet, so this is not known."
        return Section(heading=heading, paragraphs=[text])
    last = history.validations[-1]
    lines = [verdict_headline(last.evaluation.matrix), *verdict_lines(last.evaluation.matrix)]
    lines.append(VERDICT_NOTE[0].upper() + VERDICT_NOTE[1:])
    if len(last.evaluation.matrix.conditions) < 2:
        lines = ["- (There is one condition only, so there is none to learn.)"]
    loss = number_text(last.evaluation.loss, ".4f")
    lines.append(f"Held-out loss after step {last.step}: {loss} nats per token (weighted).")
    return Section(heading=heading, paragraphs=lines)


def _losses(history: RunHistory) -> list[Series]:
    """Training losses of each class as curves, held-out ones as points of the same colour."""
    series = []
    for number, name in enumerate(history.steps[-1].means.classes):
        losses = [row.means.classes[name].loss for row in history.steps]
        series.append(Series(label=name, x=_steps(history), y=losses, number=number))
    if not history.validations:
        return series
    held_out_steps = [row.step for row in history.validations]
    for number, name in enumerate(history.steps[-1].means.classes):
        losses = [row.evaluation.classes[name].loss for row in history.validations]
        series.append(Series(label=f"{name}, held out", x=held_out_steps, y=losses, number=number, points=True))
    return series


def _steps(history: RunHistory) -> list[int]:
    return [row.step for row in history.steps]


def _curve(
    history: RunHistory,
    values: Sequence[float | None],
    unit: str,
    *,
    logarithmic: bool = False,
    is_noisy: bool = True,
) -> Picture:
    curve = Series(label=unit, x=_steps(history), y=values, is_noisy=is_noisy)
    return line_chart([curve], unit=unit, logarithmic=logarithmic)


def _throughput(history: RunHistory) -> Iterator[Section]:
    speeds = [row.speed for row in history.steps]
    tokens_per_second = [speed.tokens_per_second for speed in speeds]
    yield Section(heading="Throughput", pictures=[_curve(history, tokens_per_second, "tokens per second")])
    mfu = [speed.mfu for speed in speeds]
    if any(value is not None for value in mfu):
        yield Section(heading="Model FLOPs utilization", pictures=[_curve(history, mfu, "share of the GPUs' peak")])


def _gradients(history: RunHistory) -> Section:
    left_out = history.steps[-1].nonfinite_steps
    text = "Every step was finite."
    if left_out:
        text = f"{left_out} step(s) were left out because loss or gradient was not finite."
    picture = _curve(history, [row.grad_norm for row in history.steps], "2-norm", logarithmic=True)
    return Section(heading="Gradient norm", paragraphs=[text], pictures=[picture])


def _matrix(validation: Validation, history: RunHistory) -> Iterator[Section]:
    if validation.evaluation.matrix.nll:
        own = {row.name: row.condition for row in history.run.prepared.classes}
        heading = f"Condition matrix, step {validation.step}"
        notes = subset_notes(validation.evaluation)
        yield matrix_section(heading, validation.evaluation.matrix, own_conditions=own, notes=notes)


def _benchmarks(history: RunHistory) -> Section:
    """Scores over the steps, a curve for each benchmark and condition, and the last ones as a table."""
    last = history.benchmarks[-1]
    series = []
    for number, wanted in enumerate((score.suite, score.condition) for score in last.scores):
        found = [
            (row.step, score.score)
            for row in history.benchmarks
            for score in row.scores
            if (score.suite, score.condition) == wanted
        ]
        steps, scores = [step for step, _ in found], [score for _, score in found]
        label = f"{wanted[0]}, {shown_condition(wanted[1])}"
        series.append(Series(label=label, x=steps, y=scores, number=number, points=True))
    rows = [text_cells(row) for row in benchmark_rows(last)]
    share = f"{last.benchmark_time_ratio:.1%} of the run's time was spent on benchmarks."
    pictures = [line_chart(series, unit="share of right answers")]
    heading = f"Benchmarks, step {last.step}"
    return Section(heading=heading, paragraphs=[share], pictures=pictures, head=BENCHMARK_HEAD, rows=rows)


def _classes(history: RunHistory) -> Section:
    found = history.validations[-1].evaluation.classes if history.validations else {}

    def scores_of(row: PreparedClass) -> tuple[str, str]:
        if row.name not in found:
            return "-", "-"
        scores = found[row.name]
        return number_text(scores.nll, ".4f"), number_text(scores.accuracy, ".1%")

    return class_section(history.run.prepared.classes, more_head=("held-out nll", "accuracy"), more=scores_of)


def _samples(history: RunHistory) -> Section:
    """The last answers to each prompt, one under the other: long ones would not fit side by side."""
    last_step = history.samples[-1].step
    examples = []
    for number, sample in enumerate((sample for sample in history.samples if sample.step == last_step), start=1):
        answers = [
            (f"under {shown_condition(answer.condition)}", answer.text + ("" if answer.finished else " ..."))
            for answer in sample.answers
        ]
        examples.append(Example(heading=f"Prompt {number}", parts=[("prompt", sample.prompt), *answers]))
    return Section(heading=f"Samples, step {last_step}", examples=examples)
