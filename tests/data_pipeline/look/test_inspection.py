"""`ochat inspect` as text: which rows, what is said of them, and that nothing from data reaches a terminal raw."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import UserError
from data_pipeline.look.prepared import Inspection, Selection
from data_pipeline.look.text import count_in, ledger_text, length_bins, report
from tests.support.data import make_job, prepare_rows, rows_of, source
from tests.support.rows import write_jsonl

ESCAPES = "\x1b[31m\x1b]0;title\x07 \x9b1m \u202eevil\r<b>"
OWN_COLORS = re.compile(r"\033\[[0-9;]*m")
EVIL_CLASS = "evil \x1b[2J\u202e"


def chat(prompt: str, answer: str, **more: object) -> dict[str, object]:
    items = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer, "weight": 0.5}]
    return {"items": items, "condition": "GPT3", **more}


@pytest.fixture
def prepared_dir(tmp_path: Path, small_tokenizer_dir: Path) -> Path:
    """Rows 0 to 5 of class GPT3, then two of a class with a nasty name; one is cut, one ends unsupervised, one is
    dropped.
    """
    rows = [chat(f"question {number}", f"answer {number}", id=f"id {number}") for number in range(4)]
    rows += [chat("cut", "word " * 300), chat("hello", "x", system=ESCAPES)]
    rows[3]["items"] += [{"role": "user", "content": "and then?"}]
    rows += [chat(ESCAPES, f"{ESCAPES} {number}", condition=EVIL_CLASS) for number in range(2)]
    rows += [chat("too long " * 300, "x")]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    prepare_rows(make_job(tmp_path / "prepared", [source(path, format="openchat")], small_tokenizer_dir, classes={}))
    return tmp_path / "prepared"


def text_of(prepared_dir: Path, *, color: bool = False, with_tokens: bool = False, **selection: object) -> str:
    lines = report(
        Inspection(prepared_dir, "train"),
        Selection(**selection),
        color=color,
        with_tokens=with_tokens,
    )
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("selection", "rows"),
    [
        (Selection(), [0, 1, 2, 3, 4, 5, 6, 7]),
        (Selection(start=1, stop=3), [1, 2]),
        (Selection(start=7, stop=100), [7]),
        (Selection(stop=0), []),
        (Selection(class_name=EVIL_CLASS), [6, 7]),
        (Selection(class_name=EVIL_CLASS, start=1, stop=2), [7]),
        (Selection(conversation_id="id 2"), [2]),
        (Selection(find="question"), [0, 1, 2, 3]),
        (Selection(find="question", start=1, stop=3), [1, 2]),
        (Selection(find="question", stop=0), []),
        (Selection(find="question", start=2, stop=2), []),
        (Selection(find="Assistant: x<|end_of_turn|>", class_name="GPT3"), [5]),
    ],
)
def test_rows_that_match(prepared_dir: Path, selection: Selection, rows: list[int]) -> None:
    assert Inspection(prepared_dir, "train").select(selection) == rows


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(start=8, stop=9), r"--rows 8:9: split `train` of .* has 8 rows; give 0:8"),
        (Selection(start=4, find="question"), r"--rows 4:: .* with --find 'question' has 4 rows"),
        (Selection(start=4, stop=4, find="question"), r"--rows 4:4: .* with --find 'question' has 4 rows; give 0:4"),
        (Selection(stop=0, find="nowhere"), "--find 'nowhere': no row matches"),
        (Selection(conversation_id="id 9"), "--id 'id 9': no row matches"),
        (Selection(find="nowhere", class_name="GPT3"), "--class 'GPT3' --find 'nowhere': no row matches"),
        (Selection(class_name="GPT4"), r"--class 'GPT4': no such class; classes: 'GPT3', 'evil \\x1b"),
    ],
)
def test_rows_that_are_not_there(prepared_dir: Path, selection: Selection, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Inspection(prepared_dir, "train").select(selection)


def test_empty_split_and_no_dataset(prepared_dir: Path, tmp_path: Path) -> None:
    for split, remedy in (("validation", "set data.validation_ratio above 0"), ("conditions", "two conditions")):
        with pytest.raises(UserError, match=f"split `{split}` is empty; .*{remedy}"):
            Inspection(prepared_dir, split)
    with pytest.raises(UserError, match="holds no prepared dataset"):
        Inspection(tmp_path, "train")


def test_documents_are_the_rows_on_disk(prepared_dir: Path) -> None:
    inspection = Inspection(prepared_dir, "train")
    for number, row in enumerate(rows_of(prepared_dir)):
        document = inspection.document(number)
        assert list(document) == ["row", "id", "class", "condition", "input_ids", "loss_weights", "text"]
        assert (document["row"], document["id"]) == (number, row.id)
        assert (document["input_ids"], document["loss_weights"]) == (row.input_ids, row.loss_weights)


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("with_tokens", [False, True])
def test_nothing_from_data_reaches_the_terminal_raw(prepared_dir: Path, color: bool, with_tokens: bool) -> None:
    text = text_of(prepared_dir, color=color, with_tokens=with_tokens)
    plain = OWN_COLORS.sub("", text) if color else text
    assert not [character for character in plain if not character.isprintable() and character != "\n"]
    assert "\\u001b" in plain
    assert "\\u202e" in plain
    assert "\\x1b" not in plain, "one way of writing it"
    shown = r"evil \u001b[2J\u202e"
    assert f"{shown}  '{shown}'" in plain, "class and condition in the class table"
    assert f"row 6  class {shown}  condition '{shown}'" in plain


def test_plain_text_tells_the_parts_of_a_row_apart(prepared_dir: Path) -> None:
    last = text_of(prepared_dir, start=0, stop=1).splitlines()[-1]
    assert last == "«<s>»{GPT3 User:} question 0«<|end_of_turn|>»{GPT3 Assistant:}[0.5| answer 0«<|end_of_turn|>»]"


def test_weights_are_compared_with_the_heaviest_of_the_dataset(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    """A row of light tokens looks light, also when it is shown alone."""
    classes = {name: {"condition": name, "weight": weight} for name, weight in (("A", 1.0), ("B", 0.1))}
    rows = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello"}]}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    sources = [source(path, **{"class": name}) for name in classes]
    prepare_rows(make_job(tmp_path / "prepared", sources, small_tokenizer_dir, classes=classes))
    heavy, light = (text_of(tmp_path / "prepared", color=True, class_name=name).splitlines()[-1] for name in classes)
    assert "\033[38;5;46m Hello" in heavy
    assert "\033[38;5;22m Hello" in light


def test_every_token_stands_on_a_line_with_its_id_and_weight(prepared_dir: Path) -> None:
    lines = text_of(prepared_dir, with_tokens=True, start=6, stop=7).splitlines()
    table = lines[next(number for number, line in enumerate(lines) if line.startswith(" place")) + 1 :]
    row = rows_of(prepared_dir)[6]
    assert [int(line.split()[1]) for line in table] == row.input_ids
    assert [float(line.split()[2]) for line in table] == pytest.approx(row.loss_weights)


def test_ledger_shows_where_rows_were_cut_trimmed_and_dropped(prepared_dir: Path) -> None:
    manifest = Inspection(prepared_dir, "train").manifest
    text = ledger_text(manifest.ledger)
    for line in (
        r"dropped, no_supervised_token: 1\n    .*rows.jsonl:9: no supervised token in the first 256 tokens",
        r"kept, truncated: 1\n    .*rows.jsonl:5: \d+ tokens, cut to 256",
        r"kept, tail_trimmed: 1\n    .*rows.jsonl:4: \d+ tokens after the last supervised one left out",
    ):
        assert re.search(line, text), text


def test_trimmed_tokens_are_counted(prepared_dir: Path, tmp_path: Path, small_tokenizer_dir: Path) -> None:
    [example] = Inspection(prepared_dir, "train").manifest.ledger.examples["tail_trimmed"]
    whole = {**chat("question 3", "answer 3"), "id": "id 3"}
    whole["items"] += [{"role": "user", "content": "and then?"}, {"role": "assistant", "content": "y", "weight": 1.0}]
    path = write_jsonl(tmp_path / "whole.jsonl", [whole])
    job = make_job(tmp_path / "whole", [source(path, format="openchat")], small_tokenizer_dir, classes={})
    longer = prepare_rows(job)[1][0].input_ids
    shorter = rows_of(prepared_dir)[3].input_ids
    tail = longer[len(shorter) :]
    end_of_turn = shorter[-1]
    num_trimmed = tail.index(end_of_turn) + 1  # up to the end of the user's turn
    assert f": {num_trimmed} tokens after" in example


def test_histogram_counts_every_row_once() -> None:
    rng = np.random.default_rng(0)
    for lengths in (np.array([1]), np.array([15, 16, 31, 32]), rng.integers(1, 9000, 500), np.array([8192])):
        bins = length_bins(lengths)
        assert sum(count_in(lengths, bins)) == len(lengths)
        assert bins[0][0] <= lengths.min()
        assert bins[-1][0] <= lengths.max() <= bins[-1][1]
        assert all(before[1] + 1 == after[0] for before, after in itertools.pairwise(bins))


def test_visible_json_is_the_same_document(prepared_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ochat_train.cli.main import main

    assert main(["inspect", str(prepared_dir), "--json", "--rows", "0:"]) == 0
    out = capsys.readouterr().out
    assert all(character.isprintable() or character == "\n" for character in out)
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["input_ids"] for line in lines] == [row.input_ids for row in rows_of(prepared_dir)]
    assert ESCAPES in lines[6]["text"]
