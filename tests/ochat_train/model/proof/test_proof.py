"""A base is proven by a small copy of it, and every fault is found, by what it does and not by a name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from transformers.models.bamba.modeling_bamba import BambaRMSNormGated

from data_pipeline.errors import UserError
from ochat_train.model.attention.kernel import HALF_PRECISION
from ochat_train.model.attention.kernels import KERNELS
from ochat_train.model.loss import LogitTransform
from ochat_train.model.packed import LossHead
from ochat_train.model.proof.prove import Errors, prove
from ochat_train.model.proof.small_config import SmallBase, small_base
from ochat_train.model.proof.tolerances import TENSOR_FLOAT32
from tests.support.base_configs import base_config, broken_kernel
from tests.support.hybrids import hybrid_config

CPU = torch.device("cpu")
LENGTH = 128  # max_length_tokens: longer than windows


@cache
def small(base: str) -> tuple[Any, SmallBase]:
    config = BASES[base]()
    return config, small_base(config, max_length_tokens=LENGTH, device=CPU)


def proof(base: str, kernel: str = "sdpa") -> Errors:
    config, found = small(base)
    return prove(config, found, kernel=kernel, device=CPU)


def gpt_oss() -> Any:
    return base_config("gpt_oss", num_local_experts=4, num_experts_per_tok=2, sliding_window=16)


BASES: dict[str, Callable[[], Any]] = {
    "plain": lambda: base_config("mistral"),
    "later tokens": lambda: base_config("gemma3_text", use_bidirectional_attention=True, sliding_window=16),
    "windows": lambda: base_config("mistral", sliding_window=16),
    "sinks and experts": gpt_oss,
    "soft caps": lambda: base_config("gemma2", sliding_window=16),
    "a head with a bias": lambda: base_config("phi"),
    "groups of channels": lambda: transformers.AutoConfig.for_model(**hybrid_config("bamba", vocab_size=300)),
    "longrope": lambda: base_config(
        "phi3",
        head_dim=8,
        pad_token_id=0,
        original_max_position_embeddings=64,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [4.0] * 4,
            "original_max_position_embeddings": 64,
        },
    ),
}


@pytest.mark.parametrize("name", sorted(BASES.keys() - {"later tokens", "groups of channels"}))
def test_bases_with_something_special_are_right(name: str) -> None:
    errors = proof(name)
    assert max(errors.hidden, errors.gradient, errors.loss) < 2e-5
    assert errors.half is None


FAULTS: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    # name: the base, the keyword of the kernel with its wrong value, and what is said
    "sinks left out": ("sinks and experts", lambda sinks_H: None, "hidden states on packs differ by"),
    "soft cap left out": ("soft caps", lambda softcap: None, "hidden states on packs differ by"),
    "window ignored": ("windows", lambda window: None, "hidden states on packs differ by"),
    "a wrong scale": ("windows", lambda scale: scale * 1.05, "hidden states on packs differ by"),
    "a leak": ("windows", lambda cu_seqlens: cu_seqlens[[0, -1]], "moves others in its pack by"),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16 only"])
def test_a_fault_of_the_kernel_is_found(name: str, half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, the reference plays a kernel that takes bfloat16 only; without the fault, it is right."""
    base, wrong, text = FAULTS[name]
    [keyword] = wrong.__code__.co_varnames
    kernel = "varlen" if half else "sdpa"
    dtypes = HALF_PRECISION if half else None
    monkeypatch.setitem(KERNELS, kernel, replace(KERNELS["sdpa"], dtypes=dtypes))
    errors = proof(base, kernel)
    assert (errors.half is not None and 1e-4 < errors.half < 5e-3) if half else errors.half is None
    monkeypatch.setitem(KERNELS, kernel, replace(broken_kernel("sdpa", **{keyword: wrong}), dtypes=dtypes))
    with pytest.raises(UserError) as caught:
        proof(base, kernel)
    assert caught.value.place == "model"
    assert caught.value.problem.startswith(f"{small(base)[0].model_type} would be trained wrongly: ")
    said = (
        text
        if not half
        else "`varlen` lets conversations"
        if name == "a leak"
        else "gradients of `varlen`|`varlen` differs"
    )
    assert any(part in caught.value.problem for part in said.split("|"))
    assert caught.value.remedy == "use another base"


def test_a_parameter_without_gradient_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    sdpa = KERNELS["sdpa"]

    def run(query_THD: torch.Tensor, key_TGD: torch.Tensor, value_TGE: torch.Tensor, /, **keywords: Any) -> Any:
        return sdpa.run(query_THD.detach(), key_TGD, value_TGE, **keywords)

    monkeypatch.setitem(KERNELS, "sdpa", replace(sdpa, run=run))
    with pytest.raises(UserError, match=r"q_proj.weight.* gets a gradient on packs or from each conversation alone"):
        proof("windows")


@pytest.mark.parametrize("base", ["soft caps", "a head with a bias"])
def test_what_the_loss_leaves_out_is_found(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if base == "soft caps":
        monkeypatch.setattr("ochat_train.model.packed.logit_transform", lambda config: LogitTransform())
    else:
        monkeypatch.setattr(LossHead, "head_bias", None)
    with pytest.raises(UserError, match=r"trained wrongly: .*(gradient|loss from hidden states)"):
        proof(base)


def test_attention_to_later_tokens_is_found() -> None:
    with pytest.raises(UserError, match="gemma3_text would be trained wrongly: hidden states"):
        proof("later tokens")


def test_training_that_computes_something_else_than_answers_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers 5.17 did with the kernels of Mamba-2: a norm over groups in training, over all without."""
    forward = BambaRMSNormGated.forward
    if "group_size" not in inspect.getsource(BambaRMSNormGated):
        pytest.skip("this transformers has no groups in that norm")

    def by_mode(self: Any, *args: Any) -> torch.Tensor:
        with monkeypatch.context() as patch:
            if not self.training:
                patch.setattr(self, "group_size", 2 * self.group_size)
            return forward(self, *args)

    config, found = small("groups of channels")
    assert prove(config, found, kernel="sdpa", device=CPU).hidden < 2e-5
    monkeypatch.setattr(BambaRMSNormGated, "forward", by_mode)
    with pytest.raises(UserError, match="bamba would be trained wrongly: hidden states on packs differ by") as caught:
        prove(config, found, kernel="sdpa", device=CPU)
    assert float(re.findall(r"differ by (\S+) ", caught.value.problem)[0]) > 2 * TENSOR_FLOAT32.hidden


def test_longrope_by_the_length_of_a_pack_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ochat_train.model.packed.choose_frequencies_per_conversation", lambda *_, **__: None)
    with pytest.raises(UserError, match="phi3 would be trained wrongly: hidden states"):
        proof("longrope")


def test_errors_inside_of_transformers_name_base_reason_and_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ValueError("`causal_conv1d_fn` can't keep packed sequences apart without `causal_conv1d`.")

    monkeypatch.setattr("transformers.models.mistral.modeling_mistral.MistralModel.forward", fail)
    with pytest.raises(UserError) as caught:
        proof("windows")
    assert caught.value.problem.startswith("mistral cannot be computed on packs: ValueError: `causal_conv1d_fn`")
    assert caught.value.remedy == "install causal-conv1d, or use another base"


def test_random_numbers_of_the_process_stay_as_they_were() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    proof("plain")
    assert torch.equal(torch.random.get_rng_state(), before)
