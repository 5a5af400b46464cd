"""docs/from-openchat.md and docs/multi-node.md: recipes load; every key, flag, trial and test they name is one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from textwrap import dedent
from typing import Any

import yaml

from data_pipeline.read.openchat_parquet import TEMPLATE_OF_MODEL_TYPE
from ochat_train.distributed import rendezvous
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.recipe import Recipe
from tests.support.processes import ROOT

PAGE = (ROOT / "docs" / "from-openchat.md").read_text(encoding="utf-8")
MANY_HOSTS = (ROOT / "docs" / "multi-node.md").read_text(encoding="utf-8")
FLAGS_OF_GENERATE_DATASET = {
    "--model-type",
    "--model-path",
    "--in-prefix",
    "--out-prefix",
    "--per-sequence-loss",
    "--seed",
}
FLAGS_OF_TRAIN = {
    "--local_rank",
    "--model_path",
    "--data_prefix",
    "--save_path",
    "--save_every",
    "--push_to_hub",
    "--push_to_hub_delete_local",
    "--batch_max_len",
    "--epochs",
    "--lr",
    "--lr_min_ratio",
    "--lr_warmup_ratio",
    "--weight_decay",
    "--beta1",
    "--beta2",
    "--eps",
    "--wandb_entity",
    "--wandb_project",
    "--deepspeed",
    "--deepspeed_config",
}
KEYS_OF_DEEPSPEED_CONFIG = {
    "bf16.enabled",
    "zero_optimization.stage",
    "gradient_clipping",
    "gradient_accumulation_steps",
    "train_micro_batch_size_per_gpu",
    "steps_per_print",
    "wall_clock_breakdown",
}


def keys(schema: dict[str, Any], node: dict[str, Any], lead: str = "") -> set[str]:
    """Dotted names of all sections and keys of the recipe."""
    found: set[str] = set()
    for name, inner in node.get("properties", {}).items():
        found.add(f"{lead}{name}")
        for part in (inner, *inner.get("anyOf", [])):
            if "$ref" in part:
                found |= keys(schema, schema["$defs"][part["$ref"].rpartition("/")[2]], f"{lead}{name}.")
    return found


KEYS = keys(Recipe.model_json_schema(by_alias=True), Recipe.model_json_schema(by_alias=True))


def rows() -> list[list[str]]:
    """The cells of the tables of flags."""
    flags = PAGE.split("\n## Flags\n")[1].split("\n## ")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in flags.splitlines() if line.startswith("| ")]


def test_every_recipe_key_on_the_page_is_one() -> None:
    sections = "|".join(sorted(key for key in KEYS if "." not in key))
    text = PAGE + MANY_HOSTS
    named = {
        name
        for name in re.findall(rf"`((?:{sections})\.[\w.]+)(?:[: ][^`]*)?`", text)
        if not name.endswith((".py", ".jsonl"))
    }
    assert len(named) > 30
    assert named <= KEYS
    in_tables = {key for row in rows() for key in re.findall(r"`([^`]+)`", row[1])}
    assert len(in_tables) > 20
    assert in_tables <= KEYS


def test_every_flag_has_a_row() -> None:
    first = " ".join(row[0] for row in rows())
    flags = set(re.findall(r"`(--[\w-]+)`", first))
    assert flags >= FLAGS_OF_GENERATE_DATASET | FLAGS_OF_TRAIN
    assert set(re.findall(r"`([a-z][\w.]+)`", first)) >= KEYS_OF_DEEPSPEED_CONFIG


def test_a_flag_that_has_a_key_of_its_name_names_it() -> None:
    names = {key.rpartition(".")[2] for key in KEYS if key.startswith(("train.", "optimizer."))}
    for row in rows():
        if any(flag in names for flag in re.findall(r"`--(\w+)`", row[0])):
            assert re.search(r"`[\w.]+`", row[1]), row


def test_the_model_types_are_those_that_are_read() -> None:
    [row] = [row for row in rows() if row[0] == "`--model-type`"]
    assert dict(re.findall(r"`(openchat_\S+)`: `(openchat_\S+)`", row[2])) == TEMPLATE_OF_MODEL_TYPE


def test_the_recipes_on_the_page_load(tmp_path: Path) -> None:
    blocks = [dedent(text) for text in re.findall(r"^ *```yaml\n(.*?)^ *```$", PAGE, flags=re.MULTILINE | re.DOTALL)]
    whole, tokenized = map(yaml.safe_load, blocks)
    for number, recipe in enumerate((whole, {**whole, **tokenized})):
        path = tmp_path / f"{number}.yaml"
        path.write_text(json.dumps(recipe), encoding="utf-8")
        assert load_recipe(path).train.packs_per_step == 80


def test_every_trial_of_two_hosts_is_on_its_page() -> None:
    code = (ROOT / "benchmarks" / "two_hosts.py").read_text(encoding="utf-8")
    trials = re.findall(r'^    "([\w-]+)": ', code.split("\nTRIALS = {\n")[1].split("\n}\n")[0], flags=re.MULTILINE)
    table = MANY_HOSTS.split("\n## What was tried\n")[1]
    assert len(trials) > 10
    assert [trial for trial in trials if f"`{trial}`" not in table] == []
    assert f"within {rendezvous.MEETING_SECONDS:g} s" in MANY_HOSTS


def test_every_test_on_the_page_exists() -> None:
    named = re.findall(r"`(test_\w+\.py)`: `(\w+)`", PAGE)
    assert len(named) > 20
    for file, part in named:
        [path] = ROOT.glob(f"tests/**/{file}")
        tests = re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert [test for test in tests if part in test], (file, part)
