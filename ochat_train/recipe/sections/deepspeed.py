"""`deepspeed` of a recipe."""

from __future__ import annotations

import copy
from difflib import get_close_matches
from typing import Any

from pydantic import model_validator

from data_pipeline.errors import UserError
from data_pipeline.section import Section, setting

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
    "torch_autocast": "model.precision",
    "data_types": "train.gradient_dtype",
    "gradient_allreduce_op": "train.loss_denominator",
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

    def check_config(self) -> None:
        """Raise UserError for a `config` that DeepSpeed does not take, and import DeepSpeed to know that."""
        if not self.config:
            return
        from deepspeed.runtime import config as deepspeed_config

        known = [text for name, text in vars(deepspeed_config).items() if name.isupper() and isinstance(text, str)]
        for key in self.config:  # DeepSpeed forbids unknown keys in its sections only
            if key not in known and (near := get_close_matches(key, known, n=1, cutoff=0.9)):
                raise UserError("deepspeed.config", f"`{key}` is no key of DeepSpeed", f"did you mean `{near[0]}`?")
        try:
            deepspeed_config.DeepSpeedConfig({"train_micro_batch_size_per_gpu": 1, **copy.deepcopy(self.config)})
        except Exception as error:  # whatever it raises for a key or a value
            reason = " ".join(str(error).partition(" [type=")[0].split())
            raise UserError("deepspeed.config", f"DeepSpeed does not take it: {reason}", "correct it") from None

    @property
    def stage(self) -> int:
        """The ZeRO stage of a run, once it is decided (`planning.memory.resolve`)."""
        assert self.zero_stage is not None, "resolve() decides it before training"
        return self.zero_stage
