"""Whether a first recipe trains all weights or an adapter: by what fits on the GPUs of this machine."""

from __future__ import annotations

import subprocess
from typing import Any

from data_pipeline.errors import UserError
from ochat_train.init.ask import Ask, answer
from ochat_train.init.base import Base
from ochat_train.init.sizes import Decision
from ochat_train.recipe.recipe import Recipe
from ochat_train.recipe.sections.adapter import AdapterSettings

NONE = "none"
CHOICES = (NONE, "lora", "qlora")  # what is taken first comes first
RANK = 16
_DRIVER_SECONDS = 10.0


def gpu_memory_gib() -> float | None:
    """Memory of the smallest GPU of this machine by NVIDIA's driver, None where there is none: torch is not asked,
    because importing it takes seconds.
    """
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_DRIVER_SECONDS)
        return min(float(line) for line in done.stdout.splitlines()) / 1024
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def choose_adapter(
    flag: str | None, recipe: Recipe, base: Base, *, gpus: int, memory_gib: float | None, ask: Ask | None
) -> Decision[str]:
    """`none`, `lora` or `qlora`. flag: `--adapter`. recipe: that trains all weights. memory_gib: of each GPU, None
    where there is none here. ask: where all weights do not fit, a person has the last word.
    """
    if flag is not None:
        return Decision(value=flag, reason="from --adapter")
    if memory_gib is None:
        return Decision(value=NONE, reason="all weights are trained; there is no GPU here: `ochat plan` says what fits")
    if base.config is None:
        reason = "all weights are trained; the base is not on this machine: `ochat plan` says what fits"
        return Decision(value=NONE, reason=reason)
    where = f"{gpus} GPU(s) of {memory_gib:.0f} GiB"
    try:
        needs = {choice: _need_gib(recipe, base, choice, gpus=gpus, memory_gib=memory_gib) for choice in CHOICES}
    except UserError as error:
        return Decision(value=NONE, reason=f"all weights are trained; what fits is not known: {error}")
    fitting = [choice for choice, (fits, _) in needs.items() if fits]
    if fitting and fitting[0] == NONE:
        return Decision(value=NONE, reason=f"all weights fit on {where}: {needs[NONE][1]:.1f} GiB each")
    least = f"training all weights needs {needs[NONE][1]:.1f} GiB each on {where}"
    if (small := _small_need_gib(recipe, base, gpus=gpus, memory_gib=memory_gib)) is not None:
        least += f" ({small:.1f} with optimizer.states: 8bit and train.gradient_dtype: bfloat16)"
    if not fitting:
        return Decision(value=NONE, reason=f"{least}, and no adapter fits either")
    found = Decision(value=fitting[0], reason=f"{least}; {fitting[0]} needs {needs[fitting[0]][1]:.1f} GiB")
    if ask is None:
        return found
    chosen = answer(ask, f"{least}. Adapter to train instead ({', '.join(CHOICES)})", found.value, read_choice)
    return found if chosen == found.value else Decision(value=chosen, reason=f"your choice; {least}")


def read_choice(text: str) -> str:
    """A choice. Raises UserError for another answer."""
    if text not in CHOICES:
        raise UserError(text, f"answer {', '.join(CHOICES)}")
    return text


def _small_need_gib(recipe: Recipe, base: Base, *, gpus: int, memory_gib: float) -> float | None:
    """What all weights need with small optimizer states, None where that does not fit either."""
    small = recipe.model_copy(
        update={
            "optimizer": recipe.optimizer.model_copy(update={"states": "8bit"}),
            "train": recipe.train.model_copy(update={"gradient_dtype": "bfloat16"}),
        }
    )
    fits, need = _need_gib(small, base, NONE, gpus=gpus, memory_gib=memory_gib)
    return need if fits else None


def _need_gib(recipe: Recipe, base: Base, choice: str, *, gpus: int, memory_gib: float) -> tuple[bool, float]:
    """Whether it fits, and GiB of each GPU under the setting that a run would choose, or the least it could."""
    from ochat_train.model.base_class import text_config
    from ochat_train.model.config import model_without_weights
    from ochat_train.planning.report import memory_choice
    from ochat_train.system.pretrained import config_of_values
    from ochat_train.system.sizes import GIB

    config: Any = config_of_values(dict(base.config or {}), place="--base")
    adapter = None if choice == NONE else AdapterSettings(type=choice, rank=RANK)  # type: ignore[arg-type]
    plan = memory_choice(
        recipe.model_copy(update={"adapter": adapter}),
        model_without_weights(config),
        vocab_size=text_config(config).vocab_size,
        num_gpus=gpus,
        gpu_memory_gib=memory_gib,
    ).chosen
    return plan.fits, plan.total / GIB
