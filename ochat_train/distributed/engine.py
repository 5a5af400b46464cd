"""What is used of DeepSpeed's engine, which wraps the model, its gradients and the optimizer on each rank."""

from __future__ import annotations

from typing import Any, Protocol

import torch


class TrainingEngine(Protocol):
    """One rank's share of the model in training; `training.engine.start_engine` makes it.

    module: the wrapped PackedCausalLM; in ZeRO-3 its parameters are empty outside forward and backward.
    optimizer: has the `param_groups` of torch's optimizers. training: whether dropout is on.
    checkpoint_engine: writes the files of `save_checkpoint`.
    """

    module: torch.nn.Module
    optimizer: Any
    training: bool
    checkpoint_engine: Any

    def __call__(self, batch: Any, *, score: bool = False) -> Any:
        """The module's forward pass: `PackedBatch` to `LossSums`, or to `TokenScores` where `score`."""

    def backward(self, loss: torch.Tensor, *, scale_wrt_gas: bool) -> Any:
        """Add the gradient of a float32 scalar to this rank's gradients; ranks are averaged over.

        scale_wrt_gas: divide by `gradient_accumulation_steps`; the training step divides by its own denominator.
        """

    def step(self) -> Any:
        """Count a micro-batch; after the last one of the step clip the gradient and update the parameters."""

    def gradient_accumulation_steps(self) -> int:
        """Micro-batches, and so calls of `backward`, in one optimizer step of each rank."""

    def zero_optimization(self) -> bool:
        """Whether the ZeRO stage is 1 or higher."""

    def zero_optimization_stage(self) -> int:
        """The ZeRO stage, 0 to 3."""

    def bfloat16_enabled(self) -> bool:
        """Whether the model is bfloat16, with float32 masters in the optimizer."""

    def get_global_grad_norm(self) -> Any:
        """2-norm of the last step's gradient over all parameters and ranks, before clipping."""

    def was_step_applied(self) -> bool:
        """Whether the last `step` updated the parameters: not where the gradient was not finite."""

    def train(self, mode: bool = True) -> Any:
        """Turn dropout on or off."""

    def eval(self) -> Any:
        """Turn dropout off."""

    def save_checkpoint(self, save_dir: str, *, tag: str, save_latest: bool) -> Any:
        """Write this rank's files into `save_dir/tag`. All ranks call it."""

    def load_checkpoint(self, load_dir: str, *, tag: str) -> tuple[str | None, Any]:
        """Read this rank's files from `load_dir/tag`; what was loaded, None where nothing was. All ranks call it."""
