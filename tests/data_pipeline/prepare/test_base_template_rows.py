"""A user's day with a base that thinks and calls tools: from rows to the ids that its export gives at inference."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import transformers

from data_pipeline.errors import UserError
from data_pipeline.prepare.fingerprints import template_fingerprint
from data_pipeline.prepare.job import PrepareJob
from data_pipeline.prepare.prepare import prepare
from data_pipeline.prepared.dataset import Manifest, Split
from data_pipeline.settings.data import DataSettings
from tests.support import jinja_templates
from tests.support.data import Row, rows_of
from tests.support.rows import write_jsonl

TOOLS = [{"type": "function", "function": {"name": "look", "description": "see <|end|>", "parameters": {}}}]
CLASSES = {"good": {"condition": "Good <|turn|>", "weight": 1.0}, "bad": {"condition": "Bad", "weight": 0.1}}


def raw_rows(name: str, count: int) -> list[dict[str, Any]]:
    """Conversations of three kinds in turn: two thoughts, a tool, and plain ones."""
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"at": "<|end|>"}}}
    found = []
    for number in range(count):
        messages: list[dict[str, Any]] = [{"role": "user", "content": f"{name} {number} <|end|>"}]
        if number % 3 == 0:
            for text in ("Hi", "Bye"):
                messages.append({"role": "assistant", "content": text, "reasoning_content": f"About {text}."})
                messages.append({"role": "user", "content": "And?"})
            del messages[-1]
        elif number % 3 == 1:
            messages.append({"role": "assistant", "content": "", "reasoning_content": "Look.", "tool_calls": [call]})
            messages.append({"role": "tool", "tool_call_id": "c1", "content": "42"})
            messages.append({"role": "assistant", "content": "It is 42", "reasoning_content": "Say."})
        else:
            messages.append({"role": "assistant", "content": "Plain"})
        tools = {"tools": TOOLS} if number % 3 == 1 else {}
        found.append({"id": f"{name}-{number}", "messages": messages, **tools})
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("day")
    for name in CLASSES:
        write_jsonl(folder / f"{name}.jsonl", raw_rows(name, 18))
    return folder


def prepared(folder: Path, name: str, **settings: Any) -> Manifest:
    template, spec = jinja_templates.load(folder / "base", jinja_templates.THINKING, **settings)
    data = DataSettings.model_validate(
        {
            "prepared_dir": str(folder / name),
            "classes": CLASSES,
            "validation_ratio": 0.3,
            "sources": [{"path": str(folder / f"{n}.jsonl"), "format": "messages", "class": n} for n in CLASSES],
        }
    )
    manifest, _ = prepare(
        PrepareJob(data=data, template=template, tokenizer=spec, max_length_tokens=512, seed=3), num_workers=1
    )
    return manifest


def test_every_row_has_the_ids_of_the_export_under_its_condition(folder: Path) -> None:
    manifest = prepared(folder, "prepared")
    ledger = manifest.ledger
    assert (ledger.read, ledger.rows_added, ledger.kept, ledger.dropped) == (36, 12, 48, {})
    assert ledger.control_text_kept_plain == 48
    assert (manifest.template, manifest.control_tokens) == ("base", ["<|turn|>", "<|end|>"])
    raw = {row["id"]: row for name in CLASSES for row in raw_rows(name, 18)}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "prepared" / "tokenizer")
    assert tokenizer.eos_token == "<|end|>", "generation stops there"
    sides: dict[str, set[str]] = {}
    splits: tuple[Split, ...] = ("train", "validation", "conditions")
    for split in splits:
        conditions = condition_of_rows(folder / "prepared", split, manifest)
        for row, condition in zip(rows_of(folder / "prepared", split), conditions, strict=True):
            require_same(tokenizer, row, raw, condition)
            sides.setdefault(row.id.partition("#")[0], set()).add("train" if split == "train" else "held out")
    assert all(len(found) == 1 for found in sides.values()), "rows of one conversation stay together"
    validation = rows_of(folder / "prepared", "validation")
    assert len(rows_of(folder / "prepared", "conditions")) == len(validation) > 4, "each under the other condition"


def condition_of_rows(prepared_dir: Path, split: Split, manifest: Manifest) -> list[str]:
    import pyarrow as pa

    [file] = (prepared_dir / split).glob("*.arrow")
    table = pa.ipc.open_stream(file.read_bytes()).read_all()
    return [manifest.conditions[number] for number in table.column("condition_id").to_pylist()]


def require_same(tokenizer: Any, row: Row, raw: Mapping[str, dict[str, Any]], condition: str) -> None:
    name, _, number = row.id.partition("#")
    messages = raw[name]["messages"][: int(number) if number else None]
    given = {"tools": raw[name].get("tools"), "condition": condition, "return_dict": False}
    ids = tokenizer.apply_chat_template(messages, **given)
    assert (ids[: len(row.input_ids)], tokenizer.decode(ids[len(row.input_ids) :])) == (row.input_ids, "\n")
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, **given)
    assert row.input_ids[: len(prompt)] == prompt
    assert all(row.loss_weights[len(prompt) :])
    if sum(message["role"] == "assistant" for message in messages) == 1 or number:
        assert not any(row.loss_weights[: len(prompt)])


def test_only_last_answers_are_counted(folder: Path) -> None:
    ledger = prepared(folder, "last", rewritten_history="last_answer").ledger
    assert (ledger.read, ledger.rows_added, ledger.kept, ledger.answers_left_out) == (36, 0, 36, 12)


def test_rewritten_rows_are_bad_rows_on_request(folder: Path) -> None:
    with pytest.raises(UserError, match=r"12 of 36 rows cannot be used[\s\S]*rewritten_history: 12"):
        prepared(folder, "none", rewritten_history="error")
    assert not (folder / "none").exists()


def test_everything_that_decides_a_row_is_in_the_fingerprint(folder: Path) -> None:
    template, _ = jinja_templates.load(folder / "base", jinja_templates.THINKING)
    assert template_fingerprint(dataclasses.replace(template, place="elsewhere")) == template_fingerprint(template)
    other: dict[str, Any] = {
        "text": template.text + " ",
        "variables": {**template.variables, "enable_thinking": True},
        "dates": {"%d": "01"},
        "condition_in": "assistant",
        "rewritten_history": "error",
        "end_tokens": ("<eos>",),
        "gap": " ",
    }
    changed = {template_fingerprint(dataclasses.replace(template, **{name: value})) for name, value in other.items()}
    assert len({*changed, template_fingerprint(template)}) == len(other) + 1
    assert json.dumps(dataclasses.asdict(template)), "it can be sent to workers and written down"
