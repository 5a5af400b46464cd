"""From reward to loss weight: the formula, who may weigh a message, and float32 all the way to the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from data_pipeline.classes.rewards import RewardFacts
from data_pipeline.classes.tagging import UNCONDITIONED, class_table, tag
from data_pipeline.conversation import Conversation, Message
from data_pipeline.errors import RowError, UserError
from data_pipeline.prepare.prepare import prepare
from data_pipeline.prepared.dataset import PreparedSplit
from data_pipeline.settings.data import DataSettings, class_weights
from tests.support.data import Row, make_job, prepare_rows, source
from tests.support.rows import write_jsonl

BETA = 0.4342945  # 1 / ln(10): a reward lower by 1 weighs a tenth


def data_settings(classes: dict[str, Any], **more: Any) -> DataSettings:
    described = {"path": "unused.jsonl", "format": "messages", "class": next(iter(classes))}
    return DataSettings.model_validate({"prepared_dir": "unused", "classes": classes, "sources": [described], **more})


def rewards(*values: float) -> dict[str, Any]:
    return {f"class_{number}": {"condition": f"C{number}", "reward": value} for number, value in enumerate(values)}


# ---- the formula ----

WEIGHTS = [
    ("openchat", rewards(1.0, 0.0), BETA, [1.0, 0.1]),
    ("only the difference counts", rewards(11.0, 10.0), BETA, [1.0, 0.1]),
    ("negative rewards", rewards(-3.0, -2.0), BETA, [0.1, 1.0]),
    ("one class", rewards(0.3), BETA, [1.0]),
    ("equal rewards", rewards(0.5, 0.5), 1.0, [1.0, 1.0]),
    ("three classes", rewards(1.0, 0.5, 0.0), BETA, [1.0, 0.31622776, 0.1]),
    ("three classes, beta 1", rewards(0.0, 2.0, 1.0), 1.0, [0.13533528, 1.0, 0.36787944]),
    (
        "weights as given",
        {"a": {"condition": "A", "weight": 0.7}, "b": {"condition": "B", "weight": 3.0}},
        None,
        [0.7, 3.0],
    ),
    (
        "a weight of zero",
        {"a": {"condition": "A", "weight": 1.0}, "b": {"condition": "B", "weight": 0.0}},
        None,
        [1.0, 0.0],
    ),
    (
        "a given weight is not a reward",
        {**rewards(1.0, 0.0), "given": {"condition": "G", "weight": 5.0}},
        BETA,
        [1.0, 0.1, 5.0],
    ),
]


@pytest.mark.parametrize(
    ("name", "classes", "beta", "expected"), WEIGHTS, ids=[row[0].replace(" ", "_") for row in WEIGHTS]
)
def test_reward_becomes_weight(name: str, classes: dict[str, Any], beta: float | None, expected: list[float]) -> None:
    data = data_settings(classes, beta=beta)
    weights = class_weights(data)
    assert list(weights) == list(classes)
    assert list(weights.values()) == pytest.approx(expected, abs=1e-6)
    table = class_table(data, RewardFacts(baselines={}))
    assert [(row.name, row.condition, row.weight) for row in table.values()] == [
        (name, spec["condition"], weights[name]) for name, spec in classes.items()
    ]


IMPOSSIBLE = [
    ("reward and weight", {"a": {"condition": "A", "reward": 1.0, "weight": 1.0}}, BETA, "not both"),
    ("neither reward nor weight", {"a": {"condition": "A"}}, BETA, "give `reward` or `weight`"),
    ("no condition", {"a": {"reward": 1.0}}, BETA, "condition"),
    ("reward without beta", rewards(1.0), None, "beta"),
    ("beta of zero", rewards(1.0), 0.0, "beta"),
    ("negative weight", {"a": {"condition": "A", "weight": -1.0}}, None, "weight"),
    ("infinite weight", {"a": {"condition": "A", "weight": float("inf")}}, None, "weight"),
    ("NaN reward", rewards(float("nan"), 1.0), BETA, "reward"),
    ("a reward so low that float32 has no weight for it", rewards(1.0, -100.0), BETA, "classes.class_1: reward -100.0"),
    ("a weight so low that float32 has none for it", {"a": {"condition": "A", "weight": 1e-300}}, None, "weight"),
    ("a lone surrogate in the condition", {"a": {"condition": "\ud800", "weight": 1.0}}, None, "condition"),
    ("U+FDD0 in the condition", {"a": {"condition": "A\ufdd0", "weight": 1.0}}, None, "condition"),
    ("a weight so high that float32 has none for it", {"a": {"condition": "A", "weight": 1e300}}, None, "weight"),
]


@pytest.mark.parametrize(
    ("name", "classes", "beta", "part"), IMPOSSIBLE, ids=[row[0].replace(" ", "_") for row in IMPOSSIBLE]
)
def test_impossible_class_is_refused(name: str, classes: dict[str, Any], beta: float | None, part: str) -> None:
    with pytest.raises(ValidationError, match=part):
        data_settings(classes, beta=beta)


# ---- tagging ----


def conversation(*weights: float | None, **changes: Any) -> Conversation:
    """Messages of user and assistant in turn, with these own weights."""
    messages = tuple(
        Message(role="assistant" if number % 2 else "user", content="x", weight=weight)
        for number, weight in enumerate(weights)
    )
    return Conversation(id="1", place="file:1", messages=messages, **changes)


TABLE = class_table(
    data_settings({**rewards(1.0, 0.0), "plain": {"condition": "", "weight": 2.0}}, beta=BETA),
    RewardFacts(baselines={}),
)


def test_class_of_the_source_gives_condition_and_weights() -> None:
    tagged = tag(conversation(None, None, None, None), class_name="class_1", classes=TABLE)
    assert (tagged.class_name, tagged.condition) == ("class_1", "C1")
    assert tagged.message_weights == pytest.approx((0.0, 0.1, 0.0, 0.1), abs=1e-6)


def test_weight_of_a_message_multiplies_the_class_weight() -> None:
    tagged = tag(conversation(0.0, 0.5, None, 0.0, None, 3.0), class_name="plain", classes=TABLE)
    assert tagged.condition == ""
    assert tagged.message_weights == (0.0, 1.0, 0.0, 0.0, 0.0, 6.0)


def test_class_field_of_the_row_names_the_class() -> None:
    assert tag(conversation(None, None, class_value="class_0"), class_name=None, classes=TABLE).class_name == "class_0"


def test_class_of_the_source_rules_over_the_row() -> None:
    tagged = tag(conversation(0.0, 0.3, condition="C9"), class_name="class_0", classes=TABLE)
    assert (tagged.class_name, tagged.condition) == ("class_0", "C0")


@pytest.mark.parametrize(("condition", "name"), [("GPT3", "GPT3"), ("", UNCONDITIONED)])
def test_openchat_row_is_its_own_class(condition: str, name: str) -> None:
    """Its weights are kept unchanged, also a user's."""
    tagged = tag(conversation(0.2, 0.1, 0.0, 7.0, condition=condition), class_name=None, classes={})
    assert (tagged.class_name, tagged.condition, tagged.message_weights) == (name, condition, (0.2, 0.1, 0.0, 7.0))


UNTAGGABLE = {
    "unknown class": (conversation(None, None, class_value="expert"), {}, "unknown_class"),
    "class in other letters": (conversation(None, None, class_value="Class_0"), {}, "unknown_class"),
    "weighted user": (conversation(1.0, None), {"class_name": "class_0"}, "invalid_weight"),
    "openchat answer without weight": (conversation(0.0, None, condition="C"), {}, "invalid_weight"),
}


@pytest.mark.parametrize("name", UNTAGGABLE)
def test_row_without_a_clear_class_is_an_error_and_never_gets_a_default(name: str) -> None:
    row, more, reason = UNTAGGABLE[name]
    with pytest.raises(RowError) as caught:
        tag(row, **{"class_name": None, **more}, classes=TABLE)
    assert caught.value.reason == reason


# ---- on disk ----


def turns(*weights: float | None) -> list[dict[str, Any]]:
    """Turns of user and assistant, with a `weight` where one is given."""
    return [
        {"role": "assistant" if number % 2 else "user", "content": f"text {number}"}
        | ({} if w is None else {"weight": w})
        for number, w in enumerate(weights)
    ]


def supervised(row: Row) -> list[float]:
    """The weight of each run of supervised tokens."""
    weights = np.array(row.loss_weights)
    starts = np.flatnonzero((weights > 0) & (np.roll(weights, 1) != weights))
    return weights[starts].tolist()


def float32(*weights: float) -> list[float]:
    return [float(np.float32(weight)) for weight in weights]


def test_weights_are_float32_on_disk_and_their_sum_is_that_of_the_rows(
    tmp_path: Path, small_tokenizer_dir: Path
) -> None:
    classes = {**rewards(1.0, 0.0), "third": {"condition": "C", "weight": 1 / 3}}
    rows = [{"messages": turns(None, None), "quality": name} for name in classes]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    described = source(path, class_field="quality")
    job = make_job(tmp_path / "prepared", [described], small_tokenizer_dir, classes=classes, beta=BETA)
    manifest, prepared = prepare_rows(job)
    expected = [np.float32(class_weights(job.data)[name]) for name in classes]
    assert [supervised(row) for row in prepared] == [[float(weight)] for weight in expected]
    assert expected == [np.float32(1.0), np.float32(np.exp(-1 / BETA)), np.float32(1 / 3)]
    split = PreparedSplit(tmp_path / "prepared", "train")
    assert {split[row].loss_weights.dtype for row in range(3)} == {np.dtype(np.float32)}
    assert {split[row].input_ids.dtype for row in range(3)} == {np.dtype(np.int32)}
    table = datasets.load_from_disk(str(tmp_path / "prepared"))["train"].data.table
    assert table.schema.field("loss_weights").type == pa.list_(pa.float32())
    sums = [float(split[row].loss_weights.sum(dtype=np.float64)) for row in range(3)]
    assert split.weight_sum.tolist() == sums
    assert split.num_supervised_tokens.tolist() == [int((split[row].loss_weights > 0).sum()) for row in range(3)]
    assert [manifest.classes[number].name for number in split.class_id] == list(classes)
    assert [row.weight_share for row in manifest.classes] == pytest.approx(
        [value / sum(sums) for value in sums], abs=1e-12
    )
    assert [row.conversations for row in manifest.classes] == [1, 1, 1]


def test_message_weight_multiplies_on_disk(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    """0 masks a message, 1 and none mean the class weight, anything else multiplies it."""
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": turns(None, 0.5, 0.0, 0.0, None, 1, None, None)}])
    classes = {"only": {"condition": "C", "weight": 0.1}}
    job = make_job(tmp_path / "prepared", [source(path, **{"class": "only"})], small_tokenizer_dir, classes=classes)
    _, [row] = prepare_rows(job)
    assert supervised(row) == float32(0.05, 0.1, 0.1)


def test_openchat_weights_are_those_of_the_row(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    rows = [
        {"items": turns(0.0, 0.1, 0.0, 1 / 7), "condition": "GPT3", "system": ""},
        {"items": turns(0.0, 1.0, 0.25, 0.0), "condition": "", "system": "Be brief."},
        {"items": turns(None, 5), "condition": "GPT3"},
    ]
    described = source(write_jsonl(tmp_path / "rows.jsonl", rows), format="openchat")
    manifest, prepared = prepare_rows(make_job(tmp_path / "prepared", [described], small_tokenizer_dir, classes={}))
    assert [supervised(row) for row in prepared] == [float32(0.1, 1 / 7), [1.0, 0.25], [5.0]]
    found = [(row.name, row.condition, row.weight, row.conversations) for row in manifest.classes]
    assert found == [("GPT3", "GPT3", None, 2), (UNCONDITIONED, "", None, 1)]


def test_openchat_rows_in_a_class_have_its_weight_and_keep_only_their_mask(
    tmp_path: Path, small_tokenizer_dir: Path
) -> None:
    rows = [{"items": turns(0.0, 1.0, 0.0, 0.0, 0.0, 0.3), "condition": "GPT3"}, {"items": turns(0.5, None)}]
    classes = {"only": {"condition": "GPT4 Correct", "weight": 0.2}}
    described = source(write_jsonl(tmp_path / "rows.jsonl", rows), format="openchat", **{"class": "only"})
    manifest, prepared = prepare_rows(
        make_job(tmp_path / "prepared", [described], small_tokenizer_dir, classes=classes)
    )
    assert [supervised(row) for row in prepared] == [float32(0.2, 0.2), float32(0.2)]
    assert [(row.name, row.condition, row.conversations) for row in manifest.classes] == [("only", "GPT4 Correct", 2)]


@pytest.mark.parametrize("known_condition", ["GPT3", "GPT4"])
def test_openchat_condition_that_is_also_the_name_of_a_class(
    known_condition: str, tmp_path: Path, small_tokenizer_dir: Path
) -> None:
    """One class where both mean the same condition; otherwise the recipe must say which is meant."""
    native = write_jsonl(tmp_path / "native.jsonl", [{"items": turns(0.0, 0.5), "condition": "GPT3"}])
    other = write_jsonl(tmp_path / "other.jsonl", [{"messages": turns(None, None)}])
    classes = {"GPT3": {"condition": known_condition, "weight": 0.1}}
    described = [source(native, format="openchat"), source(other, **{"class": "GPT3"})]
    job = make_job(tmp_path / "prepared", described, small_tokenizer_dir, classes=classes)
    if known_condition == "GPT4":
        with pytest.raises(UserError, match=r"data\.classes\.GPT3: .*'GPT4'.*'GPT3'"):
            prepare(job, num_workers=1)
        return
    manifest, prepared = prepare_rows(job)
    assert [supervised(row) for row in prepared] == [[0.5], float32(0.1)]
    assert [(row.name, row.conversations) for row in manifest.classes] == [("GPT3", 2)]
