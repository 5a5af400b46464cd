"""Whether a prepared dataset is still what a recipe asks for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any

from data_pipeline.prepare.job import PrepareJob
from data_pipeline.prepared.dataset import FORMAT_VERSION
from data_pipeline.prompt.base_template.template import BaseTemplate
from data_pipeline.prompt.prompt_format import AnyTemplate
from data_pipeline.prompt.uniform import uniform_format
from data_pipeline.read import sources
from data_pipeline.settings.data import DataSettings


def input_fingerprints(job: PrepareJob, *, with_sources: bool = True) -> dict[str, str]:
    """sha256 of each input that decides the rows, by name. Sources that have changed are read, a second per GB."""
    settings = _without_unused(job.data.model_dump(mode="json", exclude={"prepared_dir"}, by_alias=True))
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


# Keys that are newer than the first version of the fingerprint, with their defaults. One counts where it is set to
# something else, so datasets that were prepared before it came are still what their recipe asks for.
_LATER_DATA_KEYS: Mapping[str, Any] = {"part_weights": None, "ignore_fields": []}
_LATER_SOURCE_KEYS: Mapping[str, Any] = {
    "subset": None,
    "revision": None,
    "think_tags": False,
    "fields": None,
    "answer_classes": None,
}


def _without_unused(data: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of data without the later keys that are at their default."""

    def used(values: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if key not in later or value != later[key]}

    return used(data, _LATER_DATA_KEYS) | {"sources": [used(source, _LATER_SOURCE_KEYS) for source in data["sources"]]}


def sources_fingerprint(settings: DataSettings, *, progress: Callable[[int], None] = lambda num_bytes: None) -> str:
    """sha256 of the content of all raw sources. progress: called with the bytes read since the last call.

    Raises UserError where one is not on this machine.
    """
    contents = (
        sources.fingerprint(source, where=f"data.sources.{number}", progress=progress)
        for number, source in enumerate(settings.sources)
    )
    return sha256_of_text("".join(contents))


def template_fingerprint(template: AnyTemplate) -> str:
    """sha256 of everything that decides the prompts of a template.

    A key of the template that is at its default does not count. So a new key leaves the fingerprints of templates that
    do not use it, and datasets prepared with them, unchanged. Formats of the first version keep their fingerprint.
    """
    if isinstance(template, BaseTemplate):
        return sha256_of_text(json.dumps(asdict(template) | {"place": ""}, sort_keys=True))
    uniform = uniform_format(template)
    if uniform is not None:
        values = {field.name: getattr(uniform, field.name) for field in fields(uniform)}
        return sha256_of_text(f"Template({', '.join(f'{name}={value!r}' for name, value in values.items())})")
    return sha256_of_text(json.dumps(template.model_dump(mode="json", exclude_defaults=True), sort_keys=True))


def sha256_of_text(text: str) -> str:
    """sha256 of its UTF-8 bytes, as hexadecimal text."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
