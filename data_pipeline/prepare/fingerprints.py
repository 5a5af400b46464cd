"""Whether a prepared dataset is still what a recipe asks for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from data_pipeline.prepare.job import PrepareJob
from data_pipeline.prepared.dataset import FORMAT_VERSION
from data_pipeline.prompt.templates import Template
from data_pipeline.read import sources
from data_pipeline.section import Section
from data_pipeline.settings import DataSettings


def input_fingerprints(job: PrepareJob, *, with_sources: bool = True) -> dict[str, str]:
    """sha256 of each input that decides the rows, by name. Sources that have changed are read, a second per GB."""
    settings = _data_settings(job.data)
    settings |= {name: getattr(job, name) for name in ("max_length_tokens", "seed", "inference_condition")}
    settings |= {"format_version": FORMAT_VERSION}
    inputs = {
        "tokenizer": job.tokenizer.fingerprint,
        "template": template_fingerprint(job.template),
        "settings": sha256_of_text(json.dumps(settings, sort_keys=True)),
    }
    if with_sources:
        inputs["sources"] = sources_fingerprint(job.data)
    return inputs


# The keys in the first version of the fingerprint of the settings. All of them are part of it.
_SOURCE_KEYS = frozenset(("path", "format", "class", "class_field", "reward_field", "split"))
_DATA_KEYS = frozenset(
    (
        *("classes", "classes_from", "beta", "reward_clip", "condition_dropout", "sources", "validation_ratio"),
        *("validation_seed", "only_classes", "overlong", "bad_rows"),
    )
)


def _data_settings(data: DataSettings) -> dict[str, Any]:
    """What the recipe says of the data. A newer key counts where it is not at its default: see template_fingerprint."""
    settings = data.model_dump(mode="json", exclude={"prepared_dir"}, by_alias=True)
    for written, source in zip(settings["sources"], data.sources, strict=True):
        _drop_unused(written, source, _SOURCE_KEYS)
    _drop_unused(settings, data, _DATA_KEYS)
    return settings


def _drop_unused(written: dict[str, Any], section: Section, first_keys: frozenset[str]) -> None:
    for name, field in type(section).model_fields.items():
        key = field.alias or name
        if key not in first_keys and getattr(section, name) == field.get_default(call_default_factory=True):
            written.pop(key, None)


def sources_fingerprint(settings: DataSettings, *, progress: Callable[[int], None] = lambda num_bytes: None) -> str:
    """sha256 of the content of all raw sources. progress: called with the bytes read since the last call.

    Raises UserError where one is not on this machine.
    """
    contents = (
        sources.fingerprint(source, where=f"data.sources.{number}", progress=progress)
        for number, source in enumerate(settings.sources)
    )
    return sha256_of_text("".join(contents))


# The fields of a template in the first version of its fingerprint. All of them are part of it.
_TEMPLATE_FIELDS = (
    "name",
    "role_names",
    "system_name",
    "header_open",
    "header_close",
    "header_suffix",
    "content_lead",
    "end_of_turn",
    "after_turn",
    "inference_condition",
)


def template_fingerprint(template: Template) -> str:
    """sha256 of everything that decides the prompts of a template.

    A field that is not in _TEMPLATE_FIELDS needs a default, and counts where a template sets it to something else. So a
    new field leaves the fingerprints of templates that do not use it, and datasets prepared with them, unchanged.
    """
    values = {name: getattr(template, name) for name in _TEMPLATE_FIELDS}
    for field in fields(template):
        if field.name not in _TEMPLATE_FIELDS and getattr(template, field.name) != field.default:
            values[field.name] = getattr(template, field.name)
    values["role_names"] = dict(values["role_names"])
    return sha256_of_text(f"Template({', '.join(f'{name}={value!r}' for name, value in values.items())})")


def sha256_of_text(text: str) -> str:
    """sha256 of its UTF-8 bytes, as hexadecimal text."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
