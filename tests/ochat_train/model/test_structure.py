"""Where models of `transformers` keep their layers and heads, and layers that are not called as those of Mistral."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from data_pipeline.errors import UserError
from ochat_train.model.base_class import backbone
from ochat_train.model.config import model_without_weights
from ochat_train.model.layers import set_layer_forward
from ochat_train.model.structure import check_head, decoder_layers
from tests.support.tiny_model import tiny_model

TEXT = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 16}
TEXT |= {"num_key_value_heads": 2, "vocab_size": 100, "pad_token_id": 0}
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}


def small(model_type: str, **changes: Any) -> Any:
    if model_type not in transformers.CONFIG_MAPPING:
        pytest.skip("this transformers does not know the family")
    return model_without_weights(transformers.AutoConfig.for_model(model_type, **changes))


@pytest.mark.parametrize(
    ("model_type", "changes", "layer"),
    [
        ("mistral", TEXT, "MistralDecoderLayer"),
        ("gpt2", {"n_layer": 3}, "GPT2Block"),  # `h`
        ("gpt_neox", {"num_hidden_layers": 3}, "GPTNeoXLayer"),
        ("opt", {"num_hidden_layers": 3}, "OPTDecoderLayer"),  # `decoder.layers`
        ("mpt", {"n_layers": 3}, "MptBlock"),  # `blocks`
        ("bloom", {"n_layer": 3}, "BloomBlock"),
        ("ctrl", {"n_layer": 3}, "EncoderLayer"),  # not marked by `transformers`
        ("modernbert-decoder", {"num_hidden_layers": 3}, "ModernBertDecoderLayer"),
        ("llama4_text", {**TEXT, "num_local_experts": 2}, "Llama4TextDecoderLayer"),  # without `base_model`
        ("gemma3", {"text_config": TEXT, "vision_config": VISION}, "Gemma3DecoderLayer"),  # as many layers for images
    ],
)
def test_decoder_layers_are_found_under_every_name(model_type: str, changes: dict[str, Any], layer: str) -> None:
    layers = decoder_layers(small(model_type, **changes))
    assert [type(found).__name__ for found in layers] == [layer] * 3


def test_layers_in_several_lists_are_refused() -> None:
    with pytest.raises(UserError, match="xlm does not have its decoder layers in one list"):
        decoder_layers(small("xlm", n_layers=3, emb_dim=64, n_heads=4))


def test_the_inner_model() -> None:
    causal_lm = small("llama4_text", **TEXT, num_local_experts=2)
    assert backbone(causal_lm) is causal_lm.model
    assert backbone(tiny := tiny_model()) is tiny.model


@pytest.mark.parametrize(("head", "found"), [(None, "no language-model head"), (torch.nn.Identity(), "type Identity")])
def test_other_heads_are_refused(head: Any, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    causal_lm = tiny_model()
    check_head(causal_lm)
    monkeypatch.setattr(causal_lm, "get_output_embeddings", lambda: head)
    with pytest.raises(UserError, match=f"mistral has .*{found}, which the loss cannot use"):
        check_head(causal_lm)


class Layer(torch.nn.Module):
    """A layer as in older families: arguments by place, and a tuple as its result."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, hidden: torch.Tensor, factor: torch.Tensor, shift: float = 0.0) -> tuple[torch.Tensor, None]:
        return torch.tanh(self.linear(hidden) * factor + shift), None


@pytest.mark.parametrize("kind", ["none", "matmuls", "full"])
def test_layers_may_take_arguments_by_place_and_return_tuples(kind: str) -> None:
    torch.manual_seed(0)
    layer, hidden, factor = Layer(), torch.randn(3, 4), torch.randn(3, 1, requires_grad=True)
    results = []
    for changed in (False, True):
        if changed:
            set_layer_forward([layer], checkpointing=[kind], compiled=False)
        for parameter in (*layer.parameters(), factor):
            parameter.grad = None
        output, nothing = layer(hidden, factor, shift=0.5)
        output.sum().backward()
        assert nothing is None
        results.append([output.detach(), factor.grad, layer.linear.weight.grad])
    assert all(torch.allclose(found, expected) for expected, found in zip(*results, strict=True))
