"""What `ochat plan` finds, as values, and as the document of `ochat plan --json` (docs/json-outputs.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from data_pipeline.prepared.dataset import PreparedClass
from ochat_train.system.json_values import fields_from


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """What depends on the prepared data. steps_per_epoch: of each epoch. packing_efficiency: share of tokens in packs
    that are not padding. waiting_ratio: time in which GPUs wait for the slowest one of a step, relative to equal work;
    balanced_waiting_ratio: with `train.plan: balanced`. learning_rate_rule: what gave the rate, None where the recipe
    names it. validation_time_ratio: relative to the time of the steps, without answers to prompts.
    """

    steps_per_epoch: Sequence[int]
    num_steps: int
    tokens_per_epoch: int
    packing_efficiency: float
    conversations_per_epoch: int
    max_conversations_per_pack: int
    waiting_ratio: float
    balanced_waiting_ratio: float
    learning_rate: float
    learning_rate_rule: str | None
    num_validations: int
    validation_time_ratio: float


@dataclass(frozen=True, kw_only=True)
class PlannedTime:
    """An estimate. tokens_per_second: of all GPUs, padding not counted. price_per_gpu_hour: as the user gave it, None
    where they did not; cost: in the same currency.
    """

    seconds_per_step: float
    tokens_per_second: float
    hours: float
    gpu_hours: float
    price_per_gpu_hour: float | None
    cost: float | None


@dataclass(frozen=True, kw_only=True)
class PlannedSetting:
    """A setting that was considered. relative_seconds: of a step, relative to the chosen setting."""

    zero_stage: int
    activation_checkpointing: str
    packs_per_micro_batch: int
    memory_gib: float
    fits: bool
    relative_seconds: float
    chosen: bool


@dataclass(frozen=True, kw_only=True)
class PlanReport:
    """What a recipe would do. The fields are in the order of the document.

    gpu: its name. num_parameters: of the base. num_trained_parameters: those that the optimizer changes. adapter,
    adapter_rank: as in the recipe, None where all weights are trained. classes: none before the data are prepared. run:
    None before the data are prepared. time: None then, where nothing fits, and where no comparable speed was measured.
    bins_per_step: packs of a step. peak_tflops: dense bfloat16. problem: what to do where nothing fits.
    memory_gib_per_gpu: by part, and `total`.
    """

    gpu: str
    num_gpus: int
    gpu_memory_gib: float
    num_parameters: int
    num_trained_parameters: int
    adapter: str | None
    adapter_rank: int | None
    classes: Sequence[PreparedClass]
    run: PlannedRun | None
    time: PlannedTime | None
    tokens_per_step: int
    bins_per_step: int
    packs_per_gpu: int
    empty_packs_per_step: int
    loss_denominator: str
    mfu_assumed: float | None
    mfu_basis: str
    peak_tflops: float
    fits: bool
    problem: str | None
    zero_stage: int
    activation_checkpointing: str
    packs_per_micro_batch: int
    optimizer_states: str
    memory_gib_per_gpu: Mapping[str, float]
    settings: Sequence[PlannedSetting]

    def to_json(self) -> dict[str, Any]:
        """The document. The keys of `run` and `time` are among the others, null where that is None."""
        document: dict[str, Any] = {"prepared": self.run is not None}
        for name, value in asdict(self).items():
            group = _GROUPS.get(name)
            if group is None:
                document[name] = value
            else:
                document |= value or dict.fromkeys(field.name for field in fields(group))
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> PlanReport:
        """From `to_json`, which may also hold other keys. Raises KeyError where one is missing."""
        has_time = document["hours"] is not None
        parts = {
            "classes": [PreparedClass(**fields_from(PreparedClass, row)) for row in document["classes"]],
            "run": PlannedRun(**fields_from(PlannedRun, document)) if document["prepared"] else None,
            "time": PlannedTime(**fields_from(PlannedTime, document)) if has_time else None,
            "settings": [PlannedSetting(**fields_from(PlannedSetting, row)) for row in document["settings"]],
        }
        return cls(**fields_from(cls, {**document, **parts}))


_GROUPS: Mapping[str, Any] = {"run": PlannedRun, "time": PlannedTime}
