"""What the tests of the data pipeline share: a job in one call, and what came out of it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from tokenizers import Tokenizer

from data_pipeline.prepare.job import PrepareJob
from data_pipeline.prepare.prepare import prepare
from data_pipeline.prepared.dataset import Manifest, Split, manifest_digest
from data_pipeline.prompt.templates import TEMPLATES
from data_pipeline.prompt.tokenization import TokenizerSpec
from data_pipeline.prompt.tokenizer_files import find_tokenizer_files
from data_pipeline.prompt.tokenizer_loading import load_tokenizer_spec
from data_pipeline.read.chunks import ChunkSizes
from data_pipeline.settings.data import DataSettings

EXPERT = {"expert": {"condition": "GPT4 Correct", "weight": 1.0}}


class Row(NamedTuple):
    """One row of a prepared dataset."""

    id: str
    input_ids: list[int]
    loss_weights: list[float]


@functools.cache
def tokenizer_spec(folder: Path, template: str) -> TokenizerSpec:
    return load_tokenizer_spec(find_tokenizer_files(str(folder)), TEMPLATES[template])


@functools.cache
def control_ids(spec: TokenizerSpec) -> frozenset[int]:
    """The ids of every special token of a tokenizer, as the tokenizer itself has them."""
    return frozenset(
        i for i, token in Tokenizer.from_str(spec.backend).get_added_tokens_decoder().items() if token.special
    )


def source(path: Path | str, *, format: str = "messages", **more: Any) -> dict[str, Any]:
    """A source of class `expert`, unless `more` says how the class is found."""
    if format != "openchat" and not {"class", "class_field"} & set(more):
        more["class"] = "expert"
    return {"path": str(path), "format": format, **more}


def make_job(
    prepared_dir: Path,
    sources: list[dict[str, Any]],
    tokenizer_dir: Path,
    *,
    template: str = "openchat_3.5",
    max_length_tokens: int = 256,
    seed: int = 0,
    classes: dict[str, Any] | None = None,
    **data: Any,
) -> PrepareJob:
    """A job, from the values that a recipe would hold."""
    settings = {
        "prepared_dir": str(prepared_dir),
        "sources": sources,
        "classes": EXPERT if classes is None else classes,
        **data,
    }
    return PrepareJob(
        data=DataSettings.model_validate(settings),
        template=TEMPLATES[template],
        tokenizer=tokenizer_spec(tokenizer_dir, template),
        max_length_tokens=max_length_tokens,
        seed=seed,
    )


def prepare_rows(
    job: PrepareJob, *, num_workers: int = 1, sizes: ChunkSizes | None = None
) -> tuple[Manifest, list[Row]]:
    """Prepare, and return the manifest and the rows of the training split."""
    manifest, _ = prepare(job, num_workers=num_workers, sizes=sizes)
    return manifest, rows_of(Path(job.data.prepared_dir))


def rows_of(prepared_dir: Path, split: Split = "train") -> list[Row]:
    """The rows of the Arrow file, read without the code under test."""
    [file] = (prepared_dir / split).glob("*.arrow")
    table = pa.ipc.open_stream(file.read_bytes()).read_all()
    return [Row(row["id"], row["input_ids"], row["loss_weights"]) for row in table.to_pylist()]


def edit_manifest(prepared_dir: Path, edit: Callable[[dict[str, Any]], object], *, sealed: bool = True) -> None:
    """Change the manifest of a prepared dataset. sealed: with a digest that fits, as if it had been written so."""
    path = prepared_dir / "manifest.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    if sealed:
        content["digest"] = manifest_digest(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def without_hashes(prepared_dir: Path) -> None:
    """Make a prepared dataset one of a version that kept no hashes."""

    def drop(content: dict[str, Any]) -> None:
        del content["files"], content["digest"]

    edit_manifest(prepared_dir, drop, sealed=False)


def folder_state(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Inode, time of change and content of every file: equal before and after means that nothing was touched."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
