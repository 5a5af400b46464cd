"""DeepSpeed: process group, configuration from the recipe, engine. The only file that configures it."""

from __future__ import annotations

import copyreg
import logging
import math
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch

from data_pipeline.errors import UserError
from data_pipeline.plan.plan import num_micro_batches
from ochat_train.exits import OneRankError
from ochat_train.gradient_sum import GradientSum
from ochat_train.meeting import meet
from ochat_train.memory_plan import BUCKET_ELEMENTS, GROUP_ELEMENTS, dtype_of_sums
from ochat_train.model import PackedCausalLM, decoder_layers, model_dtype
from ochat_train.quiet import quiet_libraries
from ochat_train.recipe import Recipe

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Who this process is."""

    rank: int
    num_ranks: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that prints and writes shared files."""
        return self.rank == 0


def start_ranks(*, timeout_seconds: float = 1800.0) -> Ranks:
    """Join the process group of the launcher (`deepspeed`, `torchrun`), or make one of a single process.

    timeout_seconds: how long a collective may wait for the other ranks.
    """
    quiet_libraries()
    # Blocks that grow: without it a tenth of a full GPU is lost between blocks of different sizes.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    # Known, and empty: it would try a compiler on every rank, and on a CPU build collectives that only inference uses.
    deepspeed.ops.__compatible_ops__ = {}
    pickle_stages_by_value()
    if "WORLD_SIZE" not in os.environ:
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        os.environ["MASTER_PORT"] = str(_free_port())
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise OneRankError(
                f"rank {local_rank} of this host has no GPU: {torch.cuda.device_count()} are visible; start fewer ranks"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    meeting = None if torch.distributed.is_initialized() else meet()
    deepspeed.init_distributed(verbose=False, auto_mpi_discovery=False, timeout=timedelta(seconds=timeout_seconds))
    del meeting
    return Ranks(rank=torch.distributed.get_rank(), num_ranks=torch.distributed.get_world_size(), device=device)


def pickle_stages_by_value() -> None:
    """Let checkpoints hold the ZeRO stage as its class and number, on every Python.

    3.11.0 to 3.11.3 would write a call of `getattr`, which checkpoint.py refuses to load, as it must: anything can be
    reached with it.
    """
    from deepspeed.runtime.zero.config import ZeroStageEnum

    copyreg.pickle(ZeroStageEnum, lambda stage: (ZeroStageEnum, (stage.value,)))  # type: ignore[arg-type, return-value]


def on_main_rank(ranks: Ranks, work: Callable[[], T]) -> T:
    """Do something on rank 0 only; all ranks wait, and all get its result, or its UserError or OSError as a
    UserError.
    """
    message: list[Any] = [None, None]
    if ranks.is_main:
        try:
            message[0] = work()
        except (UserError, OSError) as error:
            message[1] = str(error)
    torch.distributed.broadcast_object_list(message, src=0)
    if message[1] is not None:
        raise UserError(message[1])
    result: T = message[0]
    return result


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def deepspeed_config(
    recipe: Recipe, *, num_ranks: int, device: torch.device, layer_elements: int, load_universal: bool = False
) -> dict[str, Any]:
    """DeepSpeed's configuration for a recipe; the recipe's raw `deepspeed.config` is merged over it last.

    layer_elements: parameters of the largest decoder layer. load_universal: the engine will load a universal checkpoint
    (reshard.py).
    """
    settings = recipe.deepspeed
    zero: dict[str, Any] = {"stage": settings.stage}
    if settings.stage in (1, 2):
        # Stage 1 reduces gradients where they are: in contiguous buffers it would keep a second copy of its share of
        # them.
        in_place = settings.stage == 1 and not settings.offload_optimizer
        zero |= {
            "overlap_comm": device.type == "cuda" and not (in_place and num_ranks == 1),
            "contiguous_gradients": not in_place,
            "reduce_scatter": not in_place,
            "reduce_bucket_size": BUCKET_ELEMENTS,
        }
    if settings.stage == 3:
        # The next layer is gathered while one computes; by default it would be parts of it, and the rest waited for.
        zero["stage3_prefetch_bucket_size"] = layer_elements
    if settings.stage == 3 and recipe.model.compile:
        # DeepSpeed's own linear function reads a number that is different in every layer: torch 2.11 compiles each
        # layer anew.
        zero["memory_efficient_linear"] = False
    if settings.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": device.type == "cuda"}
    if settings.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": device.type == "cuda"}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": _num_backwards(recipe, num_ranks),
        "gradient_clipping": recipe.optimizer.grad_clip,
        "zero_optimization": zero,
        "steps_per_print": 2**31,  # metrics.py reports
        "checkpoint": {"load_universal": load_universal},
    }
    if model_dtype(recipe.model, device) == torch.bfloat16:
        # Gradients of many packs are added up: in bfloat16 small ones would vanish beside the sum.
        dtype = dtype_of_sums(recipe, settings.stage, adds_up=config["gradient_accumulation_steps"] > 1)
        wide = dtype == "float32" and not _uses_gradient_sum(recipe)
        config |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32" if wide else "bf16"}}
    return _merged(config, settings.config)


def _uses_gradient_sum(recipe: Recipe) -> bool:
    """Whether GradientSum adds up gradients; DeepSpeed does it in the other stages, and where it copies them to the
    CPU.
    """
    settings = recipe.deepspeed
    return settings.stage == 1 and not settings.offload_optimizer and recipe.train.gradient_dtype == "float32"


def _num_backwards(recipe: Recipe, num_ranks: int) -> int:
    """Micro-batches that each rank works on in a step."""
    return num_micro_batches(recipe.train.bins_per_step, num_ranks) // (recipe.train.packs_per_micro_batch or 1)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def start_engine(model: PackedCausalLM, recipe: Recipe, ranks: Ranks, *, load_universal: bool = False) -> Any:
    """The DeepSpeed engine with AdamW. The learning rate is set by the training loop before every update."""
    import deepspeed

    num_backwards = _num_backwards(recipe, ranks.num_ranks)
    is_narrow = model_dtype(recipe.model, ranks.device) == torch.bfloat16
    if is_narrow and _uses_gradient_sum(recipe) and num_backwards > 1:
        GradientSum(model.parameters(), num_backwards=num_backwards)
    layers = decoder_layers(model.causal_lm)
    # gather a layer's weights at once, outside of compiled code
    if recipe.deepspeed.stage == 3 and recipe.model.compile:
        deepspeed.utils.set_z3_leaf_modules(model, [type(layers[0])])
    layer_elements = max(sum(parameter.numel() for parameter in layer.parameters()) for layer in layers)
    config = deepspeed_config(
        recipe,
        num_ranks=ranks.num_ranks,
        device=ranks.device,
        layer_elements=layer_elements,
        load_universal=load_universal,
    )
    engine, *_ = deepspeed.initialize(model=model, optimizer=_optimizer(model, recipe, ranks.device), config=config)
    if recipe.deepspeed.stage == 3:
        engine.module.register_for_zero_3()
    return engine


def stop_ranks() -> None:
    """Leave the process group; without it NCCL warns of leaked resources at exit."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def update(engine: Any) -> float:
    """Take the optimizer step at the end of gradient accumulation; returns the gradient norm before clipping.

    A gradient that is not finite updates nothing, on any rank: the result is not finite then, and only then.
    """
    if engine.zero_optimization() or engine.bfloat16_enabled():
        engine.step()  # DeepSpeed leaves the update out if the norm is not finite
        return float(engine.get_global_grad_norm()) if engine.was_step_applied() else math.inf
    # plain float32 without ZeRO: gradients are averaged over ranks already, and in `grad`
    gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients))
    if math.isfinite(norm):
        engine.step()
        return norm
    for gradient in gradients:
        gradient.zero_()
    engine.optimizer.step = lambda: None  # AdamW would decay the weights even so; DeepSpeed must count the step
    engine.step()
    del engine.optimizer.step
    return math.inf


def _optimizer(model: torch.nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    settings = recipe.optimizer
    arguments: dict[str, Any] = {
        "lr": 0.0,
        "betas": tuple(settings.betas),
        "eps": settings.eps,
        "weight_decay": settings.weight_decay,
    }
    if recipe.deepspeed.offload_optimizer:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        optimizer: torch.optim.Optimizer = DeepSpeedCPUAdam(model.parameters(), adamw_mode=True, **arguments)
        return optimizer
    parameters = list(model.parameters())
    groups = parameter_groups(parameters) if recipe.deepspeed.stage in (1, 2) else [parameters]
    return torch.optim.AdamW([{"params": group} for group in groups], fused=device.type == "cuda", **arguments)


def parameter_groups(parameters: list[torch.nn.Parameter]) -> list[list[torch.nn.Parameter]]:
    """Parameters in order, cut where a group would grow too large: DeepSpeed makes a float32 copy of a group's
    gradients.
    """
    groups: list[list[torch.nn.Parameter]] = [[]]
    size = 0
    for parameter in parameters:
        if groups[-1] and size + parameter.numel() > GROUP_ELEMENTS:
            groups.append([])
            size = 0
        groups[-1].append(parameter)
        size += parameter.numel()
    return groups
