"""Control tokens that are new to the base are learnt: rows of embedding and head, tied or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.prepared.dataset import PreparedSplit
from ochat_train.adapter.build import add_adapter
from ochat_train.adapter.token_rows import merge_rows, train_rows, trained_ids
from ochat_train.model.batch import PackShape, pack_batch
from ochat_train.model.build import build_model
from ochat_train.model.packed import PackedCausalLM
from ochat_train.model.weights.token_rows import ControlTokens
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import check_prepared, prepare_recipe
from ochat_train.recipe.sections.adapter import AdapterSettings
from tests.support.adapters import write_base
from tests.support.measured import Measured
from tests.support.reference import as_float64
from tests.support.small_recipe import RecipeFactory
from tests.support.tiny_model import VOCAB, tiny_model

CPU = torch.device("cpu")


@pytest.mark.parametrize("tied", [False, True])
def test_the_end_of_a_turn_is_learnt(
    tied: bool, tmp_path: Path, make_recipe: RecipeFactory, small_tokenizer_dir: Path, measured: Measured
) -> None:
    """ChatML has two tokens that the base does not know, and both begin with the mean row. Without trained rows they
    are written equally often whatever else is learnt, so that neither can have more than half: the control.
    """
    base = write_base(tmp_path / "base", small_tokenizer_dir, tie_word_embeddings=tied, initializer_range=0.3)
    recipe = load_recipe(make_recipe(model__config=None, model__path=str(base), model__template="chatml"))
    prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
    manifest = check_prepared(recipe)
    control = ControlTokens.of_prepared(Path(recipe.data.prepared_dir), manifest)
    split = PreparedSplit(Path(recipe.data.prepared_dir), "train")
    batch = pack_batch(split, np.arange(2), PackShape(pack_length=256, max_seqlen=256, max_sequences=8))
    end = control.ids["<|im_end|>"]
    found = {}
    for case in ("trained", "frozen"):
        model, _, _, new_token_ids = build_model(recipe.model, manifest, device=CPU, seed=0, control=control)
        assert end in new_token_ids
        ids = new_token_ids if case == "trained" else []
        add_adapter(model.causal_lm, AdapterSettings(type="lora", rank=16), new_token_ids=ids)
        before = probability(model, batch, end)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=0.02)
        for _ in range(60):
            optimizer.zero_grad()
            model(batch).weighted_nll.backward()
            optimizer.step()
        found[case] = probability(model, batch, end)
        assert before < 0.05
        measured(f"probability of a new end of turn after 60 steps, rows {case}", found[case])
    assert found["trained"] > 0.8
    assert found["frozen"] <= 0.5


@torch.no_grad()
def probability(model: PackedCausalLM, batch: object, token: int) -> float:
    """Mean probability of a token where it is the next one."""
    scores = model(batch, score=True)  # type: ignore[arg-type]
    targets = batch.target_ids_T[batch.supervised_indices_N]  # type: ignore[attr-defined]
    return float((-scores.nll_N[targets == token]).exp().mean())


@pytest.mark.parametrize("tied", [False, True])
def test_merged_rows_give_the_same_logits(tied: bool) -> None:
    """Also where only the tables are used, as `transformers` does; rows that are not trained are bit-equal."""
    causal_lm, base = (as_float64(tiny_model(tie_word_embeddings=tied)) for _ in range(2))
    before = causal_lm.get_output_embeddings().weight.detach().clone()
    causal_lm.requires_grad_(False)
    train_rows(causal_lm, [290, 5])
    assert trained_ids(causal_lm) == [5, 290]
    trained = [parameter for parameter in causal_lm.parameters() if parameter.requires_grad]
    assert len(trained) == (1 if tied else 2)
    ids = torch.tensor([[1, 5, 7, 290, 299, 5]])
    with torch.no_grad():
        assert (causal_lm(input_ids=ids).logits - base(input_ids=ids).logits).abs().max() < 1e-12
        for parameter in trained:
            parameter.normal_()
        separate = causal_lm(input_ids=ids).logits
        merge_rows(causal_lm)
        merged = causal_lm(input_ids=ids).logits
    assert (separate - merged).abs().max() < 1e-12
    changed = (causal_lm.get_output_embeddings().weight != before).any(dim=1)
    assert changed.nonzero()[:, 0].tolist() == [5, 290]
    assert not any("trained_rows" in name for name in causal_lm.state_dict())
    assert len(before) == VOCAB
