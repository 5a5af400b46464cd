"""Rewards of single conversations, quantile classes, condition dropout, single classes: against figures worked out by
hand.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.errors import UserError
from data_pipeline.prepare.prepare import prepare
from data_pipeline.prepared.dataset import Manifest, PreparedSplit
from data_pipeline.read.chunks import ChunkSizes
from data_pipeline.settings.data import DataSettings
from tests.support.data import make_job, rows_of, source
from tests.support.rows import write_jsonl

SCORED: dict[str, Any] = {"expert": {"condition": "GPT4 Correct"}}


def rows(scores: list[Any], *, answer: str = "Yes.") -> list[dict[str, Any]]:
    """A conversation for each score, told apart by its id."""
    return [
        {
            "id": f"r{number}",
            "meta": {"score": score},
            "messages": [{"role": "user", "content": f"Question {number}?"}, {"role": "assistant", "content": answer}],
        }
        for number, score in enumerate(scores)
    ]


@pytest.fixture
def weights(tmp_path: Path, small_tokenizer_dir: Path) -> Any:
    """Prepares rows with scores; returns the weight of every conversation, by id, and the manifest."""

    def run(
        scores: list[Any], *, num_workers: int = 1, sources: list[dict[str, Any]] | None = None, **data: Any
    ) -> Any:
        path = write_jsonl(tmp_path / "rows.jsonl", rows(scores))
        data = {"classes": SCORED, "beta": 0.5, **data}
        settings = sources or [source(path, reward_field="meta.score")]
        job = make_job(tmp_path / "prepared", settings, small_tokenizer_dir, **data)
        manifest, _ = prepare(job, num_workers=num_workers)
        found = {row.id: set(row.loss_weights) - {0.0} for row in rows_of(tmp_path / "prepared")}
        assert all(len(values) == 1 for values in found.values()), "one weight in a conversation"
        return {name: values.pop() for name, values in found.items()}, manifest

    return run


def test_weights_follow_the_formula(weights: Any) -> None:
    found, manifest = weights([1.0, 0.5, 0.0, -1.0])
    expected = {"r0": 1.0, "r1": math.exp(-1.0), "r2": math.exp(-2.0), "r3": math.exp(-4.0)}
    assert found == pytest.approx(expected, rel=1e-6)
    row = manifest.classes[0]
    assert row.weight is None
    assert (row.smallest_weight, row.largest_weight) == pytest.approx((math.exp(-4.0), 1.0), rel=1e-6)
    total, squares = sum(expected.values()), sum(value**2 for value in expected.values())
    assert row.effective_conversations == pytest.approx(total**2 / squares, rel=1e-6)


def test_clip_and_baselines(weights: Any) -> None:
    assert weights([9.0, 0.5, -7.0], reward_clip=[0.0, 1.0])[0] == pytest.approx(
        {"r0": 1.0, "r1": math.exp(-1.0), "r2": math.exp(-2.0)}, rel=1e-6
    )
    classes = {"expert": {"condition": "GPT4 Correct", "baseline": 0.25}}
    assert weights([1.0, 0.5], classes=classes)[0] == pytest.approx({"r0": 1.0, "r1": math.exp(-1.0)}, rel=1e-6)


def test_mean_baseline_compares_conversations_inside_their_class(weights: Any, tmp_path: Path) -> None:
    """Class a scores 10 and 12, class b 0 and 1: less the means -1, 1, -.5, .5; without baselines b would weigh
    nothing.
    """
    low = write_jsonl(tmp_path / "low.jsonl", [{**row, "id": "b" + row["id"]} for row in rows([0.0, 1.0])])
    high = write_jsonl(tmp_path / "high.jsonl", [{**row, "id": "a" + row["id"]} for row in rows([10.0, 12.0])])
    sources = [
        source(high, reward_field="meta.score", **{"class": "a"}),
        source(low, reward_field="meta.score", **{"class": "b"}),
    ]
    classes = {name: {"condition": name, "baseline": "mean"} for name in "ab"}
    found, _ = weights([], sources=sources, classes=classes)
    expected = {"ar0": math.exp(-4.0), "ar1": 1.0, "br0": math.exp(-3.0), "br1": math.exp(-1.0)}
    assert found == pytest.approx(expected, rel=1e-6)
    without, _ = weights([], sources=sources, classes={name: {"condition": name} for name in "ab"})
    assert without["br1"] == pytest.approx(math.exp(-22.0), rel=1e-6), "control"


def test_rewards_of_rows_and_of_classes_share_one_scale(weights: Any, tmp_path: Path) -> None:
    fixed = write_jsonl(tmp_path / "fixed.jsonl", [{**row, "id": "f"} for row in rows([None])])
    path = write_jsonl(tmp_path / "scored.jsonl", rows([3.0, 2.0]))
    sources = [source(path, reward_field="meta.score"), source(fixed, **{"class": "chat"})]
    classes = {**SCORED, "chat": {"condition": "", "reward": 2.5}}
    found, manifest = weights([], sources=sources, classes=classes)
    assert found == pytest.approx({"r0": 1.0, "r1": math.exp(-2.0), "f": math.exp(-1.0)}, rel=1e-6)
    assert [row.weight for row in manifest.classes] == [None, pytest.approx(math.exp(-1.0))]


@pytest.mark.parametrize(
    ("score", "reason"),
    [
        ("high", "invalid_reward"),
        (True, "invalid_reward"),
        (None, "invalid_reward"),
        (1e9, "invalid_reward"),
        (float("nan"), "invalid_reward"),
    ],
)
def test_row_without_a_usable_reward_is_a_bad_row_with_its_place(weights: Any, score: Any, reason: str) -> None:
    with pytest.raises(UserError, match=rf"{reason}: 1\n.*rows.jsonl:2: meta\.score: .* is not a number from"):
        weights([1.0, score])
    found, manifest = weights([1.0, score, 0.5], bad_rows="drop")
    assert found == pytest.approx({"r0": 1.0, "r2": math.exp(-1.0)}, rel=1e-6)
    assert manifest.ledger.dropped == {reason: 1}


def test_missing_field_is_a_bad_row(weights: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "none.jsonl", [{**rows([0.0])[0], "meta": {}}])
    with pytest.raises(UserError, match=r"missing_key: 1\n.*`meta\.score`, which holds the reward, is missing"):
        weights([], sources=[source(path, reward_field="meta.score")])


def test_weight_of_next_to_nothing_is_an_error(weights: Any) -> None:
    with pytest.raises(
        UserError, match=r"data\.beta: 0\.001 with rewards from 0 .* raise beta, or set `data\.reward_clip`"
    ):
        weights([1.0, 0.0], beta=0.001)


# ---- quantiles ----


def quantiles(number: int, **more: Any) -> dict[str, Any]:
    rule = {"field": "meta.score", "quantiles": number, "conditions": [f"Score {n}" for n in range(number)], **more}
    return {"classes": {}, "classes_from": rule}


@pytest.fixture
def classes_of(tmp_path: Path, small_tokenizer_dir: Path) -> Any:
    """Prepares rows with quantile classes; returns the class name of every conversation, by id, and the manifest."""

    def run(scores: list[Any], *, num_workers: int = 1, sizes: ChunkSizes | None = None, **data: Any) -> Any:
        path = write_jsonl(tmp_path / "rows.jsonl", rows(scores))
        settings = [{"path": str(path), "format": "messages"}]
        manifest, _ = prepare(
            make_job(tmp_path / "prepared", settings, small_tokenizer_dir, **{"beta": 0.5, **data}),
            num_workers=num_workers,
            sizes=sizes,
        )
        split = PreparedSplit(tmp_path / "prepared", "train")
        names = [manifest.classes[number].name for number in split.class_id]
        return {split.conversation_id(row): name for row, name in enumerate(names)}, manifest

    return run


@pytest.mark.parametrize("num_workers", [1, 2])
def test_quantile_classes_hold_equally_many_from_low_to_high(classes_of: Any, num_workers: int) -> None:
    scores = np.random.default_rng(0).permutation(40).astype(float).tolist()
    sizes = ChunkSizes(lines_bytes=500)
    found, manifest = classes_of(scores, num_workers=num_workers, sizes=sizes, **quantiles(4))
    assert found == {f"r{number}": f"q{1 + int(score // 10)}" for number, score in enumerate(scores)}
    assert [row.condition for row in manifest.classes] == ["Score 0", "Score 1", "Score 2", "Score 3"]
    assert [row.conversations for row in manifest.classes] == [10] * 4
    assert [row.weight for row in manifest.classes] == pytest.approx([math.exp((n / 3 - 1) / 0.5) for n in range(4)])


def test_score_on_an_edge_belongs_to_the_class_above(classes_of: Any) -> None:
    """The median of 1, 2, 2, 3 is 2."""
    found, _ = classes_of([1.0, 2.0, 2.0, 3.0], **quantiles(2, rewards=[0.0, 2.0]))
    assert found == {"r0": "q1", "r1": "q2", "r2": "q2", "r3": "q2"}


def test_ties_that_empty_a_quantile_are_an_error(classes_of: Any) -> None:
    with pytest.raises(
        UserError, match=r"quantile 1 of 4 holds no conversation: meta\.score is 0 in 9 of 10; use fewer"
    ):
        classes_of([0.0] * 9 + [1.0], **quantiles(4))


# ---- condition dropout ----


def test_condition_dropout_leaves_the_condition_out_of_its_share(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    from tokenizers import Tokenizer

    def run(name: str, raw: list[dict[str, Any]], **data: Any) -> tuple[Manifest, set[str]]:
        path = write_jsonl(tmp_path / f"{name}.jsonl", raw)
        job = make_job(tmp_path / name, [source(path)], small_tokenizer_dir, validation_ratio=0.2, **data)
        manifest, _ = prepare(job, num_workers=1)
        train, validation = (PreparedSplit(tmp_path / name, "train"), PreparedSplit(tmp_path / name, "validation"))
        assert set(validation.condition_id.tolist()) == {0}, "never a held-out one"
        tokenizer = Tokenizer.from_file(str(tmp_path / name / "tokenizer" / "tokenizer.json"))
        left_out = set()
        for row in range(len(train)):
            text = tokenizer.decode(train[row].input_ids.tolist(), skip_special_tokens=False)
            assert ("GPT4 Correct" in text) == (train.condition_id[row] == 0)
            assert train.class_id[row] == 0
            if train.condition_id[row]:
                left_out.add(train.conversation_id(row))
        assert manifest.ledger.condition_left_out == len(left_out)
        return manifest, left_out

    raw = rows([0.0] * 1000)
    manifest, dropped = run("some", raw, condition_dropout=0.3)
    assert manifest.conditions == ["GPT4 Correct", ""]
    assert 190 <= len(dropped) <= 290, "240 expected of 800; the standard deviation is 13"
    assert run("backwards", raw[::-1], condition_dropout=0.3)[1] == dropped
    manifest, dropped = run("none", raw)
    assert (manifest.conditions, dropped) == (["GPT4 Correct"], set())


def test_matrix_asks_held_out_conversations_without_a_condition_too(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", rows([0.0] * 50))
    prepare(
        make_job(
            tmp_path / "prepared", [source(path)], small_tokenizer_dir, validation_ratio=0.2, condition_dropout=0.01
        ),
        num_workers=1,
    )
    others = PreparedSplit(tmp_path / "prepared", "conditions")
    assert len(others) == len(PreparedSplit(tmp_path / "prepared", "validation")) > 3
    assert set(others.condition_id.tolist()) == {1}


# ---- single classes, seeds ----


def test_only_classes_leaves_the_others_out_and_counts_them(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{**row, "kind": "ab"[n % 2]} for n, row in enumerate(rows([0.0] * 7))])
    classes = {name: {"condition": name, "weight": 1.0} for name in "ab"}
    job = make_job(
        tmp_path / "prepared",
        [source(path, class_field="kind")],
        small_tokenizer_dir,
        classes=classes,
        only_classes=["b"],
    )
    manifest, _ = prepare(job, num_workers=1)
    assert [row.id for row in rows_of(tmp_path / "prepared")] == ["r1", "r3", "r5"]
    assert manifest.ledger.dropped == {"other_class": 4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"classes": {"expert": {"condition": "A"}}},
            "give `reward` or `weight`, or a `reward_field` to each of its sources",
        ),
        (
            {"classes": {"expert": {"condition": "A", "reward": 1.0, "weight": 1.0}}},
            "give one of `reward` and `weight`, not both",
        ),
        (
            {"classes": {"expert": {"condition": "A", "weight": 1.0, "baseline": 1.0}}},
            "`baseline` is for classes whose rewards",
        ),
        ({"reward_field": "s"}, "has its own `reward` or `weight`, and a source with `reward_field`; keep one"),
        ({"reward_field": "s", "classes": SCORED, "beta": None}, "`beta` is missing"),
        ({"reward_clip": [0.0, 1.0]}, "reward_clip: no source has a `reward_field`"),
        ({"reward_field": "s", "classes": SCORED, "reward_clip": [1.0, 1.0]}, "is not [low, high] with low < high"),
        ({"only_classes": ["other"]}, "only_classes: unknown class `other`; classes: expert"),
        (quantiles(2), "sources.0: `classes_from` decides class and reward; remove `class`"),
        (
            {**quantiles(3, conditions=["A"]), "class": None},
            "`conditions` has 1 entries for 3 quantiles; give one for each",
        ),
        ({**quantiles(2, conditions=["A", "A"]), "class": None}, "holds the same text twice"),
        (
            {**quantiles(2), "classes": {"expert": {"condition": "A", "weight": 1.0}}, "class": None},
            "instead of `classes`",
        ),
        ({"class": None}, "sources.0: give `class` or `class_field`"),
    ],
)
def test_settings_that_contradict_each_other(changes: dict[str, Any], message: str) -> None:
    in_source = {key: changes[key] for key in ("reward_field", "class") if key in changes}
    data = {key: value for key, value in changes.items() if key not in in_source}
    settings = {
        "prepared_dir": "p",
        "beta": 0.5,
        "classes": {"expert": {"condition": "A", "weight": 1.0}},
        "sources": [{"path": "a.jsonl", "format": "messages", "class": "expert", **in_source}],
        **data,
    }
    with pytest.raises(ValueError, match=re.escape(message)):
        DataSettings.model_validate(settings)
