"""Marks that say how much is learned from a message are weights, whatever they are called, and are never dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_pipeline.classes.tagging import ConversationClass, tag
from data_pipeline.errors import RowError
from data_pipeline.formats.marks import MARKS
from data_pipeline.formats.unread import UnreadFieldError
from data_pipeline.read.rows import parse_row
from data_pipeline.settings.sources import SourceSettings
from tests.support.data import make_job, prepare_rows, source
from tests.support.rows import write_jsonl

TURNS = [("user", "What is 1 plus 1?"), ("assistant", "It is 3."), ("user", "Check."), ("assistant", "It is 2.")]
TABLE = {"expert": ConversationClass(name="expert", condition="GPT4 Correct", weight=0.5)}


def chat(*marks: dict[str, Any], **row: Any) -> dict[str, Any]:
    """Four messages; marks: of each, where some are given."""
    given = marks or ({},) * 4
    return {
        "messages": [{"role": role, "content": text, **more} for (role, text), more in zip(TURNS, given, strict=True)],
        **row,
    }


def settings(layout: str = "messages", **more: Any) -> SourceSettings:
    return SourceSettings.model_validate({"path": "a", "format": layout, "class": "expert", **more})


def weights_of(row: Any, layout: str = "messages", **more: Any) -> list[float]:
    conversation = parse_row(row, place="a:1", source=settings(layout, **more))
    return list(tag(conversation, class_name="expert", classes=TABLE).message_weights)


@pytest.mark.parametrize("name", MARKS)
def test_each_mark_is_a_weight(name: str) -> None:
    more = MARKS[name]
    off: Any = 0 if name == "weight" else not more
    on: Any = 1 if name == "weight" else more
    assert weights_of(chat({}, {name: off}, {}, {name: on})) == [0.0, 0.0, 0.0, 0.5]
    assert weights_of(chat({}, {name: None}, {}, {name: on})) == [0.0, 0.5, 0.0, 0.5]
    assert weights_of(chat()) == [0.0, 0.5, 0.0, 0.5]  # the control


@pytest.mark.parametrize("name", [name for name, more in MARKS.items() if more])
def test_a_number_is_the_weight(name: str) -> None:
    assert weights_of(chat({}, {name: 0.25}, {}, {name: 2})) == [0.0, 0.125, 0.0, 1.0]


def test_a_weight_that_float32_cannot_hold_is_a_bad_row() -> None:
    """It would be rounded to 0: the answer would be left out."""
    for weight in (1e-31, 1e-50):
        with pytest.raises(RowError, match="message 2: its weight") as caught:
            weights_of(chat({}, {"weight": weight}, {}, {}))
        assert caught.value.reason == "invalid_weight"
    assert weights_of(chat({}, {"weight": 2e-30}, {}, {}))[1] == 1e-30


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 0, 0, 1], [0.0, 0.0, 0.0, 0.5]),
        ([0, 1], [0.0, 0.0, 0.0, 0.5]),
        ([False, False, False, True], [0.0, 0.0, 0.0, 0.5]),
        ([None, 0.5, None, 1.0], [0.0, 0.25, 0.0, 0.5]),
    ],
)
@pytest.mark.parametrize("name", ["loss_mask", "weights", "train_mask"])
def test_a_list_of_the_row_has_a_weight_for_each_message_or_answer(
    name: str, values: list[Any], expected: list[float]
) -> None:
    assert weights_of(chat(**{name: values})) == expected
    with_system = chat(**{name: [0, *values] if len(values) == 4 else values})
    with_system["messages"].insert(0, {"role": "system", "content": "Be brief."})
    assert weights_of(with_system) == expected


REFUSED = {
    "two_marks_that_differ": (chat({}, {"loss": False, "weight": 1}, {}, {}), {}, "keep one of them"),
    "a_mark_and_a_list_that_differ": (chat({}, {"train": True}, {}, {}, loss_mask=[0, 0, 0, 1]), {}, "keep one"),
    "a_list_of_another_length": (chat(loss_mask=[0, 0, 1]), {}, "3 values for 4 messages and 2 answers"),
    "a_list_that_is_text": (chat(loss_mask="0001"), {}, "expected a list"),
    "training_on_a_user": (
        chat({"train": True}, {}, {}, {}),
        {},
        "only assistant messages can have a weight in a class",
    ),
    "a_user_who_is_not_masked": (chat({"masked": False}, {}, {}, {}), {}, "only assistant messages"),
    "a_mark_that_is_text": (chat({}, {"train": "no"}, {}, {}), {}, "expected a number"),
    "a_mark_that_may_mean_either": (chat({}, {"mask": 1}, {}, {}), {}, "fields: {masked: mask}"),
    "half_masked": (chat({}, {"masked": 0.5}, {}, {}), {}, "expected true or false"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_a_weight_is_a_bad_row(name: str) -> None:
    row, more, says = REFUSED[name]
    with pytest.raises(RowError, match=says) as caught:
        weights_of(row, **more)
    assert caught.value.reason == "invalid_weight"


def test_a_weighted_system_message_is_a_bad_row() -> None:
    messages = [{"role": "system", "content": "Be brief.", "train": True}, *chat()["messages"]]
    with pytest.raises(RowError, match="no system message"):
        weights_of({"messages": messages})
    messages[0]["train"] = False
    assert weights_of({"messages": messages}) == [0.0, 0.5, 0.0, 0.5]


def test_a_recipe_can_say_what_a_name_means() -> None:
    row = chat({}, {"mask": 1}, {}, {"mask": 0})
    assert weights_of(row, fields={"masked": "mask"}) == [0.0, 0.0, 0.0, 0.5]
    assert weights_of(row, fields={"weight": "mask"}) == [0.0, 0.5, 0.0, 0.0]
    assert weights_of(chat(importance=0.5), fields={"row_weight": "importance"}) == [0.0, 0.25, 0.0, 0.25]


@pytest.mark.parametrize(
    "row",
    [chat(mask_history=True), chat(train_on_prompt=True), chat(sample_weight=0.5), chat({}, {"keep": False}, {}, {})],
)
def test_a_mark_that_no_rule_knows_is_named(row: Any) -> None:
    with pytest.raises(UnreadFieldError, match="a mark for training"):
        weights_of(row)


def test_marks_of_other_layouts() -> None:
    turns = [{"input": "Hi", "output": "Ho", "output_with_loss": False}, {"input": "Hi", "output": "Ho"}]
    assert weights_of({"conversation": turns}, "turns") == [0.0, 0.0, 0.0, 0.5]
    shared = [{"from": {"user": "human"}.get(role, "gpt"), "value": text} for role, text in TURNS]
    assert weights_of({"conversations": shared, "loss_mask": [0, 0, 0, 1]}, "sharegpt") == [0.0, 0.0, 0.0, 0.5]


@pytest.mark.parametrize("mark", ["loss", "train", "weight"])
def test_a_mark_gives_the_ids_and_weights_that_a_weight_gives(
    mark: str, tmp_path: Path, small_tokenizer_dir: Path
) -> None:
    """The supervised tokens are those of the last answer alone: counted from the text, ` It is 2.` and its end."""
    off = 0 if mark == "weight" else False
    path = write_jsonl(tmp_path / "rows.jsonl", [chat({}, {mark: off}, {}, {})])
    _, [row] = prepare_rows(make_job(tmp_path / "prepared", [source(path)], small_tokenizer_dir))
    whole = write_jsonl(tmp_path / "whole.jsonl", [chat()])
    _, [control] = prepare_rows(make_job(tmp_path / "whole", [source(whole)], small_tokenizer_dir))
    assert row.input_ids == control.input_ids
    ends = [place for place, token in enumerate(row.input_ids) if token == row.input_ids[-1]]
    assert not any(row.loss_weights[: ends[2] + 1])
    assert row.loss_weights[ends[2] + 1 :] == control.loss_weights[ends[2] + 1 :]
    assert sum(control.loss_weights) > sum(row.loss_weights) > 0
