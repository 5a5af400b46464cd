"""The proof of a base: before it is trained, a small copy of it shows that packs are computed rightly.

The copy has every kind of layer, real head dimensions and random weights. On the device and with the kernel of the run
it computes packs as training does, and each conversation alone as `transformers` does with its own eager attention:

- hidden states and the gradient of every parameter are the same, up to rounding;
- a token that changes in one conversation moves no bit of another one's hidden states or gradients;
- the same parameters get a gradient;
- the loss and the scores from hidden states are those of the model's own logits.

A base for which this does not hold is refused, whatever its name. So is one that cannot be tested.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

import torch

from data_pipeline.errors import UserError
from ochat_train.model.attention.kernels import KERNELS
from ochat_train.model.attention.register import register_attention
from ochat_train.model.base_class import is_wrapper, new_model, text_config
from ochat_train.model.layers import set_layer_forward
from ochat_train.model.packed import PackedCausalLM
from ochat_train.model.proof.errors import REMEDY, explained
from ochat_train.model.proof.half import Recorder, call_errors, call_faults
from ochat_train.model.proof.measure import Computed, alone, differences, on_packs
from ochat_train.model.proof.packs import CHANGED, NUM_CLASSES, places, random_conversations
from ochat_train.model.proof.random_weights import GAINS, set_random_weights
from ochat_train.model.proof.small_config import LENGTHS, SmallBase
from ochat_train.model.proof.stopwatch import Stopwatch
from ochat_train.model.proof.tolerances import faults, tolerances
from ochat_train.model.structure import decoder_layers
from ochat_train.system.messages import print_notice

_ALL_WAYS = ("full", "matmuls", "none")  # of running a layer: what `auto` chooses from
_SEEDS = (0, 1)  # a near-tie between two experts may fall either way once; a fault is there for both
_ALONE = "each conversation alone with `transformers`' own attention"


@dataclass(frozen=True, kw_only=True)
class Errors:
    """What was measured, as in `measure.Differences`. half: the output of a kernel that takes bfloat16 only, against
    float32; None where the kernel takes float32.
    """

    hidden: float
    gradient: float
    loss: float
    leak: float
    half: float | None = None


def ways_of(checkpointing: object) -> tuple[str, ...]:
    """The ways of running a layer that training may choose with this `model.activation_checkpointing`."""
    return (checkpointing,) if checkpointing in ("full", "matmuls", "none") else _ALL_WAYS


def prove(
    config: Any,
    small: SmallBase,
    *,
    kernel: str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    ways: Sequence[str] = _ALL_WAYS,
    watch: Stopwatch | None = None,
) -> Errors:
    """Test a small copy of a base. Raises UserError for one that is computed wrongly, or that cannot be tested.

    config: of the whole base, for messages. kernel: of attention, the one that the run will call on `device` with
    tensors of `dtype`. ways: in which layers are run, in turn; see `ways_of`. watch: of the parts of this.
    """
    watch = Stopwatch() if watch is None else watch
    exact_kernel = kernel if _is_exact(kernel, dtype) else "sdpa"
    first: str | None = None
    for seed in _SEEDS:
        with explained(config, "cannot be computed on packs"), _exactly(device):
            errors, wrong = _tested(small, kernel, exact_kernel, device=device, seed=seed, ways=ways, watch=watch)
        if not wrong:
            return errors
        first = first or wrong[0]
    text, remedy = f"{config.model_type} would be trained wrongly: {first}", REMEDY
    if "matmuls" in ways and len(ways) > 1:
        with explained(config, "cannot be computed on packs"), _exactly(device):
            others = ("full", "none")
            _, wrong = _tested(small, kernel, exact_kernel, device=device, seed=_SEEDS[0], ways=others, watch=watch)
        if not wrong:  # a layer changes the result of a product in place
            text = f"{text}; it is right where no layer is run as `matmuls`"
            remedy = "set model.activation_checkpointing to `full` or `none`"
    raise UserError("model", text, remedy)


def _is_exact(kernel: str, dtype: torch.dtype) -> bool:
    """Whether the kernel itself is tested in float32. One that is compiled for each dtype is tested in the run's: for
    float32 Triton compiles `flex` for minutes.
    """
    takes_float32 = KERNELS[kernel].dtypes is None
    return takes_float32 and (dtype == torch.float32 or kernel == "sdpa")


def _tested(
    small: SmallBase,
    kernel: str,
    exact_kernel: str,
    *,
    device: torch.device,
    seed: int,
    ways: Sequence[str],
    watch: Stopwatch,
) -> tuple[Errors, list[str]]:
    """What was measured with weights and conversations of a seed, and what of it is wrong."""
    trial = _Trial(small.config, device=device, seed=seed, ways=ways, watch=watch)
    asked = None if kernel == exact_kernel else Recorder(KERNELS[exact_kernel].run)
    packs, changed = trial.packs(exact_kernel, asked)
    with watch.part("comparison"):
        found = differences(packs, trial.reference, changed)
    errors = Errors(hidden=found.hidden, gradient=found.gradient, loss=found.loss, leak=found.leak)
    most = tolerances(has_experts=trial.has_experts, has_mixer_kernels=trial.has_mixer_kernels, device=device)
    wrong = faults(found, most, reference=_ALONE)
    if wrong or asked is None:
        return errors, wrong
    if asked.calls and KERNELS[kernel].first_call:
        print_notice(f"{KERNELS[kernel].first_call}; the result of this test is remembered")
    half = [
        call_errors(call, KERNELS[kernel].run, KERNELS["sdpa"].run, changed=places()[CHANGED], watch=watch)
        for call in asked.calls.values()
    ]
    return replace(errors, half=max((call.output for call in half), default=0.0)), call_faults(half, kernel)


class _Trial:
    """A small model with random weights on a device, and what it gives for each conversation alone."""

    def __init__(self, config: Any, *, device: torch.device, seed: int, ways: Sequence[str], watch: Stopwatch) -> None:
        self._config, self._device, self._seed, self._ways, self._watch = config, device, seed, ways, watch
        # without the last id, to which the small copy moves those that stand for an image
        vocab_size = text_config(config).vocab_size - is_wrapper(config)
        self._conversations = random_conversations(vocab_size, seed=seed)
        self._changed = self._conversations.with_changed_token(vocab_size)
        for gain in GAINS:
            self._gain = gain
            with watch.part("alone"):
                causal_lm = self._causal_lm("eager").eval()  # as people run it; training computes the same but noise
                self.reference = alone(causal_lm, self._conversations, device)
                is_finite = all(bool(torch.isfinite(hidden).all()) for hidden in self.reference.hidden)
            if is_finite:
                break
        self.has_mixer_kernels = False
        self.has_experts = any("expert" in name for name, _ in causal_lm.named_modules())

    def _causal_lm(self, attention: str) -> Any:
        config = type(self._config).from_dict(self._config.to_dict())  # `transformers` writes into it
        torch.manual_seed(self._seed)  # some vectors keep what `transformers` draws
        causal_lm = new_model(config, dtype=torch.float32, attn_implementation=attention)
        set_random_weights(causal_lm, gain=self._gain, seed=self._seed)
        return causal_lm.to(self._device).train()

    def packs(self, kernel: str, asked: Recorder | None) -> tuple[Computed, Computed]:
        """What packs give as training computes them, and again with a changed token.

        asked: calls the kernel and notes what the layers ask of it; None to note nothing.
        """
        attention = register_attention(kernel, run=asked)
        with self._watch.part("packs"):
            causal_lm = self._causal_lm(attention)
        with self._watch.part("mixers"):
            model = PackedCausalLM(
                causal_lm, num_classes=NUM_CLASSES, max_length_tokens=max(LENGTHS), device=self._device
            )
        self.has_mixer_kernels = model.mixers is not None and "kernel" in model.mixers.ways.values()
        layers = decoder_layers(model.causal_lm)
        set_layer_forward(layers, checkpointing=list(islice(cycle(self._ways), len(layers))), compiled=False)
        with self._watch.part("packs"):
            found = on_packs(model, self._conversations, self._device)
            return found, on_packs(model, self._changed, self._device, for_borders=True)


@contextlib.contextmanager
def _exactly(device: torch.device) -> Iterator[None]:
    """Products in full float32, and the random numbers of the process as they were."""
    precision = torch.get_float32_matmul_precision()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(precision)
