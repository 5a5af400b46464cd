"""Results as tables for people; the same numbers as `--json`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from data_pipeline.held_out import CONDITION_ROWS_PER_CLASS
from data_pipeline.text_rules import visible, visible_line
from ochat_train.evaluation.condition_matrix import RESAMPLES
from ochat_train.evaluation.results import Evaluation
from ochat_train.evaluation.verdict import FEWEST_CONVERSATIONS, SMALLEST_PER_CONVERSATION, SMALLEST_PER_TOKEN, Learnt

VERDICT_NOTE = (
    f"yes, where the whole interval of the margin is at least {SMALLEST_PER_TOKEN:g} nats per token and "
    f"{SMALLEST_PER_CONVERSATION:g} nats a conversation, from at least {FEWEST_CONVERSATIONS} conversations; no, where "
    "the interval reaches 0 or lies below that; weak, between them. The 95 % interval is a bootstrap over the held-out "
    f"conversations of the class ({RESAMPLES:,} resamples): it says what other conversations could have given, not "
    "what another seed of training would give."
)


def evaluation_table(
    evaluation: Evaluation, *, shown: Callable[[str], str] | None = None
) -> tuple[list[str], list[tuple[str, ...]]]:
    """Head and rows: a class's nll and accuracy, its nll under each condition, whether it learnt its own.

    shown: how to write a class or condition; default: a class unchanged, a condition by shown_condition.
    """
    matrix = evaluation.matrix
    unknown = [None] * len(matrix.conditions)
    rows = [
        (
            shown(name) if shown else name,
            number_text(scores.nll, ".4f"),
            number_text(scores.accuracy, ".1%"),
            *(number_text(value, ".4f") for value in matrix.nll.get(name, unknown)),
            verdict_text(evaluation, name, shown=shown),
        )
        for name, scores in evaluation.classes.items()
    ]
    return ["class", "nll", "accuracy", *matrix_columns(matrix.conditions, shown=shown)], rows


def matrix_columns(conditions: Sequence[str], *, shown: Callable[[str], str] | None = None) -> list[str]:
    """Names of the columns of a condition matrix: one for each condition, and learnt_text's."""
    return [*(f"under {(shown or shown_condition)(condition)}" for condition in conditions), "learnt"]


def verdict_text(evaluation: Evaluation, class_name: str, *, shown: Callable[[str], str] | None = None) -> str:
    """`learnt_text` of a class; a dash where there is one condition only, and so none to learn."""
    if len(evaluation.matrix.conditions) < 2:
        return "-"
    return learnt_text(evaluation.matrix.learnt.get(class_name), shown=shown)


def learnt_text(learnt: Learnt | None, *, shown: Callable[[str], str] | None = None) -> str:
    """Whether a class's condition was learnt, in words: the verdict, the margin over the nearest other condition, in
    nats per token, and where the verdict is not `yes` what is missing; a dash for a model that had no condition to
    learn.

    shown: how to write a condition; default: shown_condition.
    """
    if learnt is None:
        return "not measured"
    if learnt.verdict is None:
        return "-"
    nearest = (shown or shown_condition)(learnt.nearest)
    missing = [] if learnt.learnt else [f"yes needs an interval from {learnt.smallest:.4f}"]
    if learnt.conversations < FEWEST_CONVERSATIONS:
        missing = [f"only {learnt.conversations} held-out conversation{'' if learnt.conversations == 1 else 's'}"]
    why = f" ({missing[0]})" if missing else ""
    return f"{learnt.verdict}: {margin_text(learnt)} nats/token over {nearest}{why}"


def margin_text(learnt: Learnt) -> str:
    """A margin and its interval."""
    margin, low, high = (number_text(value, ".4f") for value in (learnt.margin, learnt.low, learnt.high))
    return f"{margin} [{low}, {high}]"


def subset_notes(evaluation: Evaluation, *, shown: Callable[[str], str] | None = None) -> list[str]:
    """A sentence for each class whose matrix holds fewer conversations than its nll, so that the two may differ."""
    notes = []
    for name, scores in evaluation.classes.items():
        learnt = evaluation.matrix.learnt.get(name)
        if learnt is not None and learnt.conversations < scores.conversations:
            notes.append(
                f"{(shown or visible)(name)}: its nll is of {scores.conversations:,} held-out conversations, its row "
                f"of the matrix of {learnt.conversations:,} of them: at most {CONDITION_ROWS_PER_CLASS:,} of a class, "
                "and none that is cut under some condition."
            )
    return notes


def shown_condition(condition: str) -> str:
    """A condition as people see it."""
    return visible_line(condition) or "no condition"


def number_text(value: float | None, form: str) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown. Cells are Markdown already: whoever makes them escapes what comes from data."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
