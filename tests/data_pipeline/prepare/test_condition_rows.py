"""The split `conditions`: held-out conversations under the other conditions, with the same supervised text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from data_pipeline.conversation import Conversation, Message, TaggedConversation, TokenizedConversation
from data_pipeline.prepare.condition_rows import HeldOut, condition_rows
from data_pipeline.prepare.prepare import prepare
from data_pipeline.prepared.dataset import Manifest, PreparedSplit
from data_pipeline.prompt.render import render
from data_pipeline.prompt.tokenization import TemplateTokenizer
from tests.support.data import make_job, source
from tests.support.rows import conversations, write_jsonl

CLASSES = {
    "expert": {"condition": "GPT4 Correct", "weight": 1.0},
    "suboptimal": {"condition": "GPT3", "weight": 0.1},
    "chat": {"condition": "", "weight": 0.5},
}


@pytest.fixture
def prepared(tmp_path: Path, small_tokenizer_dir: Path) -> Any:
    """Prepares three classes of conversations, four of ten held out, into a folder."""

    def make(**more: Any) -> tuple[Manifest, PreparedSplit, PreparedSplit, Tokenizer]:
        rows = conversations(60)
        names = list(CLASSES)
        paths = {name: write_jsonl(tmp_path / f"{name}.jsonl", rows[number::3]) for number, name in enumerate(names)}
        sources = [source(path, **{"class": name}) for name, path in paths.items()]
        job = make_job(
            tmp_path / "prepared", sources, small_tokenizer_dir, classes=CLASSES, validation_ratio=0.4, **more
        )
        manifest, _ = prepare(job, num_workers=1)
        tokenizer = Tokenizer.from_file(str(tmp_path / "prepared" / "tokenizer" / "tokenizer.json"))
        folder = tmp_path / "prepared"
        return manifest, PreparedSplit(folder, "validation"), PreparedSplit(folder, "conditions"), tokenizer

    return make


def test_every_held_out_conversation_stands_under_every_other_condition(prepared: Any) -> None:
    manifest, validation, others, _ = prepared()
    assert manifest.conditions == ["GPT4 Correct", "GPT3", ""]
    expected = {
        (row, condition)
        for row in range(len(validation))
        for condition in range(3)
        if condition != validation.condition_id[row]
    }
    assert len(validation) > 10
    assert set(zip(others.validation_row.tolist(), others.condition_id.tolist(), strict=True)) == expected
    assert len(others) == len(expected)


def test_rows_differ_from_the_validation_row_in_the_condition_alone(prepared: Any) -> None:
    manifest, validation, others, tokenizer = prepared()
    for number in range(len(others)):
        row = int(others.validation_row[number])
        own, other = validation[row], others[number]
        supervised = own.input_ids[own.loss_weights > 0].tolist()
        assert other.input_ids[other.loss_weights > 0].tolist() == supervised
        assert other.loss_weights[other.loss_weights > 0].tolist() == own.loss_weights[own.loss_weights > 0].tolist()
        assert others.class_id[number] == validation.class_id[row]
        assert others.conversation_id(number) == validation.conversation_id(row)
        texts = [tokenizer.decode(ids.tolist(), skip_special_tokens=False) for ids in (own.input_ids, other.input_ids)]
        leads = [
            manifest.conditions[i] + " " if manifest.conditions[i] else ""
            for i in (validation.condition_id[row], others.condition_id[number])
        ]
        neutral = [
            text.replace(f"{lead}User:", "User:").replace(f"{lead}Assistant:", "Assistant:")
            for text, lead in zip(texts, leads, strict=True)
        ]
        assert texts[0] != texts[1]
        assert neutral[0] == neutral[1]


@pytest.mark.parametrize(
    "template", ["openchat_3.5", "chatml"]
)  # chatml writes text after the last turn, which is left out
def test_conversation_that_is_cut_under_any_condition_is_left_out_under_all(prepared: Any, template: str) -> None:
    """Lengths differ by condition; the limit is chosen so that some conversations fit under some conditions only."""
    _, validation, others, _ = prepared(template=template)
    lengths: dict[int, list[int]] = {row: [int(validation.num_tokens[row])] for row in range(len(validation))}
    for number in range(len(others)):
        lengths[int(others.validation_row[number])].append(int(others.num_tokens[number]))
    limit = sorted(max(sizes) for sizes in lengths.values())[len(lengths) // 2]
    fitting = {row for row, sizes in lengths.items() if max(sizes) <= limit}
    assert any(min(sizes) <= limit < max(sizes) for sizes in lengths.values()), "one fits under some conditions only"
    _, validation, others, _ = prepared(template=template, max_length_tokens=limit)
    assert set(others.validation_row.tolist()) == fitting
    assert len(others) == 2 * len(fitting)


def test_limit_of_conversations_of_each_class(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    sources = [source("unused.jsonl", **{"class": name}) for name in CLASSES]
    job = make_job(tmp_path / "prepared", sources, small_tokenizer_dir, classes=CLASSES)
    held_out = []
    for row in range(30):
        name = list(CLASSES)[row % 3]
        messages = (Message(role="user", content=f"{row}?"), Message(role="assistant", content="Yes."))
        tagged = TaggedConversation(
            conversation=Conversation(id=str(row), place=str(row), messages=messages),
            class_name=name,
            condition=str(CLASSES[name]["condition"]),
            message_weights=(0.0, 1.0),
        )
        [tokens] = TemplateTokenizer(job.tokenizer).tokenize(
            [render(tagged, job.template, bos_token=job.tokenizer.bos_token)]
        )
        assert isinstance(tokens, TokenizedConversation)
        num_supervised = int((tokens.loss_weights > 0).sum())
        held_out.append(HeldOut(validation_row=row, tagged=tagged, num_supervised_tokens=num_supervised))
    conditions = {str(spec["condition"]): number for number, spec in enumerate(CLASSES.values())}
    classes = {name: number for number, name in enumerate(CLASSES)}
    [batch] = condition_rows(held_out, conditions, classes, job, most_per_class=3)
    rows = set(batch.column("validation_row").to_pylist())
    assert batch.num_rows == 18, "9 conversations, each under two other conditions"
    assert sorted(row % 3 for row in rows) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert rows != set(range(9)), "not simply the first ones"
