"""The model of a run with an adapter: its base, found again, with the trained tensors of a checkpoint on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_pipeline.errors import UserError
from data_pipeline.hub_names import is_hub_id
from data_pipeline.text_rules import some_names
from ochat_train.adapter.base_hash import base_sha256
from ochat_train.adapter.build import add_adapter
from ochat_train.adapter.folder import LEAD, TOKEN_ROWS, adapter_tensors, load_adapter, short_targets, write_adapter
from ochat_train.adapter.merge import merge_adapter, narrow, remove_adapter, widen
from ochat_train.adapter.quantize import quantise_base
from ochat_train.adapter.token_rows import merge_rows, trained_ids
from ochat_train.checkpoint.basis import config_values
from ochat_train.checkpoint.changes import config_changes, listed
from ochat_train.checkpoint.state import CheckpointManifest
from ochat_train.model.base_class import trained_parameters
from ochat_train.model.build import load_base
from ochat_train.model.config import load_base_config
from ochat_train.model.weights.token_rows import ControlTokens
from ochat_train.recipe.sections.adapter import AdapterSettings
from ochat_train.recipe.sections.model import ModelSettings
from ochat_train.runs.folder import RunFolder

_CLOSE = 1e-5  # of the largest logit: how far float32 logits of the same weights, added up otherwise, may be apart
Logits = Callable[[Any], list[torch.Tensor]]  # of a causal LM for some prompts


@dataclass(frozen=True, kw_only=True)
class AdaptedModel:
    """A base with an adapter, on the CPU, in the dtype of the forward pass.

    base: its settings, with the place where it was found. stored_dtype: of its files, None where it has none.
    targets: which modules have an adapter, as PEFT compares names.
    """

    causal_lm: Any
    base: ModelSettings
    stored_dtype: torch.dtype | None
    adapter: AdapterSettings
    targets: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Differences:
    """How far logits are apart, each as a share of the largest logit.

    equal: two forms of the same model in float32. rounding: what rounding the merged weights to `dtype` does; None
    where nothing is rounded. For ochat.json.
    """

    equal: float
    rounding: float | None = None
    dtype: str | None = None


def load_adapted(
    run: RunFolder,
    checkpoint: Path,
    manifest: CheckpointManifest,
    state: Mapping[str, torch.Tensor],
    *,
    base: str | None,
) -> AdaptedModel:
    """The model that a run with an adapter trained, as its forward pass computes it.

    checkpoint: for messages; its files are not read. manifest, state: what was read of it; the trained tensors have
    their names in the causal LM. base: where the base is now, None for where the run had it. Raises UserError where it
    is not the base that was trained on.
    """
    adapter = run.recipe.adapter
    assert adapter is not None
    settings = base_settings(run, base)
    config = load_base_config(settings, run.prepared.vocab_size)
    dtype, stored = next(iter(state.values())).dtype, getattr(config, "dtype", None)
    control = ControlTokens.of_prepared(run.path, run.prepared)
    loaded = load_base(
        settings,
        run.prepared,
        config,
        dtype=dtype,
        attention=None,
        seed=run.recipe.seed,
        control=control,
        for_qlora=adapter.type == "qlora",
    )
    causal_lm = loaded.causal_lm
    if manifest.adapter is not None and base_sha256(settings, causal_lm) != manifest.adapter.base_sha256:
        problem = f"its weights are not those that the adapter was trained on (sha256 in {checkpoint})"
        raise UserError(str(settings.path or "model.config"), problem, "name the right base with `--base`")
    if adapter.type == "qlora":
        quantise_base(causal_lm, device=torch.device("cpu"), dtype=dtype)
    if changes := config_changes(manifest.base_config, config_values(causal_lm.config)):
        problem = f"is not the base that the adapter was trained on: {listed(changes)}"
        raise UserError(str(settings.path), problem, "name the right one with `--base`")
    names = [name for name, _ in causal_lm.named_modules()]
    added = add_adapter(causal_lm, adapter, new_token_ids=loaded.new_token_ids, seed=run.recipe.seed)
    _put(causal_lm, state, checkpoint)
    return AdaptedModel(
        causal_lm=causal_lm.eval(),
        base=settings,
        stored_dtype=stored if isinstance(stored, torch.dtype) else None,
        adapter=adapter,
        targets=short_targets(names, added.modules),
    )


def base_settings(run: RunFolder, base: str | None) -> ModelSettings:
    """The settings of the base with where it is: a folder as the run found it, whatever this process's folder is."""
    settings, origin = run.recipe.model, run.base_origin
    if base is not None:
        if not Path(base).is_dir() and not is_hub_id(base):
            raise UserError(f"--base {base}", "neither a folder nor a model of the Hub", "name the base of the run")
        return settings.model_copy(update={"path": base, "revision": None})
    if origin is not None and origin.folder is not None:
        if not Path(origin.folder).is_dir():
            raise UserError(origin.folder, "the base of this run is no longer there", "name it with `--base`")
        return settings.model_copy(update={"path": origin.folder, "revision": None})
    if origin is not None and origin.hub_id is not None:
        return settings.model_copy(update={"path": origin.hub_id, "revision": origin.revision})
    return settings


def _put(causal_lm: Any, state: Mapping[str, torch.Tensor], checkpoint: Path) -> None:
    """Set everything that is trained, and nothing else, from a checkpoint."""
    trained = {name: found for name, found in causal_lm.named_parameters() if found.requires_grad}
    wrong = trained.keys() ^ state.keys()
    wrong |= {name for name in trained.keys() & state.keys() if trained[name].shape != state[name].shape}
    if wrong:
        problem = f"does not hold the tensors of this adapter: {some_names(sorted(wrong))}"
        raise UserError(checkpoint, problem, "export with the versions that trained it")
    for name, parameter in trained.items():
        parameter.data = state[name].clone()


def merge(adapted: AdaptedModel, logits: Logits | None) -> Differences | None:
    """Merge the adapter into the base in place, in float32, and store the result in the dtypes of the base.

    logits: of what the unmerged and the merged model are compared with; None to compare nothing.
    Raises UserError where the merged model gives other logits in float32.
    """
    causal_lm = adapted.causal_lm
    before = widen(causal_lm)
    unmerged = logits(causal_lm) if logits else None
    merge_adapter(causal_lm)
    for parameter in trained_parameters(causal_lm):
        parameter.requires_grad_(False)
    dtypes = _dtypes(causal_lm, before, adapted.stored_dtype)
    found = None
    if logits is not None and unmerged is not None:
        equal = _difference(unmerged, logits(causal_lm))
        if not equal <= _CLOSE:
            problem = f"merging the adapter moves logits by {equal:.1e} of the largest (at most {_CLOSE:g} is rounding)"
            raise UserError("adapter", problem, "not exported; export the adapter with `--adapter`")
        found = Differences(equal=equal)
        narrowed = {str(dtype).removeprefix("torch.") for dtype in dtypes.values() if dtype != torch.float32}
        if narrowed:
            narrow(causal_lm, dtypes)
            widen(causal_lm)
            rounding = _difference(unmerged, logits(causal_lm))
            found = Differences(equal=equal, rounding=rounding, dtype=", ".join(sorted(narrowed)))
    narrow(causal_lm, dtypes)
    return found


def _dtypes(causal_lm: Any, before: Mapping[str, torch.dtype], stored: torch.dtype | None) -> dict[str, torch.dtype]:
    """The dtype of every weight of the merged model: that of the base.

    before: by name, in the forward pass. Where it was 16 bits wide, it is taken; where it was float32, the base may be
    stored in 16 bits (`stored`), and weights that its family keeps in float32 stay so.
    """
    names = [name for name, _ in causal_lm.named_parameters()]
    narrow_ones = set(before.values()) - {torch.float32}
    if narrow_ones:
        usual = causal_lm.get_input_embeddings().weight
        embedding = next(name for name, parameter in causal_lm.named_parameters() if parameter is usual)
        return {name: before.get(name, before[embedding]) for name in names}
    kept = {
        part
        for attribute in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
        for part in getattr(causal_lm, attribute, None) or ()
    }
    main = stored or torch.float32
    return {name: torch.float32 if kept.intersection(name.split(".")) else main for name in names}


def write_adapter_of(adapted: AdaptedModel, folder: Path, logits: Logits) -> Differences:
    """Write the adapter as a folder of PEFT, load it with PEFT on the same base, and compare the logits in float32.

    The model is used up. Raises UserError for a base that cannot be named, and where PEFT gives other logits.
    """
    causal_lm, path = adapted.causal_lm, adapted.base.path
    if path is None:
        raise UserError("--adapter", "the base of this run has random weights, which no adapter can name", "merge it")
    token_ids = trained_ids(causal_lm)
    tensors = adapter_tensors(causal_lm)
    ending = f".{TOKEN_ROWS}"
    tables = [name.removeprefix(LEAD).removesuffix(ending) for name in tensors if name.endswith(ending)]
    write_adapter(
        folder,
        tensors,
        adapted.adapter,
        targets=adapted.targets,
        tables=tables,
        token_ids=token_ids,
        base=path if is_hub_id(path) and not Path(path).is_dir() else str(Path(path).resolve()),
        revision=adapted.base.revision,
    )
    widen(causal_lm)
    expected = logits(causal_lm)
    _to_base(causal_lm, token_ids)
    equal = _difference(expected, logits(load_adapter(causal_lm, folder)))
    if not equal <= _CLOSE:
        problem = f"PEFT gives other logits with this folder, by {equal:.1e} of the largest (at most {_CLOSE:g})"
        raise UserError(folder, problem, "not exported; export the merged model, without `--adapter`")
    return Differences(equal=equal)


@torch.no_grad()
def _to_base(causal_lm: Any, token_ids: Sequence[int]) -> None:
    """The base without adapter. Rows that the adapter must bring are zero, so that its own are seen to count."""
    remove_adapter(causal_lm)
    merge_rows(causal_lm)
    for table in (causal_lm.get_input_embeddings(), causal_lm.get_output_embeddings()):
        table.weight[list(token_ids)] = 0.0


def _difference(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> float:
    """The largest difference of logits, as a share of the largest logit; infinite where one is not finite."""
    worst = max(float((a - b).abs().max()) for a, b in zip(expected, found, strict=True))
    largest = max(float(a.abs().max()) for a in expected)
    return worst / largest if worst == worst and largest > 0 else float("inf")
