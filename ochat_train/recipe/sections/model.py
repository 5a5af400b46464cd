"""`model` of a recipe: the base, its tokenizer and prompt format, and how it is computed."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from data_pipeline.path_keys import PathText
from data_pipeline.prompt.base_template.template import BASE, ConditionPlace, RewrittenHistory, is_jinja
from data_pipeline.prompt.base_template.variables import template_variable_problems
from data_pipeline.prompt.templates import TEMPLATES, is_template_file
from data_pipeline.section import Rule, Section, setting
from data_pipeline.text_rules import did_you_mean
from ochat_train.recipe.sections.values import PositiveInt

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
TemplateName = Annotated[
    PathText,
    WithJsonSchema(  # editors offer the names, and accept files
        {
            "anyOf": [
                {"enum": [*TEMPLATES, BASE]},
                {"type": "string", "pattern": r"\.(jinja|yaml|yml)$", "description": "file (`.jinja`, `.yaml`)"},
            ]
        }
    ),
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
    template: TemplateName = setting(
        description="prompt format: a built-in template; `base`, the Jinja chat template of the tokenizer; a `.jinja` "
        "file; or a `.yaml` file of your own (docs/own-template.md)",
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
            hint = did_you_mean(value, known) or f"templates: {', '.join(known)}."
            raise ValueError(f"unknown template; {hint} A .yaml or .jinja file is also possible")
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


def _is_day(text: str) -> bool:
    try:
        datetime.date.fromisoformat(text)
    except ValueError:
        return False
    return True
