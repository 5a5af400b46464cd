"""What models of `transformers` ask of their attention function, and what is refused because no kernel computes it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from data_pipeline.errors import UserError
from ochat_train.model.attention.needs import AttentionNeeds, attention_needs
from ochat_train.model.attention.register import register_attention
from ochat_train.model.base_class import new_model
from ochat_train.model.batch import PackShape, pack_batch
from ochat_train.model.layers import set_layer_forward
from ochat_train.model.packed import PackedCausalLM
from ochat_train.model.structure import decoder_layers
from tests.support.hybrids import hybrid_config
from tests.support.measured import Measured
from tests.support.reference import FakeSplit, as_float64, flat, random_conversations, reference_loss, relative_error

VOCAB = 100
ABSENT: Any = object()  # an entry that the family's config does not have
SHAPES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
OLD = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
LATENT: dict[str, Any] = {
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
LATENT |= {"head_dim": ABSENT, "num_key_value_heads": 4}
ROUTED = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
INDEXER = {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 2048}
OPT = {"ffn_dim": 64, "word_embed_proj_dim": 64, "max_position_embeddings": 64, "dropout": 0.0}


class Lazy:
    """A small config that is made in the test: other versions of `transformers` may not know the family."""

    def __init__(self, model_type: str, **changes: Any) -> None:
        self.model_type, self.changes = model_type, changes

    def make(self) -> Any:
        if self.model_type not in transformers.CONFIG_MAPPING:
            pytest.skip(f"this transformers does not know {self.model_type}")
        return config_of(self.model_type, **self.changes)


def config_of(model_type: str, **changes: Any) -> Any:
    shapes = {name: value for name, value in {**SHAPES, **changes}.items() if value is not ABSENT}
    return transformers.AutoConfig.for_model(model_type, **shapes)


def plain(*head_dims: tuple[int, int]) -> AttentionNeeds:
    return AttentionNeeds(head_dims=frozenset(head_dims or ((16, 16),)))


SOFTCAP = AttentionNeeds(softcap=True, head_dims=frozenset({(16, 16)}))
# Families whose query heads each have a key head, here; the others share them.
ONE_KEY_HEAD_EACH = ("minicpm3", "deepseek_v3", "gpt2", "gpt_neox", "opt", "biogpt")
SINKS = AttentionNeeds(sinks=True, head_dims=frozenset({(16, 16)}))


def noisy(config: Any) -> Any:
    """A model whose scores are large, whose norms are not 1 and whose biases and sinks are not 0."""
    torch.manual_seed(0)
    name = register_attention("sdpa")
    model = transformers.AutoModelForCausalLM.from_config(
        copy.deepcopy(config), dtype=torch.float32, attn_implementation=name
    )
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.2 if parameter.dim() > 1 else 0.3
            parameter.add_(torch.randn_like(parameter) * scale)
    return model.train()


@pytest.mark.parametrize(
    ("lazy", "needs"),
    [
        (Lazy("mistral", sliding_window=8), plain()),
        (Lazy("qwen2"), plain()),
        (Lazy("gpt_oss", sliding_window=8, **EXPERTS), SINKS),
        (Lazy("gemma2", sliding_window=8, attn_logit_softcapping=1.0, final_logit_softcapping=1.5), SOFTCAP),
        (Lazy("gemma3_text", sliding_window=8, final_logit_softcapping=1.5), plain()),
        (
            Lazy(
                "gemma4_text",
                sliding_window=8,
                global_head_dim=32,
                num_kv_shared_layers=0,
                hidden_size_per_layer_input=16,
                vocab_size_per_layer_input=VOCAB,
                final_logit_softcapping=2.0,
            ),
            plain((16, 16), (32, 32)),
        ),
        (Lazy("cohere2", sliding_window=8, logit_scale=0.3), plain()),
        (Lazy("granite", logits_scaling=4.0), plain()),
        (Lazy("hyperclovax", logits_scaling=0.3), plain()),
        (Lazy("minicpm3", dim_model_base=32, **LATENT), plain((24, 16))),
        (Lazy("deepseek_v3", first_k_dense_replace=1, n_shared_experts=1, **ROUTED, **LATENT), plain((24, 16))),
        (Lazy("phi"), plain()),  # a head with a bias
        (Lazy("gpt2", n_inner=64, **OLD), plain()),  # layers named `h`, called with positions
        (Lazy("gpt_neox"), plain()),
        (Lazy("opt", **OPT), plain()),  # layers inside a decoder, positions from a table
        (Lazy("biogpt", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), plain()),
    ],
    ids=lambda found: getattr(found, "model_type", ""),
)
def test_packs_equal_each_conversation_alone(lazy: Lazy, needs: AttentionNeeds, measured: Measured) -> None:
    """Loss and gradients of all parameters, against transformers' own eager attention and logits in float64."""
    config = lazy.make()
    needs = replace(needs, is_grouped=lazy.model_type not in ONE_KEY_HEAD_EACH)
    causal_lm = noisy(config)
    assert attention_needs(causal_lm) == needs
    truth = as_float64(causal_lm)
    truth.config._experts_implementation = "eager"  # others have no float64
    rows = random_conversations(np.random.default_rng(0), [30, 9, 2], vocab_size=VOCAB)
    expected = reference_loss(truth, rows)
    expected.backward()
    layers = decoder_layers(causal_lm)
    set_layer_forward(layers, checkpointing=["full", *["matmuls"] * (len(layers) - 1)], compiled=False)
    shape = PackShape(pack_length=64, max_seqlen=32, max_sequences=5)
    batch = pack_batch(FakeSplit(rows, [0, 1, 0]), np.arange(3), shape)
    loss = PackedCausalLM(causal_lm, num_classes=2)(batch).weighted_nll
    loss.backward()
    found, wanted = ({name: p.grad for name, p in model.named_parameters()} for model in (causal_lm, truth))
    without = {name for name, gradient in wanted.items() if gradient is None}
    assert {name for name, gradient in found.items() if gradient is None} == without
    error = relative_error(*(flat({k: v for k, v in g.items() if k not in without}) for g in (found, wanted)))
    measured("16 families, packs against each conversation alone in float64: loss", relative_error(loss, expected))
    measured("16 families, packs against each conversation alone in float64: gradients", error)
    assert relative_error(loss, expected) < 1e-6
    assert error < 2e-5


def test_looking_changes_nothing_in_the_model() -> None:
    """Modes, attention implementation, random numbers; the dropout of training is found in evaluation mode too."""
    model = noisy(config_of("gpt2", n_inner=64, **{**OLD, "attn_pdrop": 0.25}))
    model.eval()
    model.transformer.h[0].train()
    before = {name: module.training for name, module in model.named_modules()}
    state = torch.random.get_rng_state()
    assert attention_needs(model).dropout == 0.25
    assert {name: module.training for name, module in model.named_modules()} == before
    assert model.config._attn_implementation == register_attention("sdpa")
    assert torch.equal(torch.random.get_rng_state(), state)


ALIBI = {"head_dim": ABSENT, "alibi": True}


@pytest.mark.parametrize(
    ("lazy", "problem"),
    [
        (Lazy("nemotron"), "NemotronAttention of `transformers` (base `nemotron`) does not pass `cu_seqlens`"),
        (Lazy("stablelm"), "StableLmAttention of `transformers` (base `stablelm`) does not pass `cu_seqlens`"),
        (Lazy("doge"), "needs `attention_mask` (its own mask), which no attention kernel here computes"),
        (Lazy("falcon", head_dim=ABSENT), "falcon does not take its attention from transformers' registry"),
        (Lazy("falcon", **ALIBI), "falcon does not take its attention from transformers' registry"),
        (
            Lazy("xglm", d_model=64, ffn_dim=64, attention_heads=4, num_layers=2),
            "xglm does not take its attention",
        ),
        (
            Lazy("deepseek_v32", first_k_dense_replace=1, n_shared_experts=1, **ROUTED, **LATENT, **INDEXER),
            "deepseek_v32 has sparse attention: an indexer (DeepseekV32Indexer of `transformers`) picks",
        ),
        (
            Lazy("glm_moe_dsa", n_shared_experts=1, **ROUTED, **LATENT, **INDEXER),
            "glm_moe_dsa has sparse attention: an indexer (GlmMoeDsaIndexer of `transformers`) picks",
        ),
        (Lazy("bloom"), "BloomModel of `transformers` takes no `position_ids`: positions would not start again"),
        (Lazy("mpt", d_model=64, n_heads=4, n_layers=2), "MptModel of `transformers` takes no `position_ids`"),
        (Lazy("gemma2", sliding_window=None), "Gemma2Model of `transformers` cannot run on a pack: ValueError: Could"),
        (Lazy("gemma3_text", use_bidirectional_attention=True), "gemma3_text lets tokens see others than those"),
        (
            Lazy("llama4_text", attention_chunk_size=16, intermediate_size_mlp=64, **EXPERTS),
            "llama4_text lets tokens see others than those before them or those of a window",
        ),
    ],
)
def test_attention_that_no_kernel_computes_is_refused(lazy: Lazy, problem: str) -> None:
    model = new_model(lazy.make(), dtype=torch.float32)
    with pytest.raises(UserError) as caught:
        attention_needs(model)
    assert caught.value.place == "model"
    assert problem in caught.value.problem
    assert "use another base" in caught.value.remedy


@pytest.mark.parametrize("model_type", ["bamba", "granitemoehybrid"])
def test_a_hybrid_without_an_attention_layer_needs_nothing(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But one with a layer whose attention does not come from the registry is refused."""
    layers = {"attn_layer_indices": []} if model_type == "bamba" else {"layer_types": ["mamba"] * 3}
    mixers_only = new_model(transformers.AutoConfig.for_model(**hybrid_config(model_type, **layers)))
    assert attention_needs(mixers_only) == AttentionNeeds()
    model = new_model(transformers.AutoConfig.for_model(**hybrid_config(model_type)))
    assert attention_needs(model).head_dims
    attention = decoder_layers(model)[1].self_attn
    monkeypatch.setattr(type(attention), "forward", lambda self, hidden_states, **_: (hidden_states, None))
    with pytest.raises(UserError, match=f"{model_type} does not take its attention from transformers' registry"):
        attention_needs(model)


# ---- at run time, unchecked ----


def test_a_model_that_drops_the_borders_cannot_run_even_unchecked() -> None:
    model = noisy(config_of("nemotron"))
    with pytest.raises(UserError, match=r"does not pass `cu_seqlens` to its attention function"):
        model.base_model(input_ids=torch.ones((1, 4), dtype=torch.int64), cu_seqlens=torch.tensor([0, 4]), max_seqlen=4)


@pytest.mark.parametrize(
    ("keywords", "refused"),
    [
        ({"position_ids": torch.zeros(1, 4), "use_cache": False, "is_causal": True, "softcap": None}, None),
        ({"softcap": 2.0, "s_aux": torch.zeros(2), "sliding_window": 2}, None),
        ({"is_causal": False}, "`is_causal` (attention to later tokens)"),
        ({"indices": torch.zeros(1)}, "`indices` (sparse attention)"),
        ({"sinks": torch.zeros(2)}, "`sinks` (attention sinks)"),
        ({"attention_mask": torch.ones(1, 1, 4, 4)}, "`attention_mask` (its own mask)"),
        ({"not_known_yet": 0}, "`not_known_yet`"),
    ],
)
def test_every_keyword_is_used_harmless_or_refused(keywords: dict[str, Any], refused: str | None) -> None:
    attention = transformers.AttentionInterface()[register_attention("sdpa")]
    query, key, value = (torch.randn(1, 2, 4, 8) for _ in range(3))
    cu_seqlens = torch.tensor([0, 4], dtype=torch.int32)

    def run() -> Any:
        module = torch.nn.Identity()
        return attention(module, query, key, value, scaling=1.0, cu_seqlens=cu_seqlens, max_seqlen=4, **keywords)

    if refused is None:
        assert run()[0].shape == (1, 4, 2, 8)
        return
    with pytest.raises(UserError) as caught:
        run()
    assert f"Identity of `transformers` needs {refused}" in caught.value.problem


@pytest.mark.parametrize(
    ("keywords", "lacks"),
    [({"softcap": 2.0}, "soft-capping of attention scores"), ({"s_aux": torch.zeros(2)}, "attention sinks")],
)
def test_a_kernel_without_it_refuses_at_run_time(keywords: dict[str, Any], lacks: str) -> None:
    """Compiled layers of a model that nobody looked at: the kernel is not called."""
    attention = transformers.AttentionInterface()[register_attention("varlen")]
    tensors = [torch.randn(1, 2, 4, 8) for _ in range(3)]
    cu_seqlens = torch.tensor([0, 4], dtype=torch.int32)
    try:
        with pytest.raises(UserError, match=f"`varlen` cannot be used: it has no {lacks}"):
            attention(torch.nn.Identity(), *tensors, scaling=1.0, cu_seqlens=cu_seqlens, max_seqlen=4, **keywords)
    finally:
        register_attention("sdpa")


def test_a_model_that_names_no_scale_gets_the_usual_one() -> None:
    attention = transformers.AttentionInterface()[register_attention("sdpa")]
    tensors = [torch.randn(1, 2, 4, 16) for _ in range(3)]
    cu_seqlens = torch.tensor([0, 4], dtype=torch.int32)
    outputs = [
        attention(torch.nn.Identity(), *tensors, scaling=scaling, cu_seqlens=cu_seqlens, max_seqlen=4)[0]
        for scaling in (None, 0.25, 0.5)
    ]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
