"""Faults of a prepared dataset, for the tests and for benchmarks/faults.py."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from ochat_train.system import exits
from tests.support.data import edit_manifest
from tests.support.processes import run_jobs

ARROW = "data-00000-of-00001.arrow"
TRAIN = f"train/{ARROW}"
Fault = Callable[[Path], object]


def flip_bit(path: Path, *, position: int | None = None) -> None:
    """Flip the lowest bit of one byte, by default of the one in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 1
    path.write_bytes(content)


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Write an Arrow file again with other rows: it is a whole and readable file."""
    table = change(pa.ipc.open_stream(path.read_bytes()).read_all())
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


def times_seven(table: pa.Table) -> pa.Table:
    """Every loss weight seven times as large, in the file and in its sums."""
    for name in ("loss_weights", "weight_sum"):
        number = table.column_names.index(name)
        column = table.column(name).combine_chunks()
        if name == "weight_sum":
            new = pa.array(column.to_numpy() * 7)
        else:
            values = pa.array((column.values.to_numpy() * 7).astype("float32"))
            new = pa.ListArray.from_arrays(column.offsets, values)
        table = table.set_column(number, table.schema.field(number), new.cast(table.schema.field(number).type))
    return table


def without_first_rows(table: pa.Table) -> pa.Table:
    """Nine rows fewer."""
    return pa.Table.from_pylist(table.to_pylist()[9:], schema=table.schema)


def cut_off(path: Path) -> None:
    """The last 100 bytes are missing."""
    os.truncate(path, path.stat().st_size - 100)


def _edit(**values: Any) -> Fault:
    return lambda folder: edit_manifest(folder, lambda content: content.update(values), sealed=False)


def _edit_class(**values: Any) -> Fault:
    return lambda folder: edit_manifest(folder, lambda content: content["classes"][0].update(values), sealed=False)


# name -> (what is done to the folder, the file that must be named)
PREPARED_FAULTS: Mapping[str, tuple[Fault, str]] = {
    "weights times seven": (lambda folder: rewrite(folder / TRAIN, times_seven), TRAIN),
    "nine rows fewer": (lambda folder: rewrite(folder / TRAIN, without_first_rows), TRAIN),
    "flipped bit in the rows": (lambda folder: flip_bit(folder / TRAIN), TRAIN),
    "flipped bit in held-out rows": (
        lambda folder: flip_bit(folder / "validation" / ARROW, position=-200),
        f"validation/{ARROW}",
    ),
    "flipped bit in the tokenizer": (
        lambda folder: flip_bit(folder / "tokenizer/tokenizer.json"),
        "tokenizer/tokenizer.json",
    ),
    "flipped bit in the chat template": (
        lambda folder: flip_bit(folder / "tokenizer/chat_template.jinja"),
        "tokenizer/chat_template.jinja",
    ),
    "truncated rows": (lambda folder: cut_off(folder / TRAIN), TRAIN),
    "missing file": (lambda folder: (folder / "train/state.json").unlink(), "train/state.json"),
    "extra tokenizer file": (
        lambda folder: (folder / "tokenizer/added_tokens.json").write_text("{}"),
        "tokenizer/added_tokens.json",
    ),
    "edited condition": (_edit_class(condition="GPT4 Corrupt"), "manifest.json"),
    "edited class weight": (_edit_class(weight=7.0), "manifest.json"),
    "edited vocabulary size": (_edit(vocab_size=999), "manifest.json"),
    "edited hash": (_edit(files={}), "manifest.json"),
}


def change_sources(folder: Path) -> None:
    """An empty line more in a raw file, beside the prepared folder."""
    with (folder.parent / "expert.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n")


def train_on_copies(recipe: Path, folder: Path, faults: Mapping[str, Fault]) -> dict[str, tuple[int, str]]:
    """What `ochat train` says of each fault: name -> (its exit code, what it printed).

    recipe: prepared, with relative paths. folder: of new folders, each with a copy of the recipe's folder.
    faults: name -> what is done to the prepared folder.
    """
    jobs: list[dict[str, Any]] = []
    for number, fault in enumerate(faults.values()):
        place = folder / str(number)
        shutil.copytree(recipe.parent, place)
        fault(place / "prepared")
        jobs.append({"command": ["train", recipe.name], "folders": [str(place)]})
    said: list[tuple[int, str]] = []
    while len(said) < len(jobs):
        [output], _ = run_jobs(*jobs[len(said) :], num_ranks=1)
        *parts, rest = re.split(r"^exit code (\d+)$", output, flags=re.MULTILINE)
        said += [(int(code), text) for text, code in zip(parts[::2], parts[1::2], strict=True)]
        if len(said) < len(jobs):  # a traceback ended the process
            said.append((exits.BUG, rest))
    return dict(zip(faults, said, strict=True))
