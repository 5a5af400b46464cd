"""A small world of everything that `ochat` reads, and which verbs read which of its files."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import yaml

from ochat_train.quickstart.make import write_base
from tests.support.rows import conversations, write_jsonl
from tests.support.tokenizers import write_small_tokenizer

Command = list[str]
RECIPE = "recipe.yaml"
# All paths are relative and begin with a letter of which no single bit makes a slash: a fuzzed recipe stays inside.
CHECK = ["check", RECIPE]
PLAN = ["plan", RECIPE]
PREPARE = ["prepare", RECIPE, "--workers", "1"]
PREPARE_ELSEWHERE = [*PREPARE, "--set", "data.prepared_dir=prepared-again"]
TRAIN = ["train", RECIPE]
TRAIN_ELSEWHERE = [*TRAIN, "--set", "output_dir=run-again"]
INIT = ["init", "raw/expert.jsonl", "raw/more.json", "raw/columns.parquet", "--base", "base", "--out", "new.yaml"]
INIT_CLASSES = ["--class", "expert=A:1.0", "--class", "more=B:0.5", "--class", "columns=C:0.0"]
INSPECT = ["inspect", "prepared"]
EXPORT = ["export", "run", "--out", "export-again"]
GENERATE = ["generate", "export", "--prompt", "Hello", "--max-new-tokens", "2"]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Files of one kind, and the commands that read them; each case runs one command.

    patterns: of files below the world. sealed: files whose sizes and hashes another file holds; half of the cases make
    that agree with the damage.
    """

    name: str
    patterns: tuple[str, ...]
    commands: tuple[Command, ...]
    sealed: bool = False


KINDS: tuple[Kind, ...] = (
    Kind(name="recipe", patterns=(RECIPE,), commands=(PLAN, CHECK, PREPARE, TRAIN_ELSEWHERE)),
    Kind(
        name="raw data",
        patterns=("raw/*",),
        commands=(PREPARE_ELSEWHERE, [*PREPARE_ELSEWHERE, "--set", "data.bad_rows=drop"], CHECK, INIT + INIT_CLASSES),
    ),
    Kind(
        name="tokenizer",
        patterns=("base/tokenizer*",),
        commands=(PREPARE_ELSEWHERE, PREPARE, CHECK, PLAN, INIT + INIT_CLASSES),
    ),
    Kind(
        name="base",
        patterns=("base/config.json", "base/generation_config.json", "base/*.safetensors"),
        commands=(TRAIN_ELSEWHERE, CHECK, PLAN, TRAIN_ELSEWHERE, INIT + INIT_CLASSES),
    ),
    Kind(
        name="prepared folder",
        patterns=("prepared/**/*",),
        commands=(
            INSPECT,
            PLAN,
            TRAIN_ELSEWHERE,
            [*INSPECT, "--json"],
            CHECK,
            [*INSPECT, "--html", "page.html", "--tokens", "--split", "validation"],
            PREPARE,
        ),
        sealed=True,
    ),
    Kind(name="checkpoint", patterns=("run/checkpoints/*/**/*",), commands=(TRAIN, EXPORT), sealed=True),
    Kind(
        name="run folder",
        patterns=("run/*.json*", "run/tokenizer/*", "run/model_config/*", "run/checkpoints/LATEST"),
        commands=(["report", "run"], EXPORT, TRAIN),
    ),
    Kind(name="export", patterns=("export/*",), commands=(GENERATE, [*EXPORT[:-1], "export", "--overwrite"])),
)


def write_inputs(folder: Path) -> None:
    """What a user brings: a base, raw files and a recipe. `COMMANDS` make the rest."""
    tokenizer = write_small_tokenizer(folder / "tok")
    write_base(folder / "base", tokenizer)
    rows = conversations(36)
    write_jsonl(folder / "raw" / "expert.jsonl", [{"id": f"e{n}", **row} for n, row in enumerate(rows[:14])])
    (folder / "raw" / "more.json").write_text(json.dumps(rows[14:22]), encoding="utf-8")
    parquet.write_table(pa.Table.from_pylist(rows[22:]), folder / "raw" / "columns.parquet")
    (folder / RECIPE).write_text(yaml.safe_dump(recipe(), sort_keys=False), encoding="utf-8")


COMMANDS = (PREPARE, [*TRAIN, "--set", "train.max_steps=2"], ["export", "run", "--out", "export"])


def recipe() -> dict[str, Any]:
    """The recipe of the world: every path relative, three kinds of raw files, validation with a sample."""
    sources = [
        {"path": f"raw/{name}", "format": "messages", "class": name.split(".")[0]}
        for name in ("expert.jsonl", "more.json", "columns.parquet")
    ]
    return {
        "name": "small",
        "seed": 1,
        "output_dir": "run",
        "model": {"path": "base", "template": "openchat_3.5", "max_length_tokens": 128},
        "data": {
            "prepared_dir": "prepared",
            "classes": {
                "expert": {"condition": "GPT4 Correct", "reward": 1.0},
                "more": {"condition": "GPT3", "reward": 0.5},
                "columns": {"condition": "", "weight": 0.1},
            },
            "beta": 0.4342945,
            "validation_ratio": 0.2,
            "sources": sources,
        },
        "train": {"epochs": 1, "pack_length_tokens": 256, "tokens_per_step": 512, "max_steps": 3},
        "validation": {"sample_tokens": 2},
        "optimizer": {"learning_rate": 0.003},
        "deepspeed": {"zero_stage": 0},
        "checkpoint": {"save_every_steps": 1, "keep_last": 2},
    }


def files_of(kind: Kind, world: Path) -> list[Path]:
    """The files of a kind, sorted, relative to the world."""
    found = {path for pattern in kind.patterns for path in world.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(world) for path in found)


def pick(world: Path, rng: random.Random) -> tuple[Kind, Path]:
    """A kind and one of its files. Every file of a kind is as likely, small text files twice."""
    kind = rng.choice(KINDS)
    files = files_of(kind, world)
    text = [path for path in files if path.suffix in (".json", ".jsonl", ".jinja", ".yaml")]
    return kind, rng.choice(files + text)
