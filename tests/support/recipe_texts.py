"""What the tests of recipes share: a good recipe as text, changes to it, and the message that a wrong one gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from ochat_train.recipe.load import load_recipe

GOOD = """\
name: good
seed: 0
output_dir: runs/good
model:
  path: org/base
  template: openchat_3.5
  max_length_tokens: 8192
data:
  prepared_dir: data/prepared
  classes:
    expert: {condition: "GPT4 Correct", reward: 1.0}
    suboptimal: {condition: "GPT3", reward: 0.0}
  beta: 0.4342945
  sources:
    - {path: a.jsonl, format: sharegpt, class: expert}
    - {path: b.jsonl, format: messages, class: suboptimal}
train:
  epochs: 5
  pack_length_tokens: 8192
  tokens_per_step: 655360
optimizer: {learning_rate: 2e-5}
deepspeed: {zero_stage: 2}
checkpoint: {keep_last: 2}
tracking: {wandb: false}
"""


def changed(*changes: tuple[str, str]) -> str:
    """The good recipe with texts replaced; each must be in it exactly once."""
    text = GOOD
    for old, new in changes:
        assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in the recipe"
        text = text.replace(old, new)
    return text


def write(folder: Path, text: str | bytes) -> Path:
    """The text as a recipe file."""
    path = folder / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


def message_of(path: Path, *overrides: str) -> str:
    """What a user is told about a wrong recipe."""
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


def problem_of(path: Path, *overrides: str) -> str:
    """The line of a recipe's only problem."""
    head, *problems = message_of(path, *overrides).split("\n")
    assert head == f"{path}: 1 problem"
    assert len(problems) == 1
    return problems[0].removeprefix("  ")
