"""What is known of a base before its weights are loaded: that packs of it are computed rightly, and by which kernel."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from data_pipeline.json_files import typed
from ochat_train.model.attention.choose import choose_attention, missing_packages
from ochat_train.model.attention.needs import AttentionNeeds, attention_needs
from ochat_train.model.base_class import import_model_class
from ochat_train.model.borders import device_to_run_on
from ochat_train.model.config import check_config, check_precision, model_dtype
from ochat_train.model.proof.errors import explained
from ochat_train.model.proof.prove import Errors, prove, ways_of
from ochat_train.model.proof.remembered import key_of, recall, remember
from ochat_train.model.proof.small_config import small_base
from ochat_train.model.proof.stopwatch import Stopwatch, device_made_ready, parts_text
from ochat_train.model.structure import check_head
from ochat_train.recipe.sections.model import ModelSettings
from ochat_train.system.messages import log_notice, print_notice

_LONG = 1.0  # seconds that are worth a word; every run waits for these parts, whether its base is tested or not
_SAID_AFTER = 15.0  # seconds of a test; most are shorter


@dataclass(frozen=True, kw_only=True)
class ProvenBase:
    """A base whose packs are computed rightly, as `prove` says.

    kernel: of attention, to be used on the device it was proven for. needs: of its attention. num_layers, num_kinds:
    of the copy that was tested. seconds: that it took when it was tested. parts: of these seconds, as
    `stopwatch.Part` says.
    """

    kernel: str
    needs: AttentionNeeds
    num_layers: int
    num_kinds: int
    errors: Errors
    seconds: float
    parts: Mapping[str, float]
    is_remembered: bool

    def text(self) -> str:
        """For a person, one line."""
        errors = self.errors
        half = "" if errors.half is None else f", attention of {self.kernel} within {errors.half:.0e}"
        kinds = f"{self.num_layers} layers of {self.num_kinds} kind{'s' if self.num_kinds > 1 else ''}"
        when = f"tested {'before, ' if self.is_remembered else ''}in {self.seconds:.1f} s"
        waits = {
            "imports": "to load the code of transformers",
            "kernel_first_calls": f"for the first calls of {self.kernel}",
        }
        long = [f"{self.parts[part]:.1f} s {what}" for part, what in waits.items() if self.parts.get(part, 0) >= _LONG]
        when += f", of which {' and '.join(long)}" if long else ""
        return (
            f"packs are computed as each conversation alone: hidden states within {errors.hidden:.0e}{half}, gradients "
            f"{errors.gradient:.0e}, loss {errors.loss:.0e} ({kinds}, {when})"
        )


def prove_base(config: Any, settings: ModelSettings, *, device: torch.device) -> ProvenBase:
    """Choose the attention kernel of a base and prove that packs of it are computed rightly; remembered if they are.

    config: of `transformers`, of the whole base. device: of the run.
    Raises UserError for a base that would be trained wrongly, one that cannot be tested, one that is made for shorter
    texts than the recipe wants, a kernel that cannot run, and a GPU without the precision of the run.
    """
    config = _without_quantisation(config)
    check_config(config, settings)
    check_precision(settings, device)
    dtype = model_dtype(settings, device)
    facts = {
        "attention": settings.attention,
        "dtype": str(dtype),
        "max_length_tokens": settings.max_length_tokens,
        "ways": ways_of(settings.activation_checkpointing),
        "missing": missing_packages(),
    }
    key = key_of(config, device=device, facts=facts)
    if (known := _from_record(recall(key))) is not None:
        return known
    with _one_thread(device), _said_if_long():
        found = _prove(config, settings, device=device, dtype=dtype)
    log_notice(f"the test of the base took {found.seconds:.1f} s: {parts_text(found.parts)}")
    remember(key, _record(found))
    return found


def _without_quantisation(config: Any) -> Any:
    """The configuration of the same base in 16 bits, which is what can be proven of one that is stored quantised."""
    if getattr(config, "quantization_config", None) is None:
        return config
    config = copy.deepcopy(config)
    del config.quantization_config
    return config


@contextlib.contextmanager
def _said_if_long() -> Iterator[None]:
    """Tell whoever waits what for: on a GPU the kernels of a hybrid are compiled and tuned for minutes."""
    text = "the base is still being tested (on a GPU its kernels are compiled for it); the result is kept"
    timer = threading.Timer(_SAID_AFTER, print_notice, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """Small models on the CPU of a GPU's host: threads would only wait for each other, for seconds in all.

    A run on the CPU keeps its threads. Once their number was set, MKL no longer chooses how many it uses, so the run
    would round otherwise than one for which the proof is remembered.
    """
    num_threads = torch.get_num_threads()
    if device.type == "cpu" or num_threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _prove(config: Any, settings: ModelSettings, *, device: torch.device, dtype: torch.dtype) -> ProvenBase:
    watch = Stopwatch()
    with device_made_ready(device) as wait_for_device:
        with explained(config, "cannot be built"), watch.part("imports"):
            import_model_class(config)
        with explained(config, "cannot be built"), watch.part("small_copy"):
            small = small_base(config, max_length_tokens=settings.max_length_tokens, device=device)
            causal_lm = small.model_in_training()
        check_head(causal_lm)
        with explained(config, "cannot be computed on packs"), watch.part("needs"):
            needs = attention_needs(causal_lm.to(device_to_run_on(causal_lm, device)))
        with watch.part("device"):
            wait_for_device()
    kernel = choose_attention(settings.attention, device=device, dtype=dtype, needs=needs)
    ways = ways_of(settings.activation_checkpointing)
    errors = prove(config, small, kernel=kernel, device=device, dtype=dtype, ways=ways, watch=watch)
    return ProvenBase(
        kernel=kernel,
        needs=needs,
        num_layers=small.num_layers,
        num_kinds=small.num_kinds,
        errors=errors,
        seconds=watch.seconds,
        parts=watch.parts,
        is_remembered=False,
    )


def _record(found: ProvenBase) -> dict[str, Any]:
    """As it is remembered: plain values."""
    values = asdict(found)
    values["needs"]["head_dims"] = sorted(found.needs.head_dims)
    return values


def _from_record(record: Mapping[str, Any] | None) -> ProvenBase | None:
    """What was remembered, None for nothing or anything else."""
    with contextlib.suppress(ValueError):
        return None if record is None else typed(ProvenBase, {**record, "is_remembered": True})
    return None
