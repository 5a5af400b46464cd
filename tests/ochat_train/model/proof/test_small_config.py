"""The small copy of a base has every kind of layer and everything that matters, and little else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from data_pipeline.errors import UserError
from ochat_train.model.proof import small_config
from ochat_train.model.proof.layer_kinds import layer_kinds, per_layer_lists, shortest_prefix
from ochat_train.model.proof.small_config import LENGTHS, small_base
from tests.support.base_configs import base_config
from tests.support.hybrids import hybrid_config

CPU = torch.device("cpu")

# As published: sizes, windows, rotary settings; what is not named is the default of the family.
PUBLISHED: dict[str, tuple[str, dict[str, Any], int, int]] = {
    # name: the family, its values, the head dimension, kinds of layers
    "Gemma-2-9B": ("gemma2", {"hidden_size": 3584, "num_hidden_layers": 42, "head_dim": 256}, 256, 2),
    "Qwen3-30B-A3B": (
        "qwen3_moe",
        {"hidden_size": 2048, "num_hidden_layers": 48, "num_experts": 128, "head_dim": 128, "num_key_value_heads": 4},
        128,
        1,
    ),
    "DeepSeek-V3": ("deepseek_v3", {}, 192, 2),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_bases_become_small_with_real_heads_and_every_kind_of_layer(name: str) -> None:
    model_type, values, head_dim, num_kinds = PUBLISHED[name]
    config = transformers.AutoConfig.for_model(model_type, **values)
    small = small_base(config, max_length_tokens=8192, device=CPU)
    assert (small.num_kinds, small.num_parameters < 2_000_000, 2 <= small.num_layers <= 4) == (num_kinds, True, True)
    model = small.model_in_training()
    attention = model.base_model.layers[0].self_attn
    dims = getattr(attention, "qk_head_dim", None) or attention.head_dim
    assert dims == head_dim
    query, key = config.num_attention_heads, config.num_key_value_heads
    assert small.config.num_attention_heads * key == small.config.num_key_value_heads * query


def test_windows_caps_and_lengths_come_to_where_they_matter_and_noise_goes() -> None:
    config = base_config("gemma2", attention_dropout=0.1, sliding_window=4096, max_position_embeddings=8192)
    small = small_base(config, max_length_tokens=8192, device=CPU).config
    assert small.sliding_window < min(LENGTHS)
    assert small.attn_logit_softcapping == small.final_logit_softcapping == small_config._SOFTCAP
    assert (small.attention_dropout, config.attention_dropout) == (0.0, 0.1)
    shorter = small_base(config, max_length_tokens=2048, device=CPU)
    assert shorter.config.sliding_window > max(LENGTHS)  # no conversation reaches it
    noisy = shorter.model_in_training()
    assert noisy.config.attention_dropout == 0.1


def test_a_rotary_scaling_of_which_conversations_reach_the_length_is_reached() -> None:
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 8192
    config = base_config("llama", rope_parameters=rope, max_position_embeddings=131072)
    for longest, reached in ((16384, True), (4096, False)):
        small = small_base(config, max_length_tokens=longest, device=CPU).config
        original = small.rope_parameters["original_max_position_embeddings"]
        assert (min(LENGTHS) < original < max(LENGTHS)) == reached
        assert (original > max(LENGTHS)) != reached


def test_kinds_of_layers_are_told_apart_by_what_they_do() -> None:
    def kinds(**values: Any) -> list[Any]:
        with torch.device("meta"):
            config = transformers.AutoConfig.for_model("qwen2", num_hidden_layers=6, **values)
            model = transformers.AutoModelForCausalLM.from_config(config)
            return layer_kinds(model, per_layer_lists(model.config, 6))

    assert len(set(kinds())) == 1
    windows = kinds(use_sliding_window=True, sliding_window=16, max_window_layers=4)
    assert len(set(windows)) == 2
    assert shortest_prefix(windows) == 5
    assert shortest_prefix(kinds()) == 1


def test_lists_that_are_as_long_as_a_small_copy_by_chance_do_not_count_as_lists_of_layers() -> None:
    """Falcon-H1 has lists of two numbers (`time_step_limit`), and all of its layers are of one kind."""
    small = small_base(transformers.AutoConfig.for_model("falcon_h1"), max_length_tokens=8192, device=CPU)
    assert (small.num_layers, small.num_kinds) == (2, 1)


def test_a_base_that_cannot_be_made_small_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_config, "MOST_PARAMETERS", 1000)
    with pytest.raises(UserError, match="mistral cannot be proven: no copy of it below 1,000 parameters"):
        small_base(base_config("mistral"), max_length_tokens=128, device=CPU)


def test_layers_may_differ_in_what_the_config_says_once_for_all() -> None:
    """Gemma 4: heads of 256, and of 512 in layers of full attention. Such a config refuses to say one number."""
    config = transformers.AutoConfig.for_model(
        "gemma4_text",
        num_hidden_layers=2,
        layer_types=["sliding_attention", "full_attention"],
        per_layer_config={"1": {"head_dim": 512}},
        vocab_size=1000,
        vocab_size_per_layer_input=1000,
    )
    if not getattr(config, "is_heterogeneous", False):
        pytest.skip("this transformers has no layers that differ")
    small = small_base(config, max_length_tokens=8192, device=CPU)
    assert small.num_parameters < 3_000_000
    heads = [layer.self_attn.head_dim for layer in small.model_in_training().model.layers]
    assert (heads, small.num_kinds) == ([256, 512], 2)


@pytest.mark.parametrize(("base", "where"), [("bamba", "cuda"), ("mistral", "cpu")])
def test_mixers_are_tried_on_the_device_of_the_run(base: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`transformers` calls installed kernels of mixers on every device, and on the CPU they raise."""
    tried: set[str] = set()
    monkeypatch.setattr(small_config, "_run_alone", lambda model, *, device: tried.add(device.type))
    config = transformers.AutoConfig.for_model(**hybrid_config("bamba")) if base == "bamba" else base_config(base)
    small_base(config, max_length_tokens=128, device=torch.device("cuda"))
    assert tried == {where}


def test_what_nearly_always_fits_is_run_once_and_where_it_does_not_fit_each_change_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, words = small_config._run_alone, []

    def counted(model: Any, *, device: torch.device) -> None:
        words.append(model.config.vocab_size)
        assert model.config.vocab_size > fewest_words
        run(model, device=device)

    monkeypatch.setattr(small_config, "_run_alone", counted)
    config = base_config("mistral", num_hidden_layers=12, sliding_window=64, attention_dropout=0.1)
    fewest_words = 0
    small = small_base(config, max_length_tokens=128, device=CPU).config
    assert words == [small.vocab_size] == [small_config._VOCAB]
    words.clear()
    fewest_words = 200  # a base that cannot have fewer
    other = small_base(config, max_length_tokens=128, device=CPU).config
    assert other.to_dict() == {**small.to_dict(), "vocab_size": config.vocab_size}
    assert len(words) > 3  # layers, words, a window, dropout
