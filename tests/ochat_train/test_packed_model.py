"""The whole model on packs against each conversation alone in float64: loss, gradients, and no leak between conversations."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from ochat_train.attention import register_attention
from ochat_train.batches import PackedBatch, pack_batch
from ochat_train.model import PackedCausalLM, add_token_rows
from tests.conftest import TINY_MODEL
from tests.ochat_train.reference import FakeSplit, random_conversations, reference_loss, relative_error

VOCAB = 300


def tiny_model(**changes: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**{**TINY_MODEL, "vocab_size": VOCAB, **changes})
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation=register_attention("sdpa")
    )
    return model.train()


def as_float64(causal_lm: Any) -> Any:
    twin = copy.deepcopy(causal_lm).double()
    twin.config._attn_implementation = "eager"
    return twin


def batches(split: Any, packs: list[list[int]], pack_length: int = 128) -> list[PackedBatch]:
    return [pack_batch(split, np.array(rows, dtype=np.int64), pack_length=pack_length, max_sequences=6) for rows in packs]


def gradients(model: Any) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"sliding_window": 8}, {"model_type": "llama"}])
@pytest.mark.parametrize("weights", [(0.0, 0.1, 1.0), (0.0, 0.001, 100.0)])
def test_packed_gradients_equal_float64(changes: dict[str, Any], weights: tuple[float, ...]) -> None:
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


def test_a_changed_conversation_leaves_the_other_bit_equal() -> None:
    rng = np.random.default_rng(2)
    first, second, other = random_conversations(rng, [40, 50, 50], vocab_size=VOCAB)
    masked = FakeSplit([first, second], [0, 0])
    changed = FakeSplit([type(first)(input_ids=other.input_ids[:40], loss_weights=first.loss_weights), second], [0, 0])
    hidden = []
    for split in (masked, changed):
        model = PackedCausalLM(tiny_model(), num_classes=1)
        states = {}
        model.loss.register_forward_pre_hook(lambda module, arguments, states=states: states.update(h=arguments[0]))
        model(batches(split, [[0, 1]])[0])
        hidden.append(states["h"])
    assert torch.equal(hidden[0][40:90], hidden[1][40:90])
    assert not torch.equal(hidden[0][:40], hidden[1][:40])


def test_control_one_long_row_leaks() -> None:
    """Without the borders (one sequence over the whole pack) the second conversation sees the first."""
    rows = random_conversations(np.random.default_rng(3), [40, 50], vocab_size=VOCAB)
    split = FakeSplit(rows, [0, 0])
    batch = batches(split, [[0, 1]])[0]
    unbounded = PackedBatch(**{**vars(batch), "cu_seqlens_S1": torch.tensor([0, 128], dtype=torch.int32)})
    model = PackedCausalLM(tiny_model(), num_classes=1)
    assert relative_error(model(unbounded).weighted_nll, model(batch).weighted_nll) > 1e-5


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
