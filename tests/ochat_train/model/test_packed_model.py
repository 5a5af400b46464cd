"""The whole model on packs against each conversation alone in float64: loss, gradients, and no leak between
conversations.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from data_pipeline.errors import UserError
from ochat_train.model.attention.choose import choose_attention
from ochat_train.model.attention.kernels import KERNELS
from ochat_train.model.attention.needs import AttentionNeeds, attention_needs
from ochat_train.model.attention.register import register_attention
from ochat_train.model.batch import PackedBatch, PackShape, pack_batch
from ochat_train.model.layers import set_layer_forward
from ochat_train.model.packed import PackedCausalLM
from ochat_train.model.structure import decoder_layers
from ochat_train.model.weights.token_rows import add_token_rows
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import prepare_recipe
from tests.support.disturbed_runs import first_gradients
from tests.support.measured import Measured
from tests.support.reference import FakeSplit, as_float64, flat, random_conversations, reference_loss, relative_error
from tests.support.small_recipe import TINY_MODEL, RecipeFactory
from tests.support.tiny_model import VOCAB, gradients, tiny_model


def batches(split: Any, packs: list[list[int]], pack_length: int = 128) -> list[PackedBatch]:
    shape = PackShape(pack_length=pack_length, max_seqlen=pack_length, max_sequences=7)
    return [pack_batch(split, np.array(rows, dtype=np.int64), shape) for rows in packs]


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"sliding_window": 8}, {"model_type": "llama"}])
@pytest.mark.parametrize("weights", [(0.0, 0.1, 1.0), (0.0, 0.001, 100.0)])
def test_packed_gradients_equal_float64(
    changes: dict[str, Any], weights: tuple[float, ...], measured: Measured
) -> None:
    causal_lm = tiny_model(**changes)
    rows = random_conversations(np.random.default_rng(0), [40, 17, 2, 60, 128, 33], vocab_size=VOCAB, weights=weights)
    split = FakeSplit(rows, [0, 1, 0, 1, 0, 1])
    truth = as_float64(causal_lm)
    expected = reference_loss(truth, rows)
    expected.backward()
    model = PackedCausalLM(causal_lm, num_classes=2)
    losses = []
    for batch in batches(split, [[0, 1, 2, 3], [4], [5], []]):
        sums = model(batch)
        sums.weighted_nll.backward()
        losses.append(sums.weighted_nll.detach())
    measured(
        "loss of packs, float32, against float64 of each conversation alone",
        relative_error(torch.stack(losses).sum(), expected),
    )
    measured(
        "gradients of packs, float32, against float64 of each conversation alone",
        relative_error(gradients(causal_lm), gradients(truth)),
    )
    assert relative_error(torch.stack(losses).sum(), expected) < 1e-6
    assert relative_error(gradients(causal_lm), gradients(truth)) < 5e-6


def test_any_packing_gives_the_same_gradient() -> None:
    rows = random_conversations(np.random.default_rng(1), [30] * 8, vocab_size=VOCAB)
    split = FakeSplit(rows, [0] * 8)
    results = []
    for packs in ([[0, 1, 2, 3], [4, 5, 6, 7]], [[7, 2], [5], [0, 6, 1], [3, 4]], [[row] for row in range(8)]):
        causal_lm = tiny_model()
        model = PackedCausalLM(causal_lm, num_classes=1)
        for batch in batches(split, packs):
            model(batch).weighted_nll.backward()
        results.append(gradients(causal_lm))
    assert max(relative_error(result, results[0]) for result in results) < 1e-6


def test_control_one_long_row_leaks(measured: Measured) -> None:
    """Without the borders (one sequence over the whole pack) the second conversation sees the first."""
    rows = random_conversations(np.random.default_rng(3), [40, 50], vocab_size=VOCAB)
    split = FakeSplit(rows, [0, 0])
    batch = batches(split, [[0, 1]])[0]
    unbounded = PackedBatch(**{**vars(batch), "cu_seqlens_S1": torch.tensor([0, 128], dtype=torch.int32)})
    model = PackedCausalLM(tiny_model(), num_classes=1)
    leak = relative_error(model(unbounded).weighted_nll, model(batch).weighted_nll)
    measured("control: loss of packs without borders between conversations", leak)
    assert leak > 1e-5


def test_padding_and_weight_zero_have_no_gradient() -> None:
    rows = random_conversations(np.random.default_rng(4), [20], vocab_size=VOCAB, weights=(0.0,))
    causal_lm = tiny_model()
    sums = PackedCausalLM(causal_lm, num_classes=1)(batches(FakeSplit(rows, [0]), [[0]])[0])
    sums.weighted_nll.backward()
    assert torch.count_nonzero(gradients(causal_lm)) == 0


@pytest.mark.parametrize("tied", [True, False])
def test_added_tokens_get_the_mean_row(tied: bool) -> None:
    causal_lm = tiny_model(tie_word_embeddings=tied)
    before = [causal_lm.get_input_embeddings().weight.clone(), causal_lm.get_output_embeddings().weight.clone()]
    add_token_rows(causal_lm, vocab_size=VOCAB + 2)
    after = [causal_lm.get_input_embeddings().weight, causal_lm.get_output_embeddings().weight]
    assert (after[0] is after[1]) == tied
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new[:VOCAB], old)
        torch.testing.assert_close(new[VOCAB:], old.mean(0).expand(2, -1))
    assert causal_lm.config.vocab_size == VOCAB + 2


def test_targets_are_shifted_once_and_inside_conversations() -> None:
    rows = random_conversations(np.random.default_rng(5), [4, 3], vocab_size=VOCAB, weights=(1.0,))
    batch = batches(FakeSplit(rows, [0, 1]), [[0, 1]], pack_length=10)[0]
    first, second = (row.input_ids.tolist() for row in rows)
    assert batch.input_ids_T.tolist() == [*first, *second, 0, 0, 0]
    assert batch.target_ids_T.tolist() == [*first[1:], 0, *second[1:], 0, 0, 0, 0]
    assert batch.target_weights_T.tolist() == [1, 1, 1, 0, 1, 1, 0, 0, 0, 0]
    assert batch.position_ids_T.tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2]
    assert batch.cu_seqlens_S1.tolist() == [0, 4, 7, 10, 10, 10, 10, 10]
    assert batch.class_ids_T.tolist()[:7] == [0, 0, 0, 0, 1, 1, 1]
    assert batch.num_tokens == 7


def test_no_sequence_is_longer_than_the_bound_padding_included() -> None:
    """A bound of 128 for conversations of at most 40 tokens: padding is cut into sequences; loss and gradient stay."""
    rows = random_conversations(np.random.default_rng(6), [40, 17, 2], vocab_size=VOCAB)
    split = FakeSplit(rows, [0, 1, 0])
    tight = PackShape.holding(pack_length=320, longest=40, max_conversations=3)
    assert tight == PackShape(pack_length=320, max_seqlen=128, max_sequences=6)
    found = []
    for shape in (tight, PackShape(pack_length=320, max_seqlen=320, max_sequences=4)):
        packs = [pack_batch(split, np.array(numbers, dtype=np.int64), shape) for numbers in ([0, 1, 2], [])]
        assert all(batch.cu_seqlens_S1.diff().max() <= batch.max_seqlen for batch in packs)
        causal_lm = tiny_model()
        for batch in packs:
            PackedCausalLM(causal_lm, num_classes=2)(batch).weighted_nll.backward()
        found.append((packs, gradients(causal_lm)))
    (packs, gradient), (_, expected) = found
    assert packs[0].cu_seqlens_S1.tolist() == [0, 40, 57, 59, 187, 315, 320]
    assert packs[1].cu_seqlens_S1.tolist() == [0, 128, 256, 320, 320, 320, 320]
    assert torch.equal(gradient, expected)


# ---- bfloat16 on a GPU ----

GPU_MODEL = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "head_dim": 128,
}
COMPILABLE = sorted(name for name, kernel in KERNELS.items() if kernel.compilable)
GROUPS = ("embed_tokens", "q_proj", "k_proj", "v_proj", "o_proj", "mlp", "norm", "lm_head")


def gpu_model(attention: str, dtype: torch.dtype, **changes: Any) -> Any:
    """The same weights whatever the attention and dtype: rounded to bfloat16 first. Sinks are not zero."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        **{**TINY_MODEL, **GPU_MODEL, "max_position_embeddings": 4096, "vocab_size": 32_002, **changes}
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                parameter.normal_()
    return model.to("cuda", dtype).train()


def eager_packed_loss(causal_lm: Any, batch: PackedBatch) -> torch.Tensor:
    """What a user would write without this project: one row, a block mask, transformers' eager attention, plain
    autograd.
    """
    sequence = torch.searchsorted(
        batch.cu_seqlens_S1[1:].contiguous(), torch.arange(len(batch.input_ids_T), device="cuda"), right=True
    )
    visible = (sequence[:, None] == sequence[None, :]).tril()
    mask = torch.where(visible, 0.0, torch.finfo(torch.bfloat16).min).to(torch.bfloat16)[None, None]
    logits = causal_lm(batch.input_ids_T[None], attention_mask=mask, position_ids=batch.position_ids_T[None]).logits[0]
    nll = torch.nn.functional.cross_entropy(logits.float(), batch.target_ids_T, reduction="none")
    return (nll * batch.target_weights_T).sum()


def gradient_errors(model: Any, truth: Any) -> dict[str, float]:
    """Relative gradient error per parameter group."""
    errors = {}
    for group in GROUPS:
        found, expected = (
            torch.cat([p.grad.double().flatten() for name, p in causal_lm.named_parameters() if group in name])
            for causal_lm in (model, truth)
        )
        errors[group] = relative_error(found, expected)
    return errors


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "layers"),
    [(name, "unchanged") for name in sorted(KERNELS)]
    + [(name, kind) for name in COMPILABLE for kind in ("none", "matmuls", "full")],
)
def test_bfloat16_gradients_are_no_worse_than_eager(name: str, layers: str, measured: Measured) -> None:
    """Every parameter group, forward and backward, compiled with every checkpointing, against float64 of each
    conversation.
    """
    try:
        choose_attention(name, device=torch.device("cuda", 0), dtype=torch.bfloat16, needs=AttentionNeeds())
    except UserError as problem:
        pytest.skip(str(problem))
    rows = random_conversations(np.random.default_rng(0), [700, 17, 1, 300, 900], vocab_size=32_002)
    split = FakeSplit(rows, [0, 1, 0, 1, 0])
    shape = PackShape.holding(pack_length=2048, longest=900, max_conversations=5)
    batch = pack_batch(split, np.arange(5), shape).to(torch.device("cuda"))
    truth = gpu_model("eager", torch.float64)
    expected = reference_loss(truth, rows)
    expected.backward()
    eager = gpu_model("eager", torch.bfloat16)
    eager_loss = eager_packed_loss(eager, batch)
    eager_loss.backward()
    ours = gpu_model(register_attention(name), torch.bfloat16)
    if layers != "unchanged":
        set_layer_forward(ours.model.layers, checkpointing=[layers] * len(ours.model.layers), compiled=True)
    sums = PackedCausalLM(ours, num_classes=2)(batch)
    sums.weighted_nll.backward()
    kind = f"{name}, layers {layers}" if layers == "unchanged" else f"{name}, compiled, recompute {layers}"
    measured(f"bfloat16 model, loss, {kind}, against float64", relative_error(sums.weighted_nll, expected))
    measured("bfloat16 model, loss, plain eager, against float64", relative_error(eager_loss, expected))
    assert relative_error(sums.weighted_nll, expected) < 1e-4
    plain = gradient_errors(eager, truth)
    for group, error in gradient_errors(ours, truth).items():
        measured(f"bfloat16 model, gradient of {group}, {kind}, against float64", error)
        measured(f"bfloat16 model, gradient of {group}, plain eager, against float64", plain[group])
        assert error < plain[group] * 1.05, group


# Windows and pad tokens that change nothing here, so that one mask is right for all layers of the eager model.
WIDE: dict[str, Any] = {"sliding_window": 4096, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SPECIAL_MODELS: dict[str, dict[str, Any]] = {
    "soft caps": {"model_type": "gemma2", "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
    "sinks": {"model_type": "granite_swa", "logits_scaling": 2.0},
    "sinks, experts": {"model_type": "gpt_oss", "num_local_experts": 2, "num_experts_per_tok": 2, "head_dim": 64},
    "head with bias": {"model_type": "phi"},
}


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("special", "name", "compiled"),
    [(special, name, False) for special in SPECIAL_MODELS for name in sorted(KERNELS)]
    + [(special, name, True) for special in ("soft caps", "sinks") for name in COMPILABLE],
)
def test_special_models_in_bfloat16_are_no_worse_than_eager(
    special: str, name: str, compiled: bool, measured: Measured
) -> None:
    """Loss and all gradients, those of sinks and of the head's bias by themselves, against float64.

    All experts are used by every token, because bfloat16 would choose others than float64.
    """
    changes = {**WIDE, **SPECIAL_MODELS[special]}
    if changes["model_type"] not in transformers.CONFIG_MAPPING:
        pytest.skip("this transformers does not know the family")
    rows = random_conversations(np.random.default_rng(0), [700, 17, 1, 300, 900], vocab_size=32_002)
    shape = PackShape.holding(pack_length=2048, longest=900, max_conversations=5)
    batch = pack_batch(FakeSplit(rows, [0, 1, 0, 1, 0]), np.arange(5), shape).to(torch.device("cuda"))
    truth = gpu_model("eager", torch.float64, **changes)
    truth.config._experts_implementation = "eager"  # others have no float64
    try:
        choose_attention(name, device=torch.device("cuda", 0), dtype=torch.bfloat16, needs=attention_needs(truth))
    except UserError as problem:
        pytest.skip(str(problem))
    expected = reference_loss(truth, rows)
    expected.backward()
    eager = gpu_model("eager", torch.bfloat16, **changes)
    eager_packed_loss(eager, batch).backward()
    ours = gpu_model(register_attention(name), torch.bfloat16, **changes)
    if compiled:
        layers = decoder_layers(ours)
        set_layer_forward(layers, checkpointing=["full", *["matmuls"] * (len(layers) - 1)], compiled=True)
    loss = PackedCausalLM(ours, num_classes=2)(batch).weighted_nll
    loss.backward()
    measured(f"bfloat16 model with {special}, loss, {name}, against float64", relative_error(loss, expected))
    assert relative_error(loss, expected) < 5e-4
    for group, factor in (("", 1.05), ("sinks", 2.0), ("lm_head.bias", 2.0)):  # few numbers, which vary more
        grads = [{key: p.grad for key, p in model.named_parameters() if group in key} for model in (ours, eager, truth)]
        if not grads[0]:
            continue
        found, plain = (relative_error(flat(gradient), flat(grads[2])) for gradient in grads[:2])
        measured(f"bfloat16 model with {special}, gradient of {group or 'all'}, {name}, against float64", found)
        measured(f"bfloat16 model with {special}, gradient of {group or 'all'}, plain eager, against float64", plain)
        assert found < plain * factor, group


@pytest.mark.gpu
def test_compiled_layers_share_one_function_under_zero_3(
    tmp_path: Any, make_recipe: RecipeFactory, measured: Measured
) -> None:
    """More layers than torch compiles a function for: with a separate one for each it would stop with an error."""
    config = {
        **TINY_MODEL,
        "hidden_size": 256,
        "head_dim": 64,
        "num_hidden_layers": torch._dynamo.config.recompile_limit + 1,
    }
    path = make_recipe(
        train__tokens_per_step=2048, model__precision="bfloat16", model__config=config, model__compile=True
    )
    prepare_recipe(load_recipe(path), num_workers=1, progress=lambda rows: None)
    found = first_gradients(path, tmp_path, ["2", "3"], num_ranks=1)
    error = relative_error(flat(found["3"]), flat(found["2"]))
    measured("gradient of a step under ZeRO-3 against ZeRO-2, layers compiled, bfloat16", error)
    assert error < 3e-2


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize(("precision", "bound"), [("float32", 5e-6), ("bfloat16", 3e-2)])
def test_gradients_of_all_gpus_equal_those_of_one(
    precision: str, bound: float, tmp_path: Any, make_recipe: RecipeFactory, measured: Measured
) -> None:
    """NCCL, ZeRO 0 (float32 alone) to 3, as many ranks as there are GPUs."""
    config = {**TINY_MODEL, "hidden_size": 256, "head_dim": 64}
    path = make_recipe(
        train__tokens_per_step=2048, model__precision=precision, model__config=config, model__compile=False
    )
    prepare_recipe(load_recipe(path), num_workers=1, progress=lambda rows: None)
    stages = ["0"] if precision == "float32" else []
    one = first_gradients(path, tmp_path, ["2"], num_ranks=1)["2"]
    found = first_gradients(path, tmp_path, [*stages, "1", "2", "3", "2:reversed"], num_ranks=torch.cuda.device_count())
    for case, gradient in found.items():
        error = relative_error(flat(gradient), flat(one))
        measured(f"gradient of a step on {torch.cuda.device_count()} GPUs against one, {precision}", error)
        assert error < bound, case
