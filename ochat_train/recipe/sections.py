"""The sections of a recipe, in the order of docs/recipe.md; `data` is in data_pipeline/settings.py."""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from data_pipeline.hub_names import hub_name_problem
from data_pipeline.path_keys import PathText
from data_pipeline.plan.kinds import PlanKind
from data_pipeline.prompt.base_template.template import BASE, ConditionPlace, RewrittenHistory, is_jinja
from data_pipeline.prompt.base_template.variables import template_variable_problems
from data_pipeline.prompt.templates import TEMPLATES, is_template_file
from data_pipeline.section import Rule, Section, setting
from data_pipeline.settings import DataSettings, Ratio
from data_pipeline.text_rules import did_you_mean

Positive = Annotated[float, Field(gt=0.0)]
PositiveInt = Annotated[int, Field(gt=0)]
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# The attention kernels, the fastest first. Each is a file of ochat_train/model/attention with this name.
KernelName = Literal["flash_attention_4", "flash_attention_3", "flash_attention_2", "varlen", "flex", "sdpa"]
Checkpointing = Annotated[
    Literal["auto", "none", "matmuls", "full"] | Annotated[dict[Literal["layers"], PositiveInt], Field(min_length=1)],
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": ["auto", "none", "matmuls", "full"]},
                {
                    "type": "object",
                    "properties": {"layers": {"type": "integer", "minimum": 1}},
                    "required": ["layers"],
                    "additionalProperties": False,
                },
            ]
        }
    ),
    Rule("expected `auto`, `none`, `matmuls`, `full`, or `layers: N` with N above 0"),
]


class ModelSettings(Section):
    """The base model, its tokenizer and prompt format."""

    path: PathText | None = setting(
        None,
        description="Hub id (`ORG/NAME`) or folder of the base model",
        decides_steps=True,
        is_public=True,
    )
    config: dict[str, Any] | None = setting(
        None,
        description="instead of `path`: the `config.json` of a model to train from random weights",
        decides_steps=True,
        is_public=True,
    )
    tokenizer: PathText | None = setting(
        None, description="Hub id or folder of the tokenizer; default: `path`", decides_steps=True, is_public=True
    )
    revision: str | None = setting(
        None,
        description="branch, tag or commit on the Hub, for `path` and `tokenizer`",
        decides_steps=True,
        is_public=True,
    )
    template: PathText = setting(
        description=f"prompt format: {', '.join(TEMPLATES)}; or `base`, the Jinja chat template of the tokenizer; or a "
        "`.jinja` file; or a `.yaml` file of your own (docs/own-template.md)",
        decides_steps=True,
        is_public=True,
    )
    condition_in: ConditionPlace | None = setting(
        None,
        description="where the condition is. `role`: in every role prefix (built-in templates). For `base` and "
        "`.jinja` templates, `system` (the default): a line before the system text, in a system message that is made "
        "where there is none; `assistant`: a line before every answer",
        decides_steps=True,
        is_public=True,
    )
    rewritten_history: RewrittenHistory | None = setting(
        None,
        description="for `base` and `.jinja` templates: what to do with a conversation whose earlier messages the "
        "template rewrites for a later answer (it removes their thinking, for example). `one_row_per_answer` (the "
        "default): each answer becomes a row, after what it is prompted with; `last_answer`: only the last answer is "
        "trained on; `error`: such rows cannot be used",
        decides_steps=True,
        is_public=True,
    )
    template_variables: dict[str, Any] | None = setting(
        None,
        description="for `base` and `.jinja` templates: variables that the template is given, such as "
        "`{enable_thinking: false}`; exports use them by default",
        decides_steps=True,
        is_public=True,
    )
    template_date: str | None = setting(
        None,
        pattern=r"^\d{4}-\d{2}-\d{2}$",
        description="for `base` and `.jinja` templates that write today's date: the day that they write instead "
        '(`"2026-01-31"`), in exports too, so that a row does not depend on the day on which it is prepared',
        decides_steps=True,
        is_public=True,
    )
    max_length_tokens: PositiveInt = setting(
        description="longest conversation; `data.overlong` says what happens to longer ones",
        decides_steps=True,
        is_public=True,
    )
    inference_condition: str | None = setting(
        None,
        description="condition that exports use by default; chosen from the classes if not given",
        decides_steps=True,
        is_public=True,
    )
    precision: Literal["auto", "bfloat16", "float32"] = setting(
        "auto",
        description="`auto`: bfloat16 with float32 master weights on a GPU, float32 on a CPU",
        decides_steps=True,
        is_public=True,
    )
    attention: Literal["auto", KernelName] = setting(
        "auto",
        description="attention kernel; `auto` picks the fastest installed one and prints it",
        decides_steps=True,
        is_public=True,
    )
    compile: bool | None = setting(
        None,
        description="compile the decoder layers with torch.compile; default: on GPUs, if the attention kernel "
        "supports it",
        decides_steps=False,
        is_public=True,
    )
    router_aux_loss: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | None = setting(
        None,
        description="mixtures of experts: coefficient of the loss that balances the routers; 0: none; default: the "
        "base's own where its config has `output_router_logits: true`, else none",
        decides_steps=True,
        is_public=True,
    )
    float8: bool = setting(
        False,
        description="compute matrix products of the decoder layers in float8, with one scale per tensor: faster on "
        "Hopper and newer GPUs, but less exact; weights, head, embeddings and exports are not affected",
        decides_steps=True,
        is_public=True,
    )
    activation_checkpointing: Checkpointing = setting(
        "auto",
        description="what layers recompute in the backward pass to save memory. `none`: nothing; `matmuls`: "
        "everything except matrix products and attention; `full`: everything; `layers: N`: N layers as in `full`, the "
        "others as in `matmuls`; `auto`: the fastest that fits",
        decides_steps=False,
        is_public=True,
    )

    @field_validator("template")
    @classmethod
    def _template_exists(cls, value: str) -> str:
        if value not in TEMPLATES and not is_jinja(value) and not is_template_file(value):
            known = (*TEMPLATES, BASE)
            raise ValueError(
                f"unknown template; {did_you_mean(value, known) or 'templates: ' + ', '.join(known)}, or a .yaml or "
                ".jinja file"
            )
        return value

    @model_validator(mode="after")
    def _keys_of_jinja_templates(self) -> ModelSettings:
        if is_jinja(self.template):
            problems = template_variable_problems(self.template_variables or {})
            if self.condition_in == "role":
                problems.append("condition_in: `role` is only for built-in templates; use `system` or `assistant`")
            if self.template_date is not None and not _is_day(self.template_date):
                problems.append(f"template_date: {self.template_date} is no day")
        else:
            names = ("rewritten_history", "template_variables", "template_date")
            problems = [f"{name}: only for `base` and `.jinja` templates" for name in names if getattr(self, name)]
            if self.condition_in not in (None, "role"):
                problems.append(f"condition_in: `{self.condition_in}` is only for `base` and `.jinja` templates")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def _one_origin(self) -> ModelSettings:
        if (self.path is None) == (self.config is None):
            raise ValueError("give exactly one of `path` (a trained base) and `config` (random weights)")
        if self.config is not None and self.tokenizer is None:
            raise ValueError("`tokenizer` is missing: a model from `config` has none of its own")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("config.model_type is missing, for example `mistral`")
        return self

    @property
    def tokenizer_source(self) -> str:
        """Where the tokenizer comes from."""
        source = self.tokenizer or self.path
        assert source is not None, "checked by _one_origin"
        return source


AdapterTargets = Annotated[
    Literal["all-linear"] | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)],
    WithJsonSchema(
        {
            "anyOf": [
                {"const": "all-linear"},
                {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
            ]
        }
    ),
    Rule("expected `all-linear`, or a list of names such as `[q_proj, v_proj]`"),
]


class AdapterSettings(Section):
    """Train an adapter (LoRA) instead of all weights: the base does not change, and checkpoints hold only the adapter.

    A linear module computes W x + scale * B A x, with W of the base, A of `rank` rows, and B of `rank` columns.
    """

    type: Literal["lora", "qlora"] = setting(
        description="`lora`: the base in `model.precision`. `qlora`: linear modules of the base in 4 bits (NF4), for "
        "GPUs with little memory",
        decides_steps=True,
        is_public=True,
    )
    rank: PositiveInt = setting(16, description="rows of A and columns of B", decides_steps=True, is_public=True)
    alpha: Positive | None = setting(
        None,
        description="scale = alpha / rank; with `rslora` alpha / sqrt(rank); default: 32, with which the best "
        "learning rate hardly depends on the rank, and 16 with `rslora`",
        decides_steps=True,
        is_public=True,
    )
    dropout: float = setting(
        0.0,
        ge=0.0,
        lt=1.0,
        description="dropout of what A reads; needs layers that are not compiled",
        decides_steps=True,
        is_public=True,
    )
    targets: AdapterTargets = setting(
        "all-linear",
        description="linear modules that get an adapter: all of the decoder layers, or those whose name ends with one "
        "of a list, such as `[q_proj, v_proj]`",
        decides_steps=True,
        is_public=True,
    )
    rslora: bool = setting(
        False, description="scale = alpha / sqrt(rank), for large ranks", decides_steps=True, is_public=True
    )
    dora: bool = setting(
        False,
        description="also train the length of each row of the sum of W and B A (DoRA); slower",
        decides_steps=True,
        is_public=True,
    )
    init: Literal["default", "gaussian", "orthogonal"] = setting(
        "default",
        description="first values of A and B, as PEFT names them; all leave the first result that of the base. "
        "PEFT's others change the base's weights",
        decides_steps=True,
        is_public=True,
    )

    @field_validator("targets")
    @classmethod
    def _targets_differ(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, list) and len(set(value)) < len(value):
            raise ValueError("a name is given twice")
        return value

    @model_validator(mode="after")
    def _orthogonal_rank_is_even(self) -> AdapterSettings:
        if self.init == "orthogonal" and self.rank % 2:
            raise ValueError("`init: orthogonal` needs an even rank")
        return self

    @property
    def lora_alpha(self) -> float:
        """`alpha`, or its default."""
        if self.alpha is not None:
            return self.alpha
        return 16.0 if self.rslora else 32.0

    @property
    def scale(self) -> float:
        """What B A x is multiplied by."""
        return self.lora_alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def _is_day(text: str) -> bool:
    try:
        datetime.date.fromisoformat(text)
    except ValueError:
        return False
    return True


class TrainSettings(Section):
    """Batch size, number of steps, and what happens when something goes wrong."""

    epochs: PositiveInt = setting(description="passes over the training split", decides_steps=True, is_public=True)
    pack_length_tokens: PositiveInt = setting(description="length of a pack", decides_steps=True, is_public=True)
    packs_per_micro_batch: PositiveInt | None = setting(
        None,
        description="packs that a GPU processes at once; default: as many as fit into its memory and make it faster",
        decides_steps=False,
        is_public=True,
    )
    gradient_dtype: Literal["float32", "bfloat16"] = setting(
        "float32",
        description="dtype in which a GPU accumulates gradients over the packs of a step (bfloat16 models only). "
        "`bfloat16` needs half the memory but rounds after every pack. ZeRO 2 without `offload_optimizer` always "
        "accumulates in float32, at no extra memory",
        decides_steps=True,
        is_public=True,
    )
    tokens_per_step: PositiveInt = setting(
        description="tokens in one optimizer step over all GPUs, padding included; a multiple of `pack_length_tokens`",
        decides_steps=True,
        is_public=True,
    )
    loss_denominator: Literal["epoch", "step"] = setting(
        "epoch",
        description="what the weighted loss of a step is divided by. `epoch`: the mean weight per step, a constant "
        "(unbiased). `step`: the step's own weight, as in OpenChat (cancels class weights in small steps)",
        decides_steps=True,
        is_public=True,
    )
    plan: PlanKind = setting(
        "varied",
        description="which packs form a step. `varied`: random ones. `balanced`: random ones of about the same cost, "
        "for fewer than four packs per GPU and step (`ochat plan` says what it saves). `first`: as in runs that began "
        "before this key; they resume with it by themselves",
        decides_steps=True,
        is_public=True,
    )
    max_steps: PositiveInt | None = setting(
        None,
        description="stop after this many optimizer steps; default: all epochs",
        decides_steps=True,
        is_public=True,
    )
    log_every_steps: PositiveInt = setting(
        1, description="write metrics every N steps", decides_steps=False, is_public=True
    )
    max_nonfinite_steps: PositiveInt = setting(
        3,
        description="stop after this many steps in a row whose loss or gradient is not finite; such steps do not "
        "update the model",
        decides_steps=False,
        is_public=True,
    )
    hang_timeout_seconds: Positive = setting(
        1800.0,
        description="abort if a rank makes no progress for this long; must exceed one step plus one save",
        decides_steps=False,
        is_public=True,
    )
    push_to_hub: str | None = setting(
        None,
        description="Hugging Face Hub repository (`ORG/NAME`) to push the model to in the background: the checkpoint "
        "with the lowest validation loss, or the newest one if there is no validation. Needs `HF_TOKEN` in the "
        "environment",
        decides_steps=False,
        is_public=True,
    )
    hub_private: bool = setting(
        True,
        description="create that repository as private; set `false` for a public repository, also if it already exists",
        decides_steps=False,
        is_public=True,
    )

    @field_validator("push_to_hub")
    @classmethod
    def _is_a_repository(cls, value: str | None) -> str | None:
        if value is not None and (problem := hub_name_problem(value)) is not None:
            raise ValueError(problem)
        return value

    @model_validator(mode="after")
    def _whole_packs(self) -> TrainSettings:
        if self.tokens_per_step % self.pack_length_tokens:
            multiple = max(1, round(self.tokens_per_step / self.pack_length_tokens)) * self.pack_length_tokens
            raise ValueError(
                f"tokens_per_step {self.tokens_per_step} is not a multiple of pack_length_tokens "
                f"{self.pack_length_tokens}; the nearest is {multiple}"
            )
        return self

    @property
    def bins_per_step(self) -> int:
        """Packs in one optimizer step."""
        return self.tokens_per_step // self.pack_length_tokens


# AdamW divides the rate by 1 - beta and takes the result as float32, which overflows above this for the largest beta.
_LARGEST_RATE = 1e20
LearningRate = Annotated[
    Annotated[float, Field(gt=0.0, le=_LARGEST_RATE)] | Literal["auto"],
    WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": _LARGEST_RATE}, {"const": "auto"}]}),
    Rule("expected a number above 0 and at most 1e20, or `auto`"),
]


class OptimizerSettings(Section):
    """AdamW with linear warm-up and cosine decay."""

    learning_rate: LearningRate = setting(
        "auto",
        description="peak learning rate; `auto`: by family or width of the base, and supervised tokens per step",
        decides_steps=True,
        is_public=True,
    )
    warmup_ratio: Ratio = setting(
        0.05, description="share of the steps in which the learning rate warms up", decides_steps=True, is_public=True
    )
    min_lr_ratio: float = setting(
        0.1,
        ge=0.0,
        le=1.0,
        description="final learning rate, as a share of the peak",
        decides_steps=True,
        is_public=True,
    )
    weight_decay: float = setting(
        0.1,
        ge=0.0,
        le=_LARGEST_RATE,
        description="AdamW weight decay; applies to all parameters, as in OpenChat",
        decides_steps=True,
        is_public=True,
    )
    betas: Annotated[list[Ratio], Field(min_length=2, max_length=2)] = setting(
        [0.9, 0.95], description="AdamW betas", decides_steps=True, is_public=True
    )
    eps: Positive = setting(1e-5, le=1.0, description="AdamW epsilon", decides_steps=True, is_public=True)
    grad_clip: float = setting(
        1.0,
        ge=0.0,
        description="clip the gradient to this norm; 0 turns clipping off",
        decides_steps=True,
        is_public=True,
    )
    states: Literal["float32", "bfloat16", "8bit"] = setting(
        "float32",
        description="what the optimizer keeps of each parameter. `float32`: a float32 master weight and two float32 "
        "moments, 12 bytes. `bfloat16`: two bfloat16 moments, 5 bytes; `8bit`: two 8-bit moments with a scale for 128 "
        "of them, 3.1 bytes; both keep 8 bits beside the bfloat16 weight instead of a master weight, so that 24 bits "
        "are updated, with stochastic rounding (of a float32 model all 32 bits are)",
        decides_steps=True,
        is_public=True,
    )


# Keys of DeepSpeed's configuration that the recipe's own settings decide.
_OWNED_KEYS = {
    "train_batch_size": "train.tokens_per_step",
    "train_micro_batch_size_per_gpu": "train.pack_length_tokens",
    "gradient_accumulation_steps": "train.tokens_per_step",
    "gradient_clipping": "optimizer.grad_clip",
    "optimizer": "optimizer",
    "scheduler": "optimizer.warmup_ratio",
    "bf16": "model.precision",
    "fp16": "model.precision",
}
_OWNED_ZERO_KEYS = {
    "stage": "deepspeed.zero_stage",
    "offload_optimizer": "deepspeed.offload_optimizer",
    "offload_param": "deepspeed.offload_parameters",
}


class DeepSpeedSettings(Section):
    """How DeepSpeed shards the model over GPUs."""

    zero_stage: int | None = setting(
        None,
        ge=0,
        le=3,
        description="what is sharded over GPUs: 0 nothing (float32 models only), 1 optimizer states, 2 also "
        "gradients, 3 also parameters; default: the fastest that fits into GPU memory (2 on a CPU)",
        decides_steps=True,
        is_public=True,
    )
    offload_optimizer: bool = setting(
        False, description="keep optimizer states in CPU memory (stages 1 to 3)", decides_steps=True, is_public=True
    )
    offload_parameters: bool = setting(
        False, description="keep parameters in CPU memory (stage 3)", decides_steps=False, is_public=True
    )
    config: dict[str, Any] = setting(
        default_factory=dict,
        description="raw DeepSpeed configuration, merged over what the recipe generates",
        decides_steps=True,
        is_public=True,
    )

    @model_validator(mode="after")
    def _offload_fits_stage(self) -> DeepSpeedSettings:
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3")
        # also if the stage is left open: another one could be chosen
        if self.offload_parameters and self.zero_stage != 3:
            raise ValueError("offload_parameters needs zero_stage 3")
        zero = self.config.get("zero_optimization", {})
        if not isinstance(zero, dict):
            raise ValueError("config.zero_optimization must be a mapping")
        clashes = [f"config.{key}: `{home}` decides it" for key, home in _OWNED_KEYS.items() if key in self.config]
        zero_clashes = [(key, home) for key, home in _OWNED_ZERO_KEYS.items() if key in zero]
        clashes += [f"config.zero_optimization.{key}: `{home}` decides it" for key, home in zero_clashes]
        if clashes:
            raise ValueError("; ".join(clashes))
        return self

    @property
    def stage(self) -> int:
        """The ZeRO stage of a run, once it is decided (`planning.memory.resolve`)."""
        assert self.zero_stage is not None, "resolve() decides it before training"
        return self.zero_stage


class ValidationSettings(Section):
    """Validation on held-out conversations (`data.validation_ratio`) during training."""

    every_steps: PositiveInt | None = setting(
        None,
        description="validate every N steps, before every checkpoint and at the end; default: ten times per run, or "
        "less often if that would take more than 4 % of the time on one GPU",
        decides_steps=False,
        is_public=True,
    )
    prompts: list[Annotated[str, Field(min_length=1)]] = setting(
        default_factory=list,
        description="user messages that the model answers under every condition at each validation; default: three "
        "held-out conversations",
        decides_steps=False,
        is_public=True,
    )
    sample_tokens: Annotated[int, Field(ge=0)] = setting(
        64,
        description="longest answer to a prompt, in tokens; 0 turns answers off",
        decides_steps=False,
        is_public=True,
    )
    questions: PathText | None = setting(
        None,
        description="file of questions with checkable answers for `ochat ablate`: JSON lines with `question`, "
        "`answer` and, if there are several tasks, `task`",
        decides_steps=False,
        is_public=True,
    )
    answer_pattern: str | None = setting(
        None,
        min_length=1,
        description="regular expression that finds the part of an answer to compare: its last match, or the first "
        "group of that match; default: the whole answer",
        decides_steps=False,
        is_public=True,
    )
    answer_tokens: PositiveInt = setting(
        256, description="longest answer to a question, in tokens", decides_steps=False, is_public=True
    )

    @field_validator("answer_pattern")
    @classmethod
    def _pattern_compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return value


class CheckpointSettings(Section):
    """When checkpoints are written, and how many are kept."""

    save_every_steps: PositiveInt | None = setting(
        None,
        description="write a checkpoint every N steps, and at the end; default: only at the end",
        decides_steps=False,
        is_public=True,
    )
    keep_last: PositiveInt = setting(
        2,
        description="how many checkpoints to keep, in addition to the one with the lowest validation loss",
        decides_steps=False,
        is_public=True,
    )


Wandb = Annotated[bool | Literal["online", "offline"], Rule("expected `true`, `false`, `online` or `offline`")]


class TrackingSettings(Section):
    """Where metrics go, in addition to `metrics.jsonl` in the run folder."""

    wandb: Wandb = setting(
        False,
        description="log to Weights & Biases; `true` means `online`, `offline` writes into the run folder for `wandb "
        "sync`",
        decides_steps=False,
        is_public=False,
    )
    wandb_project: str = setting(
        "ochat-train",
        min_length=1,
        description="project of the run on Weights & Biases",
        decides_steps=False,
        is_public=False,
    )
    wandb_entity: str | None = setting(
        None,
        min_length=1,
        description="team or user on Weights & Biases; default: your default entity",
        decides_steps=False,
        is_public=False,
    )
    wandb_group: str | None = setting(
        None,
        min_length=1,
        description="name of a group of runs on Weights & Biases",
        decides_steps=False,
        is_public=False,
    )
    wandb_tags: list[Annotated[str, Field(min_length=1)]] = setting(
        default_factory=list, description="tags of the run on Weights & Biases", decides_steps=False, is_public=False
    )
    tensorboard: bool = setting(
        False, description="write TensorBoard files into the run folder", decides_steps=False, is_public=False
    )


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
    def _conversation_fits_pack(self) -> Recipe:
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
