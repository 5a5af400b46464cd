"""`ochat report`: a run as one page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.ledger import Ledger
from ochat_train.report.matrix_section import matrix_section
from ochat_train.report.page import Section, render_page, text_cells, write_page
from ochat_train.report.pictures import Series, line_chart
from ochat_train.report.tables import learnt_text, number_text, shown_condition
from ochat_train.runs.history import RunHistory, read_run_history


def write_run_page(run_dir: Path, out: Path) -> None:
    """Write the page of a run. Raises UserError for a folder that is no run or has no step yet, and for a bad `out`."""
    history = read_run_history(run_dir)
    recipe, last = history.run.recipe, history.steps[-1]
    subtitle = f"{run_dir.name}: step {last['step']:,}, epoch {last['epoch']}, loss {number_text(last['loss'], '.4f')}"
    page = render_page(recipe.name, subtitle, list(_sections(history)))
    write_page(out, page, option="--out", prepared_dir=Path(recipe.data.prepared_dir))


def _sections(history: RunHistory) -> Iterator[Section]:
    names = list(history.steps[-1]["classes"])
    yield _summary(history)
    yield Section(heading="Loss of each class", svg=line_chart(_losses(history, names), unit="nats per token"))
    yield Section(heading="Learning rate", svg=_curve(history, "learning_rate", "learning rate"))
    yield from _throughput(history)
    yield _gradients(history)
    if history.validations:
        yield from _matrix(history.validations[-1], history)
    yield _classes(history)
    if history.samples:
        yield _samples(history)
    yield _ledger(history.run.prepared.ledger)
    values = history.run.recipe.model_dump(mode="json", by_alias=True)
    yield Section(
        heading="Recipe", preformatted=yaml.safe_dump(values, sort_keys=False, allow_unicode=True), folded=True
    )


def _summary(history: RunHistory) -> Section:
    if not history.validations:
        return Section(
            heading="Was the conditioning learnt?",
            paragraphs=["Nothing was held out (data.validation_ratio) or validated yet, so this is not known."],
        )
    last = history.validations[-1]
    lines = [f"{name}: {learnt_text(entry)}." for name, entry in last["learnt"].items()]
    lines = lines or ["There is one condition only, so there is nothing to tell apart."]
    lines.append(
        f"Held-out loss after step {last['step']}: {number_text(last['loss'], '.4f')} nats per token (weighted)."
    )
    return Section(heading="Was the conditioning learnt?", paragraphs=lines)


def _losses(history: RunHistory, names: Sequence[str]) -> list[Series]:
    steps, validations = history.steps, history.validations
    series = [
        Series(label=name, x=_column(steps, "step"), y=[row["classes"][name]["loss"] for row in steps], number=number)
        for number, name in enumerate(names)
    ]
    series += [
        Series(
            label=f"{name}, held out",
            x=_column(validations, "step"),
            y=[row["classes"][name]["loss"] for row in validations],
            number=number,
            points=True,
        )
        for number, name in enumerate(names)
        if validations
    ]
    return series


def _column(rows: Sequence[dict[str, Any]], key: str) -> list[Any]:
    return [row[key] for row in rows]


def _curve(history: RunHistory, key: str, unit: str, *, logarithmic: bool = False) -> str:
    steps = history.steps
    return line_chart(
        [Series(label=unit, x=_column(steps, "step"), y=_column(steps, key))], unit=unit, logarithmic=logarithmic
    )


def _throughput(history: RunHistory) -> Iterator[Section]:
    yield Section(heading="Throughput", svg=_curve(history, "tokens_per_second", "tokens per second"))
    if any(row["mfu"] is not None for row in history.steps):
        yield Section(heading="Model FLOPs utilization", svg=_curve(history, "mfu", "share of the GPUs' peak"))


def _gradients(history: RunHistory) -> Section:
    left_out = history.steps[-1]["nonfinite_steps"]
    text = (
        f"{left_out} step(s) were left out because loss or gradient was not finite."
        if left_out
        else "Every step was finite."
    )
    return Section(
        heading="Gradient norm", paragraphs=[text], svg=_curve(history, "grad_norm", "2-norm", logarithmic=True)
    )


def _matrix(validation: dict[str, Any], history: RunHistory) -> Iterator[Section]:
    if validation["matrix"]:
        own = {row.name: row.condition for row in history.run.prepared.classes}
        yield matrix_section(
            f"Condition matrix, step {validation['step']}",
            validation["matrix"],
            conditions=validation["conditions"],
            own_conditions=own,
            learnt=validation["learnt"],
        )


def _classes(history: RunHistory) -> Section:
    found = history.validations[-1]["classes"] if history.validations else {}
    head = [
        "class",
        "condition",
        "weight",
        "conversations",
        "tokens",
        "supervised",
        "weight share",
        "held-out nll",
        "accuracy",
    ]
    rows = []
    for row in history.run.prepared.classes:
        scores = found.get(row.name, {"nll": None, "accuracy": None})
        weight = "in rows" if row.weight is None else f"{row.weight:.4g}"
        rows.append(
            text_cells(
                [
                    row.name,
                    shown_condition(row.condition),
                    weight,
                    f"{row.conversations:,}",
                    f"{row.tokens:,}",
                    f"{row.supervised_tokens:,}",
                    f"{row.weight_share:.1%}",
                    number_text(scores["nll"], ".4f"),
                    number_text(scores["accuracy"], ".1%"),
                ]
            )
        )
    return Section(heading="Classes", head=head, rows=rows)


def _samples(history: RunHistory) -> Section:
    last_step = history.samples[-1]["step"]
    samples = [sample for sample in history.samples if sample["step"] == last_step]
    conditions = list(dict.fromkeys(answer["condition"] for sample in samples for answer in sample["answers"]))
    rows = []
    for sample in samples:
        texts = {a["condition"]: a["text"] + ("" if a["finished"] else " ...") for a in sample["answers"]}
        rows.append(text_cells([sample["prompt"], *(texts.get(condition, "") for condition in conditions)]))
    return Section(heading=f"Samples, step {last_step}", head=["prompt", *map(shown_condition, conditions)], rows=rows)


def _ledger(ledger: Ledger) -> Section:
    text = (
        f"Read {ledger.read:,} = kept {ledger.kept:,} + dropped {ledger.num_dropped:,}; truncated "
        f"{ledger.truncated:,}, unsupervised tail trimmed {ledger.tail_trimmed:,}, condition left out "
        f"{ledger.condition_left_out:,}."
    )
    reasons = {**ledger.dropped, **{reason: "" for reason in ledger.examples if reason not in ledger.dropped}}
    rows = [
        text_cells([reason, f"{count:,}" if count != "" else "", "\n".join(ledger.examples.get(reason, []))])
        for reason, count in reasons.items()
    ]
    return Section(heading="Ledger of the data", paragraphs=[text], head=["reason", "dropped", "examples"], rows=rows)
