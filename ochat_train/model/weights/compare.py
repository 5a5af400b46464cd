"""Whether a base's files hold the weights that its configuration describes, decided from their headers alone.

`transformers` renames and joins tensors while it loads them (the experts of a layer are one tensor in memory), in ways
that differ between families and versions. So its own loading code runs here, on tensors that have the shapes of the
headers and no values, and its own report is what counts.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from data_pipeline.errors import Problem, UserError, UserErrors
from data_pipeline.text_rules import some_names
from ochat_train.model.config import model_without_weights
from ochat_train.model.weights.files import INDEX, SINGLE_FILE, Headers, TensorHeader, first_line, stored_name
from ochat_train.system.pretrained import parts_of

_BYTES = {"U8": 1, "I8": 1, "F16": 2, "BF16": 2, "F32": 4}  # of a number, for what packed weights are stored as
_FLOATING = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# What a wrapper around a model puts before the names, when its weights are saved instead of the model's.
_WRAPPERS = ("module.", "_orig_mod.", "model.module.", "base_model.model.", "causal_lm.", "_fsdp_wrapped_module.")
# Old files hold them; `transformers` computes them.
_BUFFERS = r"rotary_emb\.inv_freq|(^|\.)position_ids$|\.(attn|attention)\.masked_bias$"


@dataclass(frozen=True, kw_only=True)
class WeightReport:
    """What files hold, against the model. Names as in the files, `missing` and `mismatched` as in the model.

    mismatched: (name, shape that was found, shape that the configuration says). quantised: name -> dtype.
    ignored: what `transformers` leaves out on purpose, such as layers that predict several tokens ahead.
    tied: pairs (copy, original) that the configuration makes one tensor; stored_twice: those of them that the files
    hold both of, as pairs of names in the files.
    failure: why nothing could be compared.
    """

    missing: Sequence[str] = ()
    unexpected: Sequence[str] = ()
    mismatched: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]] = ()
    quantised: Mapping[str, str]
    ignored: Sequence[str] = ()
    tied: Mapping[str, str]
    stored_twice: Sequence[tuple[str, str]] = ()
    failure: str | None = None


def compare_weights(config: Any, headers: Headers) -> WeightReport:
    """Load headers instead of weights. config: the `transformers` config of the base."""
    empty = model_without_weights(copy.deepcopy(config))
    model_class = type(empty)
    headers = _without_packing(headers, empty)
    tied: dict[str, str] = dict(getattr(empty, "all_tied_weights_keys", {}))
    quantised = {name: found.dtype for name, found in headers.items() if found.dtype not in _FLOATING}
    ignored = _ignored(empty, headers)
    integers = {name for name, buffer in empty.named_buffers() if not buffer.is_floating_point()}
    quantised = {name: dtype for name, dtype in quantised.items() if name not in ignored and name not in integers}
    try:
        info = _loaded_without_values(model_class, config, headers)
    except Exception as error:  # joining tensors of shapes that do not fit raises whatever torch raises
        gaps = _gaps(headers)
        return WeightReport(
            missing=gaps, quantised=quantised, ignored=ignored, tied=tied, failure=None if gaps else first_line(error)
        )
    missing = set(info["missing_keys"])
    twice = [(copied, original) for copied, original in tied.items() if not missing & {copied, original}]
    stored = [(stored_name(copied, headers), stored_name(original, headers)) for copied, original in twice]
    for copied, original in tied.items():
        if len(missing & {copied, original}) == 1:
            missing -= {copied, original}  # one is there, and is both
        else:
            missing.discard(copied)  # both missing: say it once
    if not missing and info["mismatched_keys"]:
        missing = set(_gaps(headers))  # of an expert that is missing, only the shape of all experts tells
    return WeightReport(
        missing=sorted(missing),
        unexpected=sorted(set(info["unexpected_keys"]) - set(ignored)),
        mismatched=sorted((name, tuple(found), tuple(wanted)) for name, found, wanted in info["mismatched_keys"]),
        quantised=quantised,
        ignored=ignored,
        tied=tied,
        stored_twice=[(copied, original) for copied, original in stored if copied and original],
    )


def _loaded_without_values(model_class: Any, config: Any, headers: Headers) -> dict[str, Any]:
    """The report of `from_pretrained` on tensors without values."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with _quiet(), _one_thread(), FakeTensorMode(allow_non_fake_inputs=True):
        tensors = {
            name: torch.empty(found.shape, dtype=_FLOATING.get(found.dtype, torch.float32))
            for name, found in headers.items()
        }
        _, info = model_class.from_pretrained(
            None,
            config=_untied(config),  # tied tensors are compared by value, and there are none
            state_dict=tensors,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
    found: dict[str, Any] = info
    return found


def _without_packing(headers: Headers, model: Any) -> Headers:
    """Headers of a base that bitsandbytes stored in 4 bits as those of the same weights in 16; of any other, the same.

    model: without weights. A weight whose packed size is not half that of the model's stays packed.
    """
    found = dict(headers)
    for name, weight in model.state_dict().items():
        parts = [part for part in headers if part.startswith(f"{name}.")]
        if not any(".quant_state.bitsandbytes__" in part for part in parts) or name not in headers:
            continue
        stored = headers[name]
        num_bytes = math.prod(stored.shape) * _BYTES.get(stored.dtype, 0)
        if 2 * num_bytes == weight.numel():
            found[name] = replace(stored, dtype="BF16", shape=tuple(weight.shape))
            for part in parts:
                del found[part]
    return found


def _untied(config: Any) -> Any:
    config = copy.deepcopy(config)
    config.tie_word_embeddings = False
    for name in getattr(config, "sub_configs", {}):
        if (part := getattr(config, name, None)) is not None:
            part.tie_word_embeddings = False
    # the weights are compared, and a quantised base is refused before
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    return config


@contextmanager
def _one_thread() -> Iterator[None]:
    """`transformers` loads in several threads by default; tensors without values belong to one."""
    before = os.environ.get("HF_DEACTIVATE_ASYNC_LOAD")
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
    try:
        yield
    finally:
        del os.environ["HF_DEACTIVATE_ASYNC_LOAD"]
        if before is not None:
            os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = before


@contextmanager
def _quiet() -> Iterator[None]:
    """What is found here is said once, by this file; the libraries would print a table and tracebacks."""
    loggers = [logging.getLogger(name) for name in ("transformers", "torch._subclasses.fake_tensor")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _gaps(headers: Headers) -> list[str]:
    """Names that are missing from a row of numbered neighbours: expert 2 has no tensor that experts 1 and 3 have."""
    numbers: dict[str, dict[str, set[int]]] = {}
    for name in headers:
        parts = name.split(".")
        places = [place for place, part in enumerate(parts) if part.isdecimal()]
        if len(places) > 1:  # a layer's number, and that of a part of the layer
            start, end = ".".join(parts[: places[-1]]), ".".join(parts[places[-1] + 1 :])
            numbers.setdefault(start, {}).setdefault(end, set()).add(int(parts[places[-1]]))
    return sorted(
        f"{start}.{number}.{end}"
        for start, ends in numbers.items()
        for end, there in ends.items()
        for number in set().union(*ends.values()) - there
    )


def _ignored(model: Any, headers: Headers) -> list[str]:
    """Names that `transformers` leaves out silently."""
    patterns = [*(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()), _BUFFERS]
    expression = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
    known = model.state_dict().keys()
    return sorted(name for name in headers if name not in known and expression.search(name))


def check_report(report: WeightReport, config: Any, place: str) -> None:
    """Raise UserError with every difference between files and model. place: the base, as the recipe names it."""
    found = list(_differences(report, config, place))
    if len(found) == 1:
        raise UserError(found[0].place, found[0].problem, found[0].remedy)
    if found:
        raise UserErrors(place, f"{len(found)} reasons why its weights are not those of its config.json:", found)


def refuse_quantised(config: Any, place: str, *, for_qlora: bool) -> bool:
    """Raise UserError for a base whose configuration says that its weights are quantised, unless qlora can take it.

    for_qlora: whether the base is to be quantised, which takes weights that bitsandbytes has stored in 4 bits. Returns
    whether they are stored so.
    """
    found = {id(part): getattr(part, "quantization_config", None) for part in parts_of(config)}  # also of a text part
    settings = next((settings for settings in found.values() if settings is not None), None)
    if settings is None:
        return False
    values = settings if isinstance(settings, Mapping) else vars(settings)
    method = str(getattr(values.get("quant_method"), "value", values.get("quant_method", "an unknown method")))
    is_4bit = method == "bitsandbytes" and bool(values.get("load_in_4bit", values.get("_load_in_4bit")))
    if is_4bit and for_qlora and found[id(config)] is not None:
        return True
    problem = f"its config.json says that its weights are quantised ({method})"
    if is_4bit:
        raise UserError(place, problem, f"{_UNQUANTISED}, or train an adapter on it: `adapter.type: qlora`")
    if for_qlora:
        problem += "; qlora takes bases in 16 bits, and those that bitsandbytes stored in 4 bits"
    raise UserError(place, problem, _UNQUANTISED)


_UNQUANTISED = "name the base that it was made from, or a copy of it that was saved in bfloat16"
_ANOTHER = "its files and its config.json are of different models, or the upload is not whole: fetch the base again"


def _differences(report: WeightReport, config: Any, place: str) -> Iterator[Problem]:
    if report.quantised:
        kinds = ", ".join(sorted(set(report.quantised.values())))
        yield Problem(
            place=place,
            problem=f"{len(report.quantised)} tensors are quantised ({kinds}): {some_names(list(report.quantised))}",
            remedy=_UNQUANTISED,
        )
        return  # names and shapes of packed weights say nothing more
    if report.failure is not None:
        yield Problem(place=place, problem=f"its weights cannot be loaded: {report.failure}", remedy=_ANOTHER)
    prefix = next((p for p in _WRAPPERS if report.unexpected and all(p in _start(n) for n in report.unexpected)), None)
    if report.missing:
        problem = f"its files lack weights of the model ({len(report.missing)}): {some_names(report.missing)}"
        yield Problem(place=place, problem=problem, remedy="" if prefix else _ANOTHER)
    if report.unexpected:
        problem = f"its files hold {len(report.unexpected)} tensors that the model does not have: "
        remedy = _ANOTHER
        if prefix:
            remedy = f"take `{prefix}` out of the names: the weights of a wrapper were saved instead of the model's"
        yield Problem(place=place, problem=problem + some_names(report.unexpected), remedy=remedy)
    yield from _wrong_shapes(report, config, place)


def _start(name: str) -> str:
    return ".".join(name.split(".")[:3]) + "."


def _wrong_shapes(report: WeightReport, config: Any, place: str) -> Iterator[Problem]:
    if not report.mismatched:
        return
    shown = [f"{name} is {_shape(found)} instead of {_shape(wanted)}" for name, found, wanted in report.mismatched]
    vocabulary = config.get_text_config().vocab_size
    rows = {found[0] for _, found, wanted in report.mismatched if found[1:] == wanted[1:] and wanted[0] == vocabulary}
    remedy = _ANOTHER
    if len(rows) == 1 and all(wanted[0] == vocabulary for _, _, wanted in report.mismatched):
        remedy = f"its config.json must say `vocab_size: {rows.pop()}`, as many rows as its files hold"
    problem = f"its files hold {len(report.mismatched)} weights of other shapes than its config.json says: "
    yield Problem(place=place, problem=problem + some_names(shown), remedy=remedy)


def _shape(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def check_stored_twice(report: WeightReport, headers: Headers, place: str) -> None:
    """Raise UserError where a base's configuration ties two tensors that its files hold with different values.

    Reads both, a part at a time. headers: of files on this machine.
    """
    for copied, original in report.stored_twice:
        if not _equal(headers[copied], copied, headers[original], original):
            raise tied_but_different(copied, original, place)


def tied_but_different(copied: str, original: str, place: str) -> UserError:
    """What to say of it."""
    return UserError(
        place,
        f"its config.json ties {copied} to {original}, and its files hold both with different values",
        "set `tie_word_embeddings: false` in its config.json to train both, or remove the first from its files",
    )


_ROWS_AT_ONCE = 4096


def check_second_set(headers: Headers, second: Headers | None, place: str) -> None:
    """Raise UserError where a folder holds two sets of weights that differ: which of them is the base cannot be known.

    headers: of the files that are loaded. second: of `second_set`. Reads both where their headers are the same.
    """
    if second is None:
        return
    for name in sorted(headers.keys() | second.keys()):
        one, other = headers.get(name), second.get(name)
        if one is None or other is None or not _equal(one, name, other, name):
            problem = f"holds other weights in {SINGLE_FILE} than in the files that {INDEX} names: {name} differs"
            raise UserError(place, problem, "remove those that are not the base")


def _equal(first: TensorHeader, one: str, second: TensorHeader, other: str) -> bool:
    from safetensors import safe_open

    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    with safe_open(first.file, framework="pt") as left, safe_open(second.file, framework="pt") as right:
        a, b = left.get_slice(one), right.get_slice(other)
        if not first.shape:
            return torch.equal(left.get_tensor(one), right.get_tensor(other))
        return all(
            torch.equal(a[start : start + _ROWS_AT_ONCE], b[start : start + _ROWS_AT_ONCE])
            for start in range(0, first.shape[0], _ROWS_AT_ONCE)
        )
