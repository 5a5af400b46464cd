"""Weights are what config.json says, or nothing is trained: `ochat check` and training say the same words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from data_pipeline.errors import UserError
from data_pipeline.prepared.dataset import Manifest
from ochat_train.check.findings import Finding, run_checks
from ochat_train.check.recipe_facts import RecipeFacts
from ochat_train.check.weights import check_weights
from ochat_train.model.build import build_model
from ochat_train.model.config import load_base_config
from ochat_train.model.packed import PackedCausalLM
from ochat_train.model.weights.compare import refuse_quantised
from ochat_train.model.weights.files import hub_headers, read_headers
from ochat_train.model.weights.load import load_weights
from ochat_train.model.weights.token_rows import ControlTokens, padding_text, untrained_tokens
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import prepare_recipe
from ochat_train.recipe.recipe import Recipe
from ochat_train.recipe.sections.model import ModelSettings
from tests.support.hub import client_of
from tests.support.small_recipe import TINY_MODEL, write_small_recipe

CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, small_tokenizer_dir: Path) -> Recipe:
    """A recipe with its data prepared, once for all tests; `on_base` puts it on a base in a folder."""
    recipe = load_recipe(write_small_recipe(tmp_path_factory.mktemp("recipe"), small_tokenizer_dir))
    prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
    return recipe


def manifest_of(recipe: Recipe) -> Manifest:
    manifest = Manifest.load(Path(recipe.data.prepared_dir))
    assert manifest is not None
    return manifest


def write_base(folder: Path, **config: Any) -> Path:
    """A base with random weights."""
    torch.manual_seed(0)
    values = {**TINY_MODEL, "vocab_size": 420, **config}
    model_config = transformers.AutoConfig.for_model(**values)
    transformers.AutoModelForCausalLM.from_config(model_config, dtype=torch.float32).save_pretrained(folder)
    return folder


def on_base(recipe: Recipe, folder: Path) -> Recipe:
    settings = recipe.model.model_copy(
        update={"config": None, "path": str(folder), "tokenizer": recipe.model.tokenizer_source}
    )
    return recipe.model_copy(update={"model": settings})


def build(recipe: Recipe, *, control: bool = False) -> PackedCausalLM:
    manifest = manifest_of(recipe)
    tokens = ControlTokens.of_prepared(Path(recipe.data.prepared_dir), manifest) if control else None
    return build_model(recipe.model, manifest, device=CPU, seed=0, control=tokens).model


def findings(recipe: Recipe) -> list[Finding]:
    facts = RecipeFacts(recipe=recipe, num_gpus=1, gpu_memory_gib=80.0)
    return run_checks([("weights", lambda: check_weights(facts))])


def refused(recipe: Recipe) -> str:
    """What training says; `ochat check` must say the same."""
    with pytest.raises(UserError) as caught:
        build(recipe)
    said = [(found.place, found.problem, found.remedy) for found in findings(recipe) if found.level == "problem"]
    assert said == [(found.place, found.problem, found.remedy) for found in caught.value.problems]
    return str(caught.value)


def change(folder: Path, edit: Callable[[Tensors], Tensors | None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file(edit(tensors) or tensors, folder / WEIGHTS, metadata={"format": "pt"})


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_whole_base_is_loaded(recipe: Recipe, tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    model = build(on_base(recipe, folder))
    loaded, stored = model.causal_lm.state_dict(), load_file(folder / WEIGHTS)
    assert all(torch.equal(loaded[name][: len(tensor)], tensor) for name, tensor in stored.items())
    [finding] = findings(on_base(recipe, folder))
    assert finding.level == "ok"
    assert f"{len(stored)} tensors (F32) with the names and shapes of the model" in finding.problem


GATE = "model.layers.1.mlp.up_proj.weight"


def _pop(tensors: Tensors) -> None:
    tensors.pop(GATE)


def _add(tensors: Tensors) -> None:
    tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(3)


def _wrap(tensors: Tensors) -> Tensors:
    return {f"module.{name}": tensor for name, tensor in tensors.items()}


def _reshape(tensors: Tensors) -> None:
    tensors[GATE] = tensors[GATE][:-1].clone()


def _pack(tensors: Tensors) -> None:
    tensors[GATE] = tensors[GATE].to(torch.int8)


def _narrow(tensors: Tensors) -> None:
    tensors[GATE] = tensors[GATE].to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (_pop, ["lack weights of the model (1): " + GATE, "fetch the base again"]),
        (_add, ["hold 1 tensors that the model does not have: model.layers.2.mlp.up_proj.weight"]),
        (
            _wrap,
            [
                "lack weights of the model (21)",
                "hold 21 tensors",
                "module.lm_head.weight, module.model",
                "take `module.` out",
            ],
        ),
        (_reshape, [f"{GATE} is [63, 32] instead of [64, 32]"]),
        (_pack, ["1 tensors are quantised (I8): " + GATE, "saved in bfloat16"]),
        (_narrow, ["1 tensors are quantised (F8_E4M3): " + GATE]),
    ],
)
def test_weights_of_another_model_are_refused(
    edit: Callable[[Tensors], Tensors | None], words: list[str], recipe: Recipe, tmp_path: Path
) -> None:
    folder = write_base(tmp_path / "base")
    change(folder, edit)
    said = refused(on_base(recipe, folder))
    assert [word for word in words if word not in said] == []


def test_another_vocabulary_is_named(recipe: Recipe, tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    change_config(folder, vocab_size=410)
    said = refused(on_base(recipe, folder))
    assert "lm_head.weight is [420, 32] instead of [410, 32]" in said
    assert "its config.json must say `vocab_size: 420`" in said


def test_a_base_that_says_that_it_is_quantised(recipe: Recipe, tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    change_config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert "its weights are quantised (bitsandbytes)" in refused(on_base(recipe, folder))
    wrapper = transformers.LlavaConfig(text_config={**TINY_MODEL, "quantization_config": {"quant_method": "gptq"}})
    with pytest.raises(UserError, match=r"its weights are quantised \(gptq\)"):
        refuse_quantised(wrapper, "a wrapper", for_qlora=False)


def test_tied_tensors_that_are_stored_twice(recipe: Recipe, tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base", tie_word_embeddings=True)
    embedding = "model.embed_tokens.weight"
    change(folder, lambda tensors: {**tensors, "lm_head.weight": tensors[embedding].clone()})
    model = build(on_base(recipe, folder)).causal_lm
    assert model.lm_head.weight is model.model.embed_tokens.weight, "both are the same: nothing is wrong"
    change(folder, lambda tensors: {**tensors, "lm_head.weight": tensors[embedding] + 0.01})
    said = refused(on_base(recipe, folder))
    assert "ties lm_head.weight to model.embed_tokens.weight, and its files hold both with different values" in said
    change_config(folder, tie_word_embeddings=False)
    assert not torch.equal(*(table.weight for table in tables(build(on_base(recipe, folder)))))


def tables(model: PackedCausalLM) -> tuple[Any, Any]:
    return model.causal_lm.get_input_embeddings(), model.causal_lm.get_output_embeddings()


def test_of_tied_tensors_either_may_be_stored(recipe: Recipe, tmp_path: Path) -> None:
    """Some converters keep the head and drop the embedding."""
    folder = write_base(tmp_path / "base", tie_word_embeddings=True)
    kept = load_file(folder / WEIGHTS)["model.embed_tokens.weight"]

    def head_only(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    change(folder, head_only)
    embedding, head = tables(build(on_base(recipe, folder)))
    assert embedding.weight is head.weight
    assert torch.equal(head.weight[: len(kept)], kept)
    change(folder, lambda tensors: {name: t for name, t in tensors.items() if name != "lm_head.weight"})
    assert "lack weights of the model (1): model.embed_tokens.weight" in refused(on_base(recipe, folder))


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_have_other_names_on_disk(family: str, recipe: Recipe, tmp_path: Path) -> None:
    """They are one tensor a layer in memory. One that is missing shows as a wrong shape, and is not made up."""
    sizes = {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    folder = write_base(tmp_path / "base", model_type=family, **sizes)
    build(on_base(recipe, folder))
    name = next(name for name in load_file(folder / WEIGHTS) if "layers.1" in name and ".experts.2." in name)
    change(folder, lambda tensors: {key: t for key, t in tensors.items() if key != name})
    assert f"lack weights of the model (1): {name}" in refused(on_base(recipe, folder))


def test_tensors_that_transformers_leaves_out_are_named(recipe: Recipe, tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    extra = ["model.layers.0.attention.masked_bias", "model.layers.0.self_attn.rotary_emb.inv_freq"]
    change(folder, lambda tensors: {**tensors, **{name: torch.ones(4) for name in extra}})
    build(on_base(recipe, folder))
    assert f"`transformers` leaves out 2: {', '.join(extra)}" in findings(on_base(recipe, folder))[0].problem


def test_what_the_headers_missed_is_refused_after_loading(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_base(tmp_path / "base")
    change(folder, _pop)
    monkeypatch.setattr("ochat_train.model.weights.load.check_report", lambda report, config, place: None)
    with pytest.raises(UserError, match=f"1 weights are missing after loading: {GATE}"):
        build(on_base(recipe, folder))


def test_a_base_that_is_gone_is_named(tmp_path: Path) -> None:
    """Neither a folder nor a name that the Hub could have."""
    settings = ModelSettings(path=str(tmp_path / "moved"), template="chatml", max_length_tokens=8)
    with pytest.raises(UserError, match=r"model\.path.*moved"):
        load_base_config(settings, 300)


def test_adapters_and_other_kinds_of_files(recipe: Recipe, tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds an adapter .* and not a base; merge it into its base"):
        build(on_base(recipe, folder))
    assert "holds an adapter" in findings(on_base(recipe, folder))[0].problem
    (folder / "adapter_config.json").unlink()
    (folder / WEIGHTS).rename(folder / "consolidated.safetensors")
    assert "has neither model.safetensors nor" in refused(on_base(recipe, folder))
    (folder / "consolidated.safetensors").rename(folder / "pytorch_model.bin")
    assert "no safetensors files, the only kind that is loaded; it has pytorch_model.bin" in refused(
        on_base(recipe, folder)
    )


def test_an_adapter_beside_merged_weights(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    settings = ModelSettings(path=str(tmp_path), template="chatml", max_length_tokens=8)
    for has_weights in (False, True):
        if has_weights:
            (tmp_path / WEIGHTS).touch()
        with pytest.raises(UserError, match="holds an adapter") as caught:
            load_base_config(settings, 300)
        assert ("if its weights are merged already, remove adapter_config.json" in str(caught.value)) == has_weights


def test_weights_that_are_no_numbers_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    build(on_base(recipe, folder))
    for number in (float("nan"), float("inf"), -float("inf")):
        with edited_rows(folder, EMBEDDING) as table:
            table[7, 3] = number
        with pytest.raises(UserError, match=f"1 of its weights hold NaN or infinite numbers: {EMBEDDING}"):
            build(on_base(recipe, folder))


def test_two_sets_of_weights_must_be_the_same(recipe: Recipe, tmp_path: Path) -> None:
    """An earlier file that was left beside the shards of another model would be loaded in their place."""
    folder = write_base(tmp_path / "base")
    single = load_file(folder / WEIGHTS)
    _sharded(folder)
    save_file(single, folder / WEIGHTS, metadata={"format": "pt"})
    build(on_base(recipe, folder))
    change(folder, lambda tensors: {**tensors, GATE: tensors[GATE] + 1})
    assert f"other weights in {WEIGHTS} than in the files that {WEIGHTS}.index.json names: {GATE}" in refused(
        on_base(recipe, folder)
    )


def test_a_base_without_rows_for_the_vocabulary(recipe: Recipe, tmp_path: Path) -> None:
    """Its tokenizer is another one. Tokens that were added to a tokenizer may lack rows, and get them."""
    build(on_base(recipe, write_base(tmp_path / "base", vocab_size=308)), control=True)
    small = on_base(recipe, write_base(tmp_path / "small", vocab_size=300))
    with pytest.raises(
        UserError, match="has rows for 300 tokens, and the vocabulary of the tokenizer needs 308"
    ) as caught:
        build(small, control=True)
    assert [found.problem for found in findings(small)] == [found.problem for found in caught.value.problems]


def _sharded(folder: Path) -> Path:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[:9], "model-2.safetensors": names[9:]}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / shard, metadata={"format": "pt"})
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def test_damaged_files(recipe: Recipe, tmp_path: Path) -> None:
    folder = _sharded(write_base(tmp_path / "base"))
    build(on_base(recipe, folder))
    shard, index = folder / "model-2.safetensors", folder / f"{WEIGHTS}.index.json"
    content, text = shard.read_bytes(), index.read_text()
    for damage in (content[:-1], content[:100], b"", b"\xff" * 64, content[:8] + b"[" + content[9:]):
        shard.write_bytes(damage)
        assert f"{shard}: is not a whole safetensors file" in refused(on_base(recipe, folder))
    shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert f"{shard}: is a pointer of Git LFS and not the file" in refused(on_base(recipe, folder))
    shard.unlink()
    assert f"{index}: names 1 files that are not there: model-2.safetensors" in refused(on_base(recipe, folder))
    shard.write_bytes(content)
    assert '"metadata": {}' in text
    for broken in (
        "",
        "[]",
        text.replace("metadata", "data"),
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": "../x"}}',
        '{"weight_map": {}}',
    ):
        index.write_text(broken)
        assert f"{index}: is not an index of safetensors files" in refused(on_base(recipe, folder))
    index.write_text(text)
    shutil.copy(shard, folder / "model-1.safetensors")
    index.write_text(text)
    assert f"{shard}: holds tensors that model-1.safetensors holds too" in refused(on_base(recipe, folder))


def test_headers_on_the_hub_are_those_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _sharded(write_base(tmp_path / "base"))
    with client_of(tmp_path / "hub", monkeypatch) as server:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", server.url + template)
        server.make_repo("alice/base", private=False)
        server.put("alice/base", {file.name: file.read_bytes() for file in folder.iterdir()})
        found = hub_headers("alice/base", None)
    expected = read_headers(sorted(folder.glob("*.safetensors")))
    assert {name: (header.dtype, header.shape, header.file.name) for name, header in found.items()} == {
        name: (header.dtype, header.shape, header.file.name) for name, header in expected.items()
    }


def test_sampling_values_without_sampling_do_not_stop_a_run(recipe: Recipe, tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.9, "do_sample": False, "top_p": 0.6}))
    with pytest.raises(ValueError, match="temperature"):
        transformers.GenerationConfig.from_pretrained(folder).validate(strict=True)
    build(on_base(recipe, folder)).causal_lm.generation_config.validate(strict=True)


@contextmanager
def edited_rows(folder: Path, name: str) -> Iterator[torch.Tensor]:
    tensors = load_file(folder / WEIGHTS)
    yield tensors[name]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def test_rows_that_were_never_trained_start_from_the_mean(recipe: Recipe, tmp_path: Path) -> None:
    """Llama-3's reserved tokens are (nearly) zero; spare rows of a padded vocabulary are often all the same."""
    control = ControlTokens.of_prepared(Path(recipe.data.prepared_dir), manifest_of(recipe))
    bos, end = "<s>", "<|end_of_turn|>"
    assert {bos, end} <= control.ids.keys()
    folder = write_base(tmp_path / "base")
    with edited_rows(folder, EMBEDDING) as table:
        table[control.ids[bos]] = 1e-30
    with edited_rows(folder, HEAD) as table:
        table[control.ids[bos] + 1 : control.ids[bos] + 4] = table[control.ids[bos]]  # three others are the same
        trained = table[control.ids[end]].clone()
    stored = load_file(folder / WEIGHTS)
    settings = on_base(recipe, folder)
    embedding, head = (table.weight for table in tables(build(settings, control=True)))
    for found, name in ((embedding, EMBEDDING), (head, HEAD)):
        changed = (found != stored[name]).any(dim=1).nonzero()[:, 0].tolist()
        assert sorted(changed) == [control.ids[bos]], "trained rows stay"
        assert torch.equal(found[control.ids[bos]], stored[name].mean(dim=0))
    assert torch.equal(head[control.ids[end]], trained)
    said = findings(settings)[-1].problem
    assert f"{bos} (embedding and head)" in said
    assert end not in said
    untouched = build(settings)
    assert torch.equal(tables(untouched)[0].weight, stored[EMBEDDING])


@pytest.mark.parametrize("tied", [False, True])
def test_a_control_token_that_is_the_padding_token_is_named(tied: bool, recipe: Recipe, tmp_path: Path) -> None:
    """The row of the embedding then gets no gradient. The control: without a padding token it gets one."""
    control = ControlTokens.of_prepared(Path(recipe.data.prepared_dir), manifest_of(recipe))
    row = control.ids["<s>"]
    folder = write_base(tmp_path / "base", tie_word_embeddings=tied)
    for pad in (None, row):
        change_config(folder, pad_token_id=pad)
        causal_lm = build(on_base(recipe, folder)).causal_lm
        embedding = causal_lm.get_input_embeddings()
        embedding(torch.tensor([row])).sum().backward()
        assert bool(embedding.weight.grad[row].any()) == (pad is None)
        text = padding_text(causal_lm, control)
        said = [found for found in findings(on_base(recipe, folder)) if found.level == "warning"]
        assert [found.problem for found in said] == ([] if text is None else [text])
        assert (text is None) == (pad is None)
    assert text is not None
    assert text.startswith("<s> is the base's padding token")
    assert ("head" in text) == tied


def test_rows_that_were_trained_stay(recipe: Recipe, tmp_path: Path) -> None:
    table_VD = torch.randn(50, 8)
    table_VD[3], table_VD[4], table_VD[5] = 1e-3, table_VD[6], table_VD[6]
    control = ControlTokens(ids={"small": 3, "one twin": 4, "usual": 7, "beyond": 90})
    assert untrained_tokens(table_VD, control) == []
    table_VD[9:11] = table_VD[6]
    assert untrained_tokens(table_VD, control) == ["one twin"]
    assert untrained_tokens(table_VD.bfloat16(), control) == ["one twin"]


def test_a_model_from_scratch_keeps_its_random_rows(recipe: Recipe) -> None:
    with_control, without = build(recipe, control=True), build(recipe)
    assert torch.equal(tables(with_control)[0].weight, tables(without)[0].weight)


def test_random_weights_need_no_files(recipe: Recipe) -> None:
    assert [finding.level for finding in findings(recipe)] == ["ok"]
    config = transformers.AutoConfig.for_model(**TINY_MODEL, vocab_size=8)
    assert load_weights(recipe.model, config, dtype=torch.float32, attention="sdpa", seed=0) is not None
