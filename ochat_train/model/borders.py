"""Keeps conversations apart in layers that mix tokens without attention: state spaces, linear attention, convolutions.

Such a module (a *sequence mixer*) carries a state from token to token, so in a pack it would carry one conversation
into the next. Two ways keep them apart, and both give what each conversation gives alone:

- `kernel`: the module runs once on the whole pack, and its kernels get the borders: `seq_idx` (int32[1, T], the number
  of each token's sequence) and `cu_seq_lens_q` (int64[S + 1]), the names of `transformers`. This needs packages for a
  GPU, so it is tried on the module itself before it is used (`kernels_obstacle`).
- `alone`: the module runs once for each sequence. Exact for every module, on every device, but slower.

Shape letters: T tokens of a pack, S sequences, D hidden size.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, Literal

import torch

from data_pipeline.errors import UserError
from ochat_train.system.requirements import installed_version

Way = Literal["kernel", "alone"]

# Mixers that own no convolution, by the end of their class name. All others are found by their convolution.
_NAMED_MIXERS = ("LightningAttention",)
_ATTENTION_KEYWORDS = ("cu_seqlens", "max_seqlen")  # of our attention function, not of mixers
_BORDER_NAMES = ("seq_idx", "cu_seq_lens_q")
_PACKAGES = ("flash-linear-attention", "causal-conv1d", "mamba-ssm")  # with kernels of mixers
_TRIAL_LENGTHS = (70, 300, 33, 129, 1)  # tokens; around what kernels work on at once: 64, or 256 (Mamba-2)
_TOLERANCES = {torch.float32: 1e-2, torch.bfloat16: 5e-2}  # of the largest number; kernels may multiply in TF32


@dataclass
class Borders:
    """Where the sequences of the micro-batch begin and end that is computed now. One object for all mixers of a model.

    Layers that are recomputed in the backward pass read it again: `restore_in_backward` sees to it that they find the
    borders of the forward pass that they belong to.
    """

    lengths: tuple[int, ...] = ()
    """Tokens of each sequence that has any, those of padding included; their sum is T."""

    keywords: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """The same as keyword arguments for kernels."""

    def set(self, cu_seqlens_S1: torch.Tensor) -> None:
        """Take the borders of a batch (`PackedBatch.cu_seqlens_S1`). Waits for the GPU, once for all layers."""
        ends = cu_seqlens_S1.tolist()
        self.lengths = tuple(end - start for start, end in pairwise(ends) if end > start)
        self.keywords = border_keywords(self.lengths, cu_seqlens_S1.device)

    def restore_in_backward(self, hidden_1TD: torch.Tensor) -> None:
        """Have these borders set again when the gradient of the last layer's output arrives, before any layer's."""
        if hidden_1TD.requires_grad:
            hidden_1TD.register_hook(partial(self._restore, self.lengths, self.keywords))

    def _restore(self, lengths: tuple[int, ...], keywords: Mapping[str, torch.Tensor], _: torch.Tensor) -> None:
        self.lengths, self.keywords = lengths, keywords


@dataclass(frozen=True, kw_only=True)
class Mixers:
    """The sequence mixers of a model and how they keep conversations apart. ways: by class name; never empty.

    borders: to be set before every forward pass.
    """

    borders: Borders
    ways: Mapping[str, Way]
    obstacles: Mapping[str, str]
    """By class name, why its kernels cannot be used, for those that run on each sequence alone."""

    def text(self) -> str:
        """For a person at start-up, one line."""
        alone = [name for name, way in self.ways.items() if way == "alone"]
        if not alone:
            return f"{', '.join(self.ways)}: borders of conversations are kept by their kernels"
        reasons = "; ".join(dict.fromkeys(self.obstacles[name] for name in alone))
        return f"{', '.join(alone)}: each conversation is computed alone, which is right but slow: {reasons}"


def border_keywords(lengths: Sequence[int], device: torch.device) -> dict[str, torch.Tensor]:
    """The borders as `transformers` passes them to kernels: `seq_idx` int32[1, T], `cu_seq_lens_q` int64[S + 1]."""
    sizes = torch.tensor(lengths, dtype=torch.int64)
    numbers = torch.arange(len(lengths), dtype=torch.int32).repeat_interleave(sizes)[None]
    ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int64)
    return {"seq_idx": numbers.to(device), "cu_seq_lens_q": ends.to(device)}


def sequence_mixers(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Modules of a `transformers` model that mix tokens without attention: those that own a convolution over tokens,
    and those with a name that says so.
    """
    for module in model.modules():
        convolutions = (child for child in module.children() if isinstance(child, torch.nn.Conv1d))
        owns = any(child.kernel_size[0] > 1 for child in convolutions)
        if owns or type(module).__name__.endswith(_NAMED_MIXERS):
            yield module


def device_to_run_on(model: torch.nn.Module, gpu: torch.device) -> torch.device:
    """Where a small run happens that any device could do: `gpu` for a model with sequence mixers, otherwise the CPU.

    Where a package with kernels of mixers is installed, `transformers` calls them on every device, and on the CPU they
    raise. gpu: where there is one, else the CPU.
    """
    has_mixers = next(sequence_mixers(model), None) is not None
    return gpu if has_mixers else torch.device("cpu")


def keep_apart(causal_lm: Any, *, device: torch.device) -> Mixers | None:
    """Make every sequence mixer of a model keep conversations apart, in place. None for a model without mixers.

    device: where the model will run, which decides whether kernels can do it. Mixers keep their parameters' names.
    """
    mixers = list(sequence_mixers(causal_lm))
    if not mixers:
        return None
    hidden_size = causal_lm.get_input_embeddings().weight.shape[1]
    borders = Borders()
    ways: dict[str, Way] = {}
    obstacles: dict[str, str] = {}
    for mixer in mixers:
        name = type(mixer).__name__
        if name not in ways:
            obstacle = kernels_obstacle(mixer, hidden_size=hidden_size, device=device)
            ways[name] = "kernel" if obstacle is None else "alone"
            obstacles |= {} if obstacle is None else {name: obstacle}
        run = _with_kernels if ways[name] == "kernel" else _each_alone
        mixer.forward = partial(run, type(mixer).forward, mixer, borders)
    return Mixers(borders=borders, ways=ways, obstacles=obstacles)


@contextmanager
def one_sequence(model: torch.nn.Module, num_tokens: int) -> Iterator[None]:
    """Inside, a model runs on one sequence of so many tokens, whether its mixers were made to keep conversations apart
    or not yet. For a look at the model on any device, the meta device too.
    """
    changed = [(mixer, mixer.__dict__.get("forward")) for mixer in sequence_mixers(model)]
    borders = Borders(lengths=(num_tokens,))
    try:
        for mixer, _ in changed:
            mixer.forward = partial(_each_alone, type(mixer).forward, mixer, borders)
        yield
    finally:
        for mixer, forward in changed:
            del mixer.forward
            if forward is not None:
                mixer.forward = forward


def _with_kernels(
    forward: Callable[..., Any], mixer: torch.nn.Module, borders: Borders, *args: Any, **kwargs: Any
) -> Any:
    taken = {name: borders.keywords[name] for name in border_names(mixer)}
    return forward(mixer, *args, **_without_attention_keywords(kwargs), **taken)


def _each_alone(
    forward: Callable[..., Any], mixer: torch.nn.Module, borders: Borders, *args: Any, **kwargs: Any
) -> Any:
    """The mixer on each sequence by itself, and the results one after the other again."""
    lengths = borders.lengths
    parts = [_parts(value, lengths) for value in args]
    named = {name: _parts(value, lengths) for name, value in _without_attention_keywords(kwargs).items()}
    results = [
        forward(mixer, *(part[number] for part in parts), **{name: part[number] for name, part in named.items()})
        for number in range(len(lengths))
    ]
    if isinstance(results[0], torch.Tensor):
        return torch.cat(results, dim=1)
    # what comes after the output is a state for the next token, which nobody asks for in training
    return torch.cat([result[0] for result in results], dim=1), *(None for _ in results[0][1:])


def _without_attention_keywords(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What the model passes, without borders in any form: they come from `Borders`."""
    return {name: value for name, value in kwargs.items() if name not in (*_ATTENTION_KEYWORDS, *_BORDER_NAMES)}


def _parts(value: Any, lengths: Sequence[int]) -> list[Any]:
    """An argument for each sequence: cut along its tokens if it has them, the same for all if not."""
    if isinstance(value, tuple):
        return list(zip(*(_parts(item, lengths) for item in value), strict=True)) if value else [value] * len(lengths)
    num_tokens = sum(lengths)
    if isinstance(value, torch.Tensor) and value.dim() >= 2:
        if value.shape[:2] == (1, num_tokens):
            return list(value.split(list(lengths), dim=1))
        if num_tokens in value.shape:
            shape = tuple(value.shape)
            raise UserError(
                "model",
                f"a layer that mixes tokens without attention gets an argument of shape {shape} for a pack of "
                f"{num_tokens} tokens, which cannot be cut at the borders of conversations",
                "use another base",
            )
    return [value] * len(lengths)


def border_names(mixer: torch.nn.Module) -> list[str]:
    """The names under which a mixer's forward takes borders: `seq_idx`, `cu_seq_lens_q`, both or none."""
    parameters = inspect.signature(type(mixer).forward).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return [name for name in _BORDER_NAMES if takes_any or name in parameters]


def kernels_obstacle(mixer: torch.nn.Module, *, hidden_size: int, device: torch.device) -> str | None:
    """Why a mixer's kernels cannot be given the borders on this device; None where they keep sequences apart, as just
    tried on a copy of the mixer.
    """
    if device.type != "cuda":
        return f"kernels that take borders need a GPU, and packages such as {_PACKAGES[0]}"
    missing = [package for package in _PACKAGES if installed_version(package) is None]
    hint = f" (not installed: {', '.join(missing)})" if missing else ""
    if not border_names(mixer):
        return f"`transformers` {installed_version('transformers')} gives its kernels no borders"
    try:
        problem = trial(copy.deepcopy(mixer).to(device).train(), hidden_size=hidden_size)
    except Exception as error:  # a package that is missing, or that has no such kernel
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
    return None if problem is None else f"{problem}{hint}"


def trial(mixer: torch.nn.Module, *, hidden_size: int) -> str | None:
    """What is wrong with a mixer's results when it gets the borders of a pack of random sequences; None if nothing.

    Outputs, and gradients of the input, must be those of each sequence alone, up to rounding. And not one bit of a
    sequence's output or gradient may depend on another sequence.
    """
    parameter = next(mixer.parameters())
    random = torch.Generator(parameter.device).manual_seed(0)

    def sequences() -> list[torch.Tensor]:
        shapes = [(1, length, hidden_size) for length in _TRIAL_LENGTHS]
        return [torch.randn(*s, generator=random, device=parameter.device, dtype=parameter.dtype) for s in shapes]

    inputs, upstream = sequences(), sequences()
    keywords = border_keywords(_TRIAL_LENGTHS, parameter.device)
    keywords = {name: keywords[name] for name in border_names(mixer)}

    def packed(inputs: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        hidden_1TD = torch.cat(inputs, dim=1).requires_grad_()
        return hidden_1TD, list(_output(mixer(hidden_1TD, **keywords)).split(_TRIAL_LENGTHS, dim=1))

    hidden_1TD, outputs = packed(inputs)
    other = packed([sequences()[0], *inputs[1:]])[1]
    if not all(torch.equal(*pair) for pair in zip(outputs[1:], other[1:], strict=True)):
        return "its kernels carry one conversation into the next"
    slices = [slice(end - length, end) for end, length in zip(accumulate(_TRIAL_LENGTHS), _TRIAL_LENGTHS, strict=True)]
    for number, (input_1LD, gradient_1LD) in enumerate(zip(inputs, upstream, strict=True)):
        (found,) = torch.autograd.grad(outputs[number], hidden_1TD, gradient_1LD, retain_graph=True)
        own = found[:, slices[number]]
        if torch.count_nonzero(found) != torch.count_nonzero(own):
            return "gradients of its kernels reach from one conversation into another"
        alone = input_1LD.clone().requires_grad_()
        output = _output(mixer(alone))
        (expected,) = torch.autograd.grad(output, alone, gradient_1LD)
        if _differ(outputs[number], output) or _differ(own, expected):
            return "its kernels compute something else with borders than for each conversation alone"
    return None


def _output(result: Any) -> torch.Tensor:
    output: torch.Tensor = result if isinstance(result, torch.Tensor) else result[0]
    return output


def _differ(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two tensors differ by more than rounding; numbers that are not finite differ from all others."""
    error = (found.float() - expected.float()).abs().max()
    return not bool(error <= _TOLERANCES[found.dtype] * expected.float().abs().max())
