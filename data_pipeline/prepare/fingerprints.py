"""Whether a prepared dataset is still the one that a recipe asks for."""

from __future__ import annotations

import hashlib
import json

from data_pipeline.prepare.job import PrepareJob
from data_pipeline.prepared.dataset import FORMAT_VERSION
from data_pipeline.read import sources
from data_pipeline.settings import DataSettings


def input_fingerprints(job: PrepareJob, *, with_sources: bool = True) -> dict[str, str]:
    """sha256 of each input that decides the rows, by name. Reading the sources takes a second per GB and core."""
    settings = job.data.model_dump(mode="json", exclude={"prepared_dir"}, by_alias=True)
    settings |= {name: getattr(job, name) for name in ("max_length_tokens", "seed", "inference_condition")}
    settings |= {"format_version": FORMAT_VERSION}
    inputs = {
        "tokenizer": job.tokenizer.fingerprint,
        "template": sha256_of_text(repr(job.template)),
        "settings": sha256_of_text(json.dumps(settings, sort_keys=True)),
    }
    if with_sources:
        inputs["sources"] = sources_fingerprint(job.data)
    return inputs


def sources_fingerprint(settings: DataSettings) -> str:
    """sha256 of the content of all raw sources, read whole. Raises UserError where one is not on this machine."""
    contents = (sources.fingerprint(s, where=f"data.sources.{n}") for n, s in enumerate(settings.sources))
    return sha256_of_text("".join(contents))


def sha256_of_text(text: str) -> str:
    """Of its UTF-8 bytes, in hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
