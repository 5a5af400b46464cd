"""The base with its weights. Nothing that its files do not hold is trained as if it did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from data_pipeline.errors import UserError
from data_pipeline.text_rules import some_names
from ochat_train.model.base_class import auto_class, freeze_other_parts, new_model
from ochat_train.model.weights.compare import (
    WeightReport,
    check_report,
    check_second_set,
    check_stored_twice,
    compare_weights,
    refuse_quantised,
    tied_but_different,
)
from ochat_train.model.weights.files import downloaded_weight_files, read_headers, second_set
from ochat_train.recipe.sections.model import ModelSettings


def load_weights(
    settings: ModelSettings,
    config: Any,
    *,
    dtype: torch.dtype,
    attention: str | None,
    seed: int,
    for_qlora: bool = False,
) -> Any:
    """The causal LM of `transformers` with the base's weights, or random ones for a recipe with `model.config`.

    for_qlora: take a base that bitsandbytes stored in 4 bits, and leave its weights so (adapter/quantize.py).
    Raises UserError where the files of the base do not hold what its config.json describes: before the weights are
    loaded, from their headers, and afterwards, from the report of `transformers`.
    """
    if settings.config is not None:
        torch.manual_seed(seed)
        causal_lm = new_model(config, dtype=dtype, attn_implementation=attention)
        freeze_other_parts(causal_lm)
        return causal_lm
    place = str(settings.path)
    on_cpu = {"device_map": {"": "cpu"}} if refuse_quantised(config, place, for_qlora=for_qlora) else {}
    named = weight_file_name(config)
    headers = read_headers(downloaded_weight_files(settings, named=named))
    report = compare_weights(config, headers)
    check_report(report, config, place)
    check_stored_twice(report, headers, place)
    check_second_set(headers, second_set(settings, named=named), place)
    try:
        causal_lm, found = auto_class(config).from_pretrained(
            settings.path,
            revision=settings.revision,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **on_cpu,
        )
    except Exception as error:  # whatever a damaged file, a version or a package raises
        raise UserError("model.path", f"{place}: cannot be loaded: {error}") from None
    _check_loaded(causal_lm, found, report, place)
    _check_finite(causal_lm, place)
    _set_generation_config(causal_lm)
    freeze_other_parts(causal_lm)
    return causal_lm


def weight_file_name(config: Any) -> str | None:
    """The file of the weights that a base's configuration names itself."""
    named = getattr(config, "transformers_weights", None)
    if named is not None and (not isinstance(named, str) or Path(named).name != named):
        raise UserError("model.path", f"its config.json names the file {named!r}", "use another base")
    return named


def _check_loaded(causal_lm: Any, found: dict[str, Any], report: WeightReport, place: str) -> None:
    """Raise UserError unless every weight came from the files, and what should be one tensor is one."""
    wrong = {kind: sorted(map(str, found.get(kind) or ())) for kind in ("missing_keys", "unexpected_keys")}
    wrong["unexpected_keys"] = sorted(set(wrong["unexpected_keys"]) - set(report.ignored))
    wrong["mismatched_keys"] = sorted(str(entry[0]) for entry in found.get("mismatched_keys") or ())
    for kind, names in wrong.items():
        if names:
            said = f"{len(names)} weights are {kind.removesuffix('_keys')} after loading: {some_names(names)}"
            raise UserError(place, said, "fetch the base again, or use another one")
    for copied, original in report.tied.items():
        one, other = causal_lm.get_parameter(copied), causal_lm.get_parameter(original)
        if one is not other:
            if not torch.equal(one, other):
                raise tied_but_different(copied, original, place)
            causal_lm.tie_weights()  # transformers 5.3 left two equal tensors untied


def _check_finite(causal_lm: Any, place: str) -> None:
    """Raise UserError for weights that are NaN or infinite: one of them makes every mean row, and soon every loss, so.

    Reads each weight once and keeps nothing. Weights that are stored in 4 bits are not looked at.
    """
    wrong = []
    for name, parameter in causal_lm.named_parameters():
        if parameter.is_floating_point() and parameter.numel():
            ends = torch.stack(torch.aminmax(parameter.detach()))  # NaN where one of the numbers is
            if not torch.isfinite(ends).all():
                wrong.append(name)
    if wrong:
        problem = f"{len(wrong)} of its weights hold NaN or infinite numbers: {some_names(wrong)}"
        raise UserError(place, problem, "fetch the base again, or use another one")


def _set_generation_config(causal_lm: Any) -> None:
    """Settings for generating that `transformers` would refuse to save (a temperature without sampling) are dropped."""
    import transformers

    try:
        if causal_lm.generation_config is not None:
            causal_lm.generation_config.validate(strict=True)
    except ValueError:
        causal_lm.generation_config = transformers.GenerationConfig.from_model_config(causal_lm.config)
