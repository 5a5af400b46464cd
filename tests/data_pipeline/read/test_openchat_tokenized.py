"""Parquet that OpenChat has tokenized: the rows of its JSONL come out, and whatever does not fit is named."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from pydantic import ValidationError

from data_pipeline.errors import UserError
from data_pipeline.ledger import MAX_EXAMPLES_PER_REASON
from data_pipeline.prepared.dataset import SPLITS, PreparedSplit
from tests.support.data import Row, make_job, prepare_rows, rows_of
from tests.support.openchat_writer import OpenChatWriter, grouped, write_parquet
from tests.support.rows import write_jsonl

MISTRAL, LLAMA_3 = "openchat_v3.2_mistral", "openchat_3.6"
TEMPLATE = {MISTRAL: "openchat_3.5", LLAMA_3: "openchat_3.6"}
IN_ROWS = {"GPT4 Correct": {"condition": "GPT4 Correct"}, "GPT3": {"condition": "GPT3"}, "plain": {"condition": ""}}
IN_TABLE = {
    "expert": {"condition": "GPT4 Correct", "reward": 1.0},
    "suboptimal": {"condition": "GPT3", "reward": 0.0},
    "plain": {"condition": "", "weight": 0.5},
}
BETA = 0.4342945  # 1.0 and 0.1
WEIGHT = {"GPT4 Correct": 1.0, "GPT3": 0.1, "": 0.5}
TEXTS = [
    "Hello, how are you?",
    "1,000 + 2",
    "ein Straßencafé 🙂",
    "a\n\nb  c",
    "typed <|eot_id|> and <|end_of_turn|>.",
    "def f(x):\n    return x\n",
]


def openchat_rows(count: int = 18) -> list[dict[str, Any]]:
    """Rows of OpenChat's JSONL: three conditions, one to three turns, some with a system text, some with masked
    answers.
    """
    rows = []
    for number in range(count):
        condition = list(WEIGHT)[number % 3]
        items: list[dict[str, Any]] = []
        for turn in range(1 + number % 3):
            answer = {"role": "assistant", "content": TEXTS[(number + turn) % len(TEXTS)] + f" {number}.{turn}"}
            items.append(
                {"role": "user", "content": f"Question {number}.{turn}: {TEXTS[number % len(TEXTS)]}", "weight": 0.0}
            )
            items.append({**answer, "weight": 0.0 if turn == 1 else WEIGHT[condition]})
        rows.append({"items": items, "condition": condition, "system": "Be brief." if number % 4 == 0 else ""})
    return rows


def content(rows: list[Row]) -> list[tuple[list[int], list[float]]]:
    return [(row.input_ids, row.loss_weights) for row in rows]


Prepare = Callable[..., tuple[Any, list[Row]]]


@pytest.fixture
def writer(small_tokenizer_dir: Path) -> OpenChatWriter:
    return OpenChatWriter(small_tokenizer_dir, LLAMA_3, bos="<s>")


@pytest.fixture
def prepared(tmp_path: Path, small_tokenizer_dir: Path) -> Prepare:
    """Prepares the rows of a tokenized file. metadata: model type in the file."""

    def make(
        rows: list[dict[str, Any]],
        *,
        metadata: str | None = LLAMA_3,
        source: dict[str, Any] | None = None,
        name: str = "data",
        tokenizer: Path = small_tokenizer_dir,
        classes: dict[str, Any] = IN_ROWS,
        template: str = "openchat_3.6",
        max_length_tokens: int = 512,
        **data: Any,
    ) -> tuple[Any, list[Row]]:
        path = tmp_path / f"{name}.parquet"
        write_parquet(path, rows, metadata=None if metadata is None else {"model_type": metadata})
        entry = {"path": str(path), "format": "openchat_tokenized", **(source or {})}
        job = make_job(
            tmp_path / "tokenized",
            [entry],
            tokenizer,
            classes=classes,
            template=template,
            max_length_tokens=max_length_tokens,
            **data,
        )
        return prepare_rows(job)

    return make


def from_jsonl(tmp_path: Path, tokenizer: Path, rows: list[dict[str, Any]], **job: Any) -> tuple[Any, list[Row]]:
    path = write_jsonl(tmp_path / "data.jsonl", rows)
    entry = {"path": str(path), "format": "openchat"}
    job = {"template": "openchat_3.6", "max_length_tokens": 512, **job}
    return prepare_rows(make_job(tmp_path / "text", [entry], tokenizer, classes={}, **job))


# ---- the same as from the JSONL ----


@pytest.mark.parametrize("model_type", [MISTRAL, LLAMA_3])
def test_the_rows_of_the_jsonl_come_out(
    model_type: str, tmp_path: Path, mistral_tokenizer_dir: Path, small_tokenizer_dir: Path, prepared: Prepare
) -> None:
    """Tokens, weights, classes, conditions, validation split and condition matrix; the real Mistral tokenizer and a
    BPE.
    """
    tokenizer = mistral_tokenizer_dir if model_type == MISTRAL else small_tokenizer_dir
    writer, rows = OpenChatWriter(tokenizer, model_type, bos="<s>"), openchat_rows(40)
    job = {"template": TEMPLATE[model_type], "validation_ratio": 0.4}
    truth, expected = from_jsonl(tmp_path, tokenizer, rows, **job)
    manifest, found = prepared(writer.rows(rows), metadata=model_type, tokenizer=tokenizer, **job)
    assert 10 < len(found) < len(rows)
    assert content(found) == content(expected)
    assert manifest.ledger.text_not_recovered == 0
    by_condition = {row.condition: row for row in truth.classes}
    for row in manifest.classes:
        other = by_condition[row.condition]
        assert (row.conversations, row.tokens, row.weight_share) == (
            other.conversations,
            other.tokens,
            other.weight_share,
        )
    for split in SPLITS:
        assert content(rows_of(tmp_path / "tokenized", split)) == content(rows_of(tmp_path / "text", split)), split
        names = []
        for made, folder in ((manifest, "tokenized"), (truth, "text")):
            columns = PreparedSplit(tmp_path / folder, split)
            numbers = zip(columns.class_id, columns.condition_id, strict=True)
            names.append([(made.classes[c].condition, made.conditions[i]) for c, i in numbers])
        assert names[0] == names[1]
        assert len(names[0]) > 10


def test_the_shift_is_undone_once(writer: OpenChatWriter, prepared: Prepare) -> None:
    """Against the tokens and weights before the writer shifted them."""
    rows = openchat_rows()
    _, found = prepared(writer.rows(rows))
    for row, (ids, weights) in zip(found, map(writer.tokens, rows), strict=True):
        length = len(row.input_ids)
        assert row.input_ids == ids[:length]
        assert row.loss_weights == np.array(weights[:length], np.float32).tolist()
        assert not any(weights[length:])


def test_classes_of_the_recipe_give_names_and_are_compared_with_the_weights(
    writer: OpenChatWriter, prepared: Prepare
) -> None:
    manifest, found = prepared(writer.rows(openchat_rows()), classes=IN_TABLE, beta=BETA)
    assert [(row.name, row.conversations) for row in manifest.classes] == [
        ("expert", 6),
        ("suboptimal", 6),
        ("plain", 6),
    ]
    stored = {weight for row in found for weight in row.loss_weights}
    assert stored == {0.0, 1.0, 0.5, float(np.float32(0.1))}, "weights of the file, not of the table"
    wrong = {**IN_TABLE, "plain": {"condition": "", "weight": 0.6}}
    with pytest.raises(UserError, match=r"other_weight: 6\n.*weight 0\.5 is not that of class plain, 0\.6"):
        prepared(writer.rows(openchat_rows()), classes=wrong, beta=BETA)


def test_per_sequence_weights_are_kept(small_tokenizer_dir: Path, prepared: Prepare) -> None:
    writer = OpenChatWriter(small_tokenizer_dir, LLAMA_3, bos="<s>", per_sequence=True)
    rows = openchat_rows()
    _, found = prepared(writer.rows(rows))
    for row, (ids, weights) in zip(found, map(writer.tokens, rows), strict=True):
        length = len(row.input_ids)
        assert (row.input_ids, row.loss_weights) == (ids[:length], np.array(weights[:length], np.float32).tolist())
    assert len({weight for row in found for weight in row.loss_weights}) > 10


def test_grouped_rows_are_parted(writer: OpenChatWriter, prepared: Prepare) -> None:
    rows = writer.rows(openchat_rows())
    _, single = prepared(rows)
    manifest, found = prepared([grouped(rows[:3]), *rows[3:5], grouped(rows[5:])], name="grouped")
    assert content(found) == content(single)
    assert manifest.ledger.read == len(rows)
    assert [row.id.split(":")[1] for row in found[:4]] == ["row 1.1", "row 1.2", "row 1.3", "row 2"]


def test_one_class_of_the_source(writer: OpenChatWriter, prepared: Prepare) -> None:
    rows = [row for row in openchat_rows() if row["condition"] == "GPT3"]
    twins = {"a": {"condition": "GPT3"}, "b": {"condition": "GPT3", "weight": 1.0}}
    manifest, found = prepared(writer.rows(rows), classes=twins, source={"class": "a"})
    assert [row.conversations for row in manifest.classes] == [len(found), 0]
    with pytest.raises(UserError, match="unknown_header: 12"):
        prepared(writer.rows(openchat_rows()), classes=twins, source={"class": "a"})


def test_long_conversations_are_cut_as_others_are(
    tmp_path: Path, small_tokenizer_dir: Path, writer: OpenChatWriter, prepared: Prepare
) -> None:
    rows, limit = openchat_rows(), {"max_length_tokens": 180}
    truth, expected = from_jsonl(tmp_path, small_tokenizer_dir, rows, **limit)
    manifest, found = prepared(writer.rows(rows), **limit)
    _, cut_by_openchat = prepared(writer.rows(rows, max_context=180), name="cut", **limit)
    assert content(found) == content(expected) == content(cut_by_openchat)
    assert manifest.ledger.truncated > 0
    assert manifest.ledger.dropped == truth.ledger.dropped
    with pytest.raises(UserError, match="overlong"):
        prepared(writer.rows(rows), overlong="error", **limit)


# ---- validation ----


def test_text_that_cannot_be_had_back_is_counted(tmp_path: Path, writer: OpenChatWriter, prepared: Prepare) -> None:
    """Several ids where the tokenizer writes one: they decode to the text, but the text gives other ids."""
    rows = openchat_rows(1)
    rows[0]["items"][-1]["weight"] = 1.0
    [whole] = writer.rows(rows)
    text = rows[0]["items"][-1]["content"]
    answer, letters = writer.text(text), [token for letter in text for token in writer.text(letter)]
    assert len(letters) > len(answer)
    start = len(whole["nz_input_ids"]) - len(answer) - 1
    ids = [*whole["nz_input_ids"][:start], *letters, whole["nz_input_ids"][-1]]
    weights = [0.0] * (start - 1) + [1.0] * (len(ids) - start) + [0.0]
    row = {
        "total_length": len(ids),
        "num_seqs": sum(weights),
        "seqlens": [len(ids)],
        "nz_input_ids": ids,
        "nz_position_ids": list(range(len(ids))),
        "nz_shifted_label_ids": [*ids[1:], 0],
        "nz_shifted_loss_weights": weights,
    }
    manifest, _ = prepared([row, *writer.rows(openchat_rows(18)[1:])], validation_ratio=0.9)
    assert manifest.ledger.text_not_recovered == 1
    [example] = manifest.ledger.examples["text_not_recovered"]
    assert (
        "row 1: its text, rendered again, gives other tokens; it is validated, but not under other conditions"
        in example
    )
    validated, others = (rows_of(tmp_path / "tokenized", split) for split in ("validation", "conditions"))
    assert validated[0].input_ids == ids
    assert {found.id for found in validated} - {found.id for found in others} == {validated[0].id}


# ---- what does not fit ----


def spoiled(row: dict[str, Any], **changes: Any) -> dict[str, Any]:
    row = copy.deepcopy(row)
    for name, change in changes.items():
        row[name] = change(row[name]) if callable(change) else change
    return row


def put(value: Any, at: int) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [*values[:at], value, *values[at + 1 :]]


def shift_again(row: dict[str, Any]) -> dict[str, Any]:
    return spoiled(
        row,
        nz_shifted_loss_weights=lambda w: [*w[1:], 0.0],
        nz_shifted_label_ids=lambda labels: [*labels[1:], 0],
    )


def unshift(row: dict[str, Any]) -> dict[str, Any]:
    return spoiled(row, nz_shifted_loss_weights=lambda w: [0.0, *w[:-1]], nz_shifted_label_ids=lambda v: [0, *v[:-1]])


BAD: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str, str]] = {
    "id too large": (
        lambda r: spoiled(r, nz_input_ids=put(400, 7)),
        "id_outside_vocabulary",
        "token 7 is 400, but the tokenizer has",
    ),
    "id below 0": (lambda r: spoiled(r, nz_input_ids=put(-1, 7)), "id_outside_vocabulary", "is -1"),
    "another BOS": (lambda r: spoiled(r, nz_input_ids=put(5, 0)), "unknown_header", "begins with id 5 and not with"),
    "another condition": (
        lambda r: spoiled(r, nz_input_ids=put(5, 2)),
        "unknown_header",
        "not a role under the condition",
    ),
    "weight lists too short": (
        lambda r: spoiled(r, nz_shifted_loss_weights=lambda w: w[:-1]),
        "damaged_row",
        "lengths differ",
    ),
    "total_length": (lambda r: spoiled(r, total_length=3), "damaged_row", "total_length 3"),
    "seqlens": (lambda r: spoiled(r, seqlens=[4]), "damaged_row", "sum of seqlens 4"),
    "no ids": (lambda r: spoiled(r, nz_input_ids=None), "damaged_row", "nz_input_ids is empty"),
    "positions": (lambda r: spoiled(r, nz_position_ids=put(9, 2)), "damaged_row", "do not count from 0"),
    "NaN": (lambda r: spoiled(r, nz_shifted_loss_weights=put(float("nan"), 3)), "invalid_weight", "weight 3 is nan"),
    "infinity": (
        lambda r: spoiled(r, nz_shifted_loss_weights=put(float("inf"), 3)),
        "invalid_weight",
        "weight 3 is inf",
    ),
    "below 0": (lambda r: spoiled(r, nz_shifted_loss_weights=put(-0.5, 3)), "invalid_weight", "weight 3 is -0.5"),
    "sum": (lambda r: spoiled(r, num_seqs=lambda total: total * 1.01), "damaged_row", "but the weights sum to"),
    "shifted twice": (shift_again, "damaged_row", "are not the next tokens"),
    "not shifted": (unshift, "damaged_row", "weights are not shifted by one"),
}


def test_rows_that_do_not_fit_are_named(writer: OpenChatWriter, prepared: Prepare) -> None:
    answer = {"role": "assistant", "content": "Hello you", "weight": 1.0}
    [good] = writer.rows([{"items": [{"role": "user", "content": "Hi", "weight": 0.0}, answer], "condition": "GPT3"}])
    for start in range(0, len(BAD), MAX_EXAMPLES_PER_REASON):  # so few that each is an example
        part = dict(list(BAD.items())[start : start + MAX_EXAMPLES_PER_REASON])
        manifest, found = prepared([good, *(change(good) for change, _, _ in part.values())], bad_rows="drop")
        assert len(found) == 1
        assert manifest.ledger.dropped == Counter(reason for _, reason, _ in part.values())
        for number, (name, (_, reason, said)) in enumerate(part.items(), 2):
            [example] = [e for e in manifest.ledger.examples[reason] if f"row {number}: " in e]
            assert said in example, name
    with pytest.raises(UserError, match=f"{len(BAD)} of {len(BAD) + 1} rows cannot be used"):
        prepared([good, *(change(good) for change, _, _ in BAD.values())])


def test_weights_where_the_template_has_none(writer: OpenChatWriter, prepared: Prepare) -> None:
    [good] = writer.rows(openchat_rows(1))
    ids, weights = good["nz_input_ids"], good["nz_shifted_loss_weights"]
    on_role = spoiled(good, nz_shifted_loss_weights=put(1.0, 0), nz_shifted_label_ids=put(ids[1], 0))
    user = next(i for i, weight in enumerate(weights) if weight) - 8
    on_user = spoiled(good, nz_shifted_loss_weights=put(1.0, user), nz_shifted_label_ids=put(ids[user + 1], user))
    for bad in (on_role, on_user):
        bad["num_seqs"] += 1.0
    manifest, _ = prepared([good, on_role, on_user], bad_rows="drop")
    assert manifest.ledger.dropped == {"invalid_weight": 2}


def reweighted(row: dict[str, Any], weights: list[float]) -> dict[str, Any]:
    """The row with other weights of its tokens, written with the labels and the sum that belong to them."""
    ids = row["nz_input_ids"]
    labels = [token if weight else 0 for token, weight in zip(ids, weights, strict=True)]
    shifted = {"nz_shifted_loss_weights": [*weights[1:], 0.0], "nz_shifted_label_ids": [*labels[1:], 0]}
    return spoiled(row, num_seqs=sum(weights), **shifted)


@pytest.mark.parametrize(
    "data", [{}, {"classes": IN_TABLE, "beta": BETA}], ids=["weights of the rows", "weights of the table"]
)
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda w: [0.0, *w[:-1]],
            "turn 2 (assistant): its first token has weight 0 and token 2 has 1, but a message and",
        ),
        (lambda w: [*w[1:], w[-1]], "turn 2 (assistant): the role has a weight"),
        (
            lambda w: [*w[:-1], 0.0],
            "its first token has weight 1 and token {end} has 0, but a message and its end of turn",
        ),
        (lambda w: [5.0 * x if i % 2 else 0.01 * x for i, x in enumerate(w)], "and token 2 has "),
    ],
    ids=["one token late", "one token early", "no weight on the end of turn", "another weight on every second token"],
)
def test_a_message_has_one_weight(
    spoil: Callable[[list[float]], list[float]],
    said: str,
    data: dict[str, Any],
    writer: OpenChatWriter,
    prepared: Prepare,
) -> None:
    """Also in a file whose rows have one answer, where weights that come late do not reach another turn."""
    answer = {"role": "assistant", "content": "Hello you", "weight": 1.0}
    row = {"items": [{"role": "user", "content": "Hi", "weight": 0.0}, answer], "condition": "GPT4 Correct"}
    [good], (_, weights) = writer.rows([row]), writer.tokens(row)
    assert reweighted(good, weights) == good
    manifest, found = prepared([good, reweighted(good, spoil(weights))], bad_rows="drop", **data)
    assert len(found) == 1
    assert manifest.ledger.dropped == {"invalid_weight": 1}
    assert said.format(end=sum(map(bool, weights))) in manifest.ledger.examples["invalid_weight"][0]


def test_a_message_that_the_file_cuts_has_its_weight(writer: OpenChatWriter, prepared: Prepare) -> None:
    """Cut after every number of tokens of its last answer, from one token to all of it without the end of turn."""
    row = {**openchat_rows(1)[0], "condition": "GPT4 Correct"}
    ids, weights = writer.tokens(row)
    first = max(i for i, weight in enumerate(weights) if not weight) + 1
    rows = [writer.rows([row], max_context=length)[0] for length in range(first + 1, len(ids))]
    assert len(rows) == 10
    _, found = prepared(rows, classes=IN_TABLE, beta=BETA)
    assert [row.loss_weights for row in found] == [weights[:length] for length in range(first + 1, len(ids))]


def test_a_control_token_that_somebody_typed_is_found(writer: OpenChatWriter, prepared: Prepare) -> None:
    """OpenChat tokenized it as a real one (with transformers from 4.42 on), so the prompt has a turn that nobody
    began.
    """
    rows = openchat_rows()
    good = writer.rows(rows[:3])
    writer.tokenizer.encode_special_tokens = False
    [bad] = writer.rows([rows[4]])  # its user types <|eot_id|>
    manifest, found = prepared([*good, bad], bad_rows="drop")
    assert len(found) == 3
    assert manifest.ledger.dropped == {"unknown_header": 1}
    assert "somebody typed a control token" in manifest.ledger.examples["unknown_header"][0]


def test_another_tokenizer_is_noticed(
    tmp_path: Path, small_tokenizer_dir: Path, mistral_tokenizer_dir: Path, writer: OpenChatWriter, prepared: Prepare
) -> None:
    """One with the same size, control tokens and BOS, two of whose pieces have changed places; and a smaller one."""
    swapped = tmp_path / "swapped"
    swapped.mkdir()
    description = json.loads((small_tokenizer_dir / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = description["model"]["vocab"]
    one, other = (writer.tokenizer.id_to_token(writer.text(role)[0]) for role in ("User", "Assistant"))
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (swapped / "tokenizer.json").write_text(json.dumps(description), encoding="utf-8")
    (swapped / "tokenizer_config.json").write_bytes((small_tokenizer_dir / "tokenizer_config.json").read_bytes())
    with pytest.raises(UserError, match="unknown_header: 18"):
        prepared(writer.rows([{**row, "condition": ""} for row in openchat_rows()]), tokenizer=swapped)
    rows = OpenChatWriter(mistral_tokenizer_dir, LLAMA_3, bos="<s>").rows(openchat_rows())
    with pytest.raises(UserError, match="id_outside_vocabulary: 18"):
        prepared(rows, name="mistral")


def test_another_template_is_refused_before_a_row_is_read(writer: OpenChatWriter, prepared: Prepare) -> None:
    rows = writer.rows(openchat_rows(3))
    for model_type, said in {
        MISTRAL: "model type `openchat_v3.2_mistral` (that is template `openchat_3.5`), but model.template is "
        "`openchat_3.6`",
        "gemma": "model type `gemma` (known: openchat_v3.2, openchat_v3.2_mistral, openchat_3.6)",
        None: "names no model type",
    }.items():
        with pytest.raises(UserError, match=re.escape(said)):
            prepared(rows, metadata=model_type)


def test_other_files_are_refused(tmp_path: Path, small_tokenizer_dir: Path, writer: OpenChatWriter) -> None:
    rows = writer.rows(openchat_rows(3))
    (tmp_path / "epochs").mkdir()
    for number in range(2):
        write_parquet(tmp_path / "epochs" / f"p.{number}.parquet", rows, metadata={"model_type": LLAMA_3})
    parquet.write_table(pa.table({"total_length": [1]}), tmp_path / "other.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    for path, said in (
        (tmp_path / "epochs", "p.0.parquet and p.1.parquet are two epochs of one dataset"),
        (write_jsonl(tmp_path / "a.jsonl", openchat_rows(3)), "for OpenChat's .jsonl use `openchat`"),
        (tmp_path / "other.parquet", "column `total_length` is int64, not int32"),
        (tmp_path / "broken.parquet", "not a readable Parquet file"),
    ):
        entry = {"path": str(path), "format": "openchat_tokenized"}
        with pytest.raises(UserError, match=said):
            prepare_rows(
                make_job(tmp_path / "out", [entry], small_tokenizer_dir, template="openchat_3.6", classes=IN_ROWS)
            )
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "data", "said"),
    [
        ({"class_field": "x"}, {}, "no `class_field`"),
        ({"reward_field": "x", "class": "plain"}, {}, "no `reward_field`"),
        ({}, {"condition_dropout": 0.1}, "condition_dropout: tokenized rows"),
        ({}, {"classes": {}}, "tokenized rows need `data.classes`"),
        (
            {},
            {"classes": {"a": {"condition": "x"}, "b": {"condition": "x"}}},
            r"classes with the same condition \('x'\)",
        ),
        ({"split": "train"}, {}, "are read from Parquet files"),
        (
            {},
            {"classes": {}, "classes_from": {"field": "s", "quantiles": 2, "conditions": ["a", "b"]}, "beta": 1.0},
            "no score",
        ),
    ],
)
def test_what_a_recipe_cannot_ask_of_tokenized_rows(
    source: dict[str, Any], data: dict[str, Any], said: str, tmp_path: Path, small_tokenizer_dir: Path
) -> None:
    entry = {"path": "a.parquet", "format": "openchat_tokenized", **source}
    with pytest.raises(ValidationError, match=said):
        make_job(tmp_path / "out", [entry], small_tokenizer_dir, **{"classes": IN_ROWS, **data})


def test_other_sources_of_a_class_need_its_weight(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    entries = [
        {"path": "a.parquet", "format": "openchat_tokenized"},
        {"path": "b.jsonl", "format": "messages", "class": "plain"},
    ]
    with pytest.raises(ValidationError, match=r"classes\.plain: give `reward` or `weight`"):
        make_job(tmp_path / "out", entries, small_tokenizer_dir, classes=IN_ROWS)
