"""The survey of scores gives the same numbers, to the last bit, for any number of workers and any chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.classes.rewards import RewardFacts
from data_pipeline.prepare.survey import survey
from data_pipeline.read.chunks import ChunkSizes
from data_pipeline.settings.data import DataSettings
from tests.support.rows import write_jsonl

SCORES = np.random.default_rng(0).normal(size=400).tolist()
SIZES = ChunkSizes(lines_bytes=1_000)


def settings(tmp_path: Path, scores: list[Any], **data: Any) -> DataSettings:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    rows = [{"messages": turns, "kind": "ab"[n % 2], "score": score} for n, score in enumerate(scores)]
    described = {"path": str(write_jsonl(tmp_path / "rows.jsonl", rows)), "format": "messages"}
    if "classes_from" not in data:
        described |= {"class_field": "kind", "reward_field": "score"}
        data["classes"] = {name: {"condition": name, "baseline": "mean"} for name in "ab"}
    return DataSettings.model_validate({"prepared_dir": "p", "beta": 0.5, "sources": [described], **data})


@pytest.mark.parametrize("num_workers", [1, 2])
def test_baselines_are_the_means_of_all_scores_in_their_order(num_workers: int, tmp_path: Path) -> None:
    facts = survey(settings(tmp_path, SCORES), num_workers=num_workers, sizes=SIZES)
    means = {name: float(np.mean(SCORES[number::2])) for number, name in enumerate("ab")}
    assert facts.baselines == means, "exactly"
    shaped = [score - means["ab"[number % 2]] for number, score in enumerate(SCORES)]
    assert facts.largest == max(shaped)
    parts = [SCORES[0::2][start : start + 5] for start in range(0, 200, 5)]
    assert sum(sum(part) for part in parts) / 200 != means["a"], "control: sums of chunks differ in the last bit"


@pytest.mark.parametrize("num_workers", [1, 2])
def test_edges_are_the_quantiles_of_all_scores(num_workers: int, tmp_path: Path) -> None:
    rule = {"field": "score", "quantiles": 3, "conditions": ["A", "B", "C"]}
    facts = survey(settings(tmp_path, SCORES, classes_from=rule), num_workers=num_workers, sizes=SIZES)
    assert facts.edges == tuple(np.quantile(SCORES, [1 / 3, 2 / 3]).tolist())


def test_rows_that_cannot_be_used_are_passed_over(tmp_path: Path) -> None:
    facts = survey(settings(tmp_path, [1.0, 2.0, "high", None, 3.0]), num_workers=1, sizes=SIZES)
    assert facts.baselines == {"a": 2.0, "b": 2.0}


def test_nothing_is_read_where_no_score_is_needed(tmp_path: Path) -> None:
    sources = [{"path": str(tmp_path / "missing.jsonl"), "format": "messages", "class": "a"}]
    data = {"prepared_dir": "p", "classes": {"a": {"condition": "A", "weight": 1.0}}, "sources": sources}
    facts = survey(DataSettings.model_validate(data), num_workers=1, sizes=SIZES)
    assert facts == RewardFacts(baselines={})
