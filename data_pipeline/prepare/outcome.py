"""Whether a preparation succeeded: no row is missing that the recipe wants, and no split is empty."""

from __future__ import annotations

from collections.abc import Mapping

from data_pipeline.errors import Problem, UserError, UserErrors
from data_pipeline.ledger import Tally
from data_pipeline.prepared.dataset import Split, SplitCounts
from data_pipeline.settings.data import DataSettings


def check_outcome(data: DataSettings, tally: Tally, splits: Mapping[Split, SplitCounts]) -> None:
    """Raise UserError for rows that the recipe does not allow to be dropped, and for an empty split."""
    fatal = dict(tally.bad) if data.bad_rows == "error" else {}
    if data.overlong == "error" and tally.dropped["overlong"]:
        fatal["overlong"] = tally.dropped["overlong"]
    if fatal:
        raise UserErrors(
            "data.sources",
            f"{sum(fatal.values())} of {tally.num_read} rows cannot be used",
            [
                Problem(place=reason, problem="\n  ".join([str(count), *tally.examples[reason]]))
                for reason, count in sorted(fatal.items())
            ],
            "Fix them, or set `data.bad_rows: drop` (and `data.overlong`) to leave such rows out and count them.",
        )
    if not splits["train"].conversations:
        reasons = ", ".join(f"{reason} {count}" for reason, count in tally.dropped.items()) or "the sources are empty"
        what = f"no conversation is left to train on ({tally.num_read} read; {reasons})"
        raise UserError("data.sources", what, _remedy(tally))
    if data.validation_ratio and not splits["validation"].conversations:
        raise UserError(
            "data.validation_ratio",
            f"{data.validation_ratio} of {tally.num_kept} conversations selects none",
            "raise it, or set it to 0 for no validation",
        )


def _remedy(tally: Tally) -> str:
    """What to do where every conversation was dropped, by the most frequent reason."""
    remedies = {
        "no_supervised_token": "give a class or a message a weight above 0, or raise `model.max_length_tokens`",
        "other_class": "name a class of the rows in `data.only_classes`",
        "overlong": "raise `model.max_length_tokens`, or set `data.overlong: truncate`",
    }
    most = max(tally.dropped, key=tally.dropped.__getitem__, default="")
    return remedies.get(most, "docs/prepared-data.md says what is wrong with such rows" if most else "fill them")
