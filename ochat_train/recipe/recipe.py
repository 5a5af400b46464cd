"""A recipe: its sections, in the order of docs/recipe.md; `data` is in data_pipeline/settings."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from pydantic import field_validator, model_validator

from data_pipeline.path_keys import PathText
from data_pipeline.section import Section, setting
from data_pipeline.settings.data import DataSettings
from ochat_train.recipe.sections.adapter import AdapterSettings
from ochat_train.recipe.sections.checkpoint import CheckpointSettings
from ochat_train.recipe.sections.deepspeed import DeepSpeedSettings
from ochat_train.recipe.sections.model import ModelSettings
from ochat_train.recipe.sections.optimizer import OptimizerSettings
from ochat_train.recipe.sections.tracking import TrackingSettings
from ochat_train.recipe.sections.train import TrainSettings
from ochat_train.recipe.sections.validation import ValidationSettings

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Recipe(Section):
    """Everything about one run."""

    name: str = setting(
        description="name of the run: letters, digits, `.`, `_`, `-`", decides_steps=False, is_public=True
    )
    seed: int = setting(
        0,
        ge=0,
        lt=2**32,
        description="seed for the validation split, packing, random weights and dropout",
        decides_steps=True,
        is_public=True,
    )
    output_dir: PathText = setting(
        description="folder of the run, for metrics and checkpoints", decides_steps=False, is_public=False
    )
    model: ModelSettings
    data: DataSettings
    train: TrainSettings
    adapter: AdapterSettings | None = setting(
        None,
        description="train an adapter (LoRA) instead of all weights; default: all weights are trained",
        decides_steps=True,
        is_public=True,
    )
    optimizer: OptimizerSettings = OptimizerSettings()
    deepspeed: DeepSpeedSettings = DeepSpeedSettings()
    validation: ValidationSettings = ValidationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    tracking: TrackingSettings = TrackingSettings()

    @field_validator("output_dir")
    @classmethod
    def _is_a_path(cls, value: str) -> str:
        if "\0" in value:
            raise ValueError("a path cannot hold a null character")
        return value

    @field_validator("name")
    @classmethod
    def _name_is_plain(cls, value: str) -> str:
        if not NAME_PATTERN.fullmatch(value):
            raise ValueError("use 1 to 64 letters, digits, `.`, `_` or `-`, beginning with a letter or digit")
        return value

    @model_validator(mode="after")
    def _sections_fit_each_other(self) -> Recipe:
        problems = []
        if self.model.max_length_tokens > self.train.pack_length_tokens:
            problems.append(
                f"model.max_length_tokens {self.model.max_length_tokens} is larger than train.pack_length_tokens "
                f"{self.train.pack_length_tokens}: a conversation must fit into a pack; raise the pack length"
            )
        if Path(self.output_dir).resolve().is_relative_to(Path(self.data.prepared_dir).resolve()):
            problems.append(
                "output_dir must not be data.prepared_dir or inside it: `ochat prepare` replaces that folder"
            )
        if self.adapter is not None and self.model.float8:
            problems.append("model.float8 cannot be used with an adapter: it trains weights that are frozen here")
        if self.adapter is not None and self.adapter.type == "qlora" and self.deepspeed.zero_stage == 3:
            problems.append(
                "adapter.type qlora cannot be used with deepspeed.zero_stage 3, which spreads weights over GPUs: those "
                "in 4 bits are whole on each of them; use zero_stage 2"
            )
        if self.optimizer.states != "float32" and self.deepspeed.offload_optimizer:
            problems.append(
                f"optimizer.states {self.optimizer.states} cannot be used with deepspeed.offload_optimizer, whose "
                "optimizer keeps float32 states in CPU memory; leave one of the two out"
            )
        if self.optimizer.states != "float32" and self.adapter is not None:
            problems.append(
                f"optimizer.states {self.optimizer.states} cannot be used with an adapter, whose states are small; "
                "leave optimizer.states out"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def fingerprint(self) -> str:
        """sha256 of the recipe's values."""
        return hashlib.sha256(
            json.dumps(self.model_dump(mode="json", by_alias=True), sort_keys=True).encode()
        ).hexdigest()
