"""The prepared dataset on disk: the contract between preparation and training.

prepared_dir/
    manifest.json            what it was made from, class table, ledger, hashes of all files (`Manifest`)
    dataset_dict.json        so that `datasets.load_from_disk(prepared_dir)` works
    train/, validation/      one memory-mapped Arrow file each
    conditions/              held-out conversations under every condition but their own, for the condition matrix
    tokenizer/               the tokenizer folder that exports get: same ids, with the chat template
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline import nesting
from data_pipeline.conversation import TokenizedConversation
from data_pipeline.errors import UserError
from data_pipeline.file_hashes import FileHash
from data_pipeline.files import write_text
from data_pipeline.json_files import typed
from data_pipeline.ledger import Ledger

FORMAT_VERSION = 2
# Of the rules by which rows of text are read. A new one where a rule changes what is trained on, so that a dataset that
# an older version read is prepared again.
READER_VERSION = 3
Split = Literal["train", "validation", "conditions"]
SPLITS: tuple[Split, ...] = ("train", "validation", "conditions")
MANIFEST = "manifest.json"
TOKENIZER_FOLDER = "tokenizer"
DATA_FILE = "data-00000-of-00001.arrow"

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("class_id", pa.int32()),
        ("condition_id", pa.int32()),  # of the condition that the row is prompted with, in the manifest's `conditions`
        ("num_tokens", pa.int32()),
        ("num_supervised_tokens", pa.int32()),
        ("weight_sum", pa.float64()),  # of the row's float32 loss weights
        ("input_ids", pa.list_(pa.int32())),
        ("loss_weights", pa.list_(pa.float32())),
    ]
)
# A row of `conditions` is row `validation_row` of `validation` with another condition: the same supervised text.
SCHEMAS: dict[Split, pa.Schema] = {
    "train": SCHEMA,
    "validation": SCHEMA,
    "conditions": SCHEMA.append(pa.field("validation_row", pa.int32())),
}


class DamagedDataError(UserError):
    """A file of a prepared dataset is not the one that was written."""


@dataclass(frozen=True, kw_only=True)
class SplitCounts:
    """What a split holds. The names are those of the JSON."""

    conversations: int = 0
    tokens: int = 0
    supervised_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class PreparedClass:
    """A class of a prepared dataset. `weight` is None where weights or rewards are in the rows; counts cover both
    splits.

    smallest_weight, largest_weight: of its conversations, each the mean over its supervised tokens; None where there is
    none.
    effective_conversations: (sum w)^2 / sum w^2 over these (Kish's effective sample size).
    """

    name: str
    condition: str
    weight: float | None
    conversations: int
    tokens: int
    supervised_tokens: int
    weight_share: float
    smallest_weight: float | None
    largest_weight: float | None
    effective_conversations: float


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a prepared dataset was made from and holds.

    fingerprint: sha256 over everything that it was made from; equal fingerprints mean that the same was asked for.
    inputs: sha256 by name (`sources`, `tokenizer`, `template`, `settings`), to say which of them changed.
    conditions: every condition that a row is prompted with, by `condition_id`; those of the classes first.
    control_tokens: those that the template writes, without beginning-of-sequence; empty in manifests of versions that
    had only built-in templates.
    files: size and sha256 of every other file of the folder. digest: sha256 over everything else in this manifest.
    Both are empty in manifests of versions that kept no hashes.
    reader_version: READER_VERSION of the version that read the rows.
    """

    format_version: int
    fingerprint: str
    inputs: dict[str, str]
    template: str
    bos_token: str | None
    added_control_tokens: list[str]
    inference_condition: str
    max_length_tokens: int
    vocab_size: int
    classes: list[PreparedClass]
    conditions: list[str]
    splits: dict[str, SplitCounts]
    ledger: Ledger
    control_tokens: list[str] = field(default_factory=list)
    files: dict[str, FileHash] = field(default_factory=dict)
    digest: str = ""
    reader_version: int = 1

    def sealed(self, files: Mapping[str, FileHash]) -> Manifest:
        """This manifest with the hashes of its files and its own digest."""
        content = asdict(replace(self, files=dict(files)))
        return replace(self, files=dict(files), digest=manifest_digest(json.loads(json.dumps(content))))

    @staticmethod
    def load(prepared_dir: Path) -> Manifest | None:
        """The manifest of a folder, None where there is none."""
        path = prepared_dir / MANIFEST
        if not path.is_file():
            return None
        try:
            content = nesting.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            content = None
        return Manifest.from_json(content, where=str(path))

    @staticmethod
    def from_json(content: Any, *, where: str, remedy: str = "run `ochat prepare` again") -> Manifest:
        """A manifest from its JSON. Raises UserError for another format version, for content that its digest does not
        fit, and for anything else.
        """
        try:
            if content["format_version"] == FORMAT_VERSION:
                is_sealed = content.get("files") or content.get("digest")
                if is_sealed and content["digest"] != manifest_digest(content):
                    raise DamagedDataError(where, "has changed since it was written (its digest does not fit)", remedy)
                return typed(Manifest, content)
        except (AttributeError, KeyError, TypeError, ValueError):
            pass
        raise UserError(where, "was prepared by another version of ochat-train, or is damaged", remedy)

    def save(self, prepared_dir: Path) -> None:
        """Write the manifest. It is the last file to be written, so a folder that has one is complete."""
        write_text(prepared_dir / MANIFEST, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")


def manifest_digest(content: Mapping[str, Any]) -> str:
    """sha256 over the JSON of a manifest, whatever its layout, without the digest itself."""
    rest = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def rows_digest(files: Mapping[str, FileHash]) -> str:
    """sha256 over the hashes of the files that hold rows; empty without hashes."""
    if not files:
        return ""
    hashes = [files[name].sha256 if name in files else "" for name in (f"{split}/{DATA_FILE}" for split in SPLITS)]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def holds_only_prepared_files(folder: Path) -> bool:
    """Whether a folder is a prepared dataset and nothing else. With other files in it, it is never replaced."""
    tokenizer_files = ["tokenizer.json", "tokenizer_config.json", "template.json"]
    tokenizer_files += ["chat_template.jinja", "chat_template_mask.jinja"]
    ours = {MANIFEST, "dataset_dict.json", *(f"{TOKENIZER_FOLDER}/{name}" for name in tokenizer_files)}
    ours |= {f"{split}/{name}" for split in SPLITS for name in (DATA_FILE, "dataset_info.json", "state.json")}
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    return MANIFEST in found and found <= ours


class PreparedSplit:
    """The rows of one split, memory-mapped: nothing is read before it is asked for.

    num_tokens, num_supervised_tokens, class_id, condition_id: int32[rows]; weight_sum: float64[rows].
    validation_row: int32[rows], of split `conditions` only; empty in the others.
    """

    def __init__(self, prepared_dir: Path, split: Split) -> None:
        try:
            self._open(prepared_dir, split)
        except UserError:
            raise
        except Exception as error:  # whatever `datasets` and Arrow say of damaged files
            problem = f"cannot be read ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
            raise DamagedDataError(prepared_dir / split, problem, "run `ochat prepare` again") from error

    def _open(self, prepared_dir: Path, split: Split) -> None:
        import datasets

        self._table: pa.Table = datasets.load_from_disk(str(prepared_dir))[split].data.table
        self.num_tokens = self._column("num_tokens")
        self.num_supervised_tokens = self._column("num_supervised_tokens")
        self.weight_sum = self._column("weight_sum")
        self.class_id = self._column("class_id")
        self.condition_id = self._column("condition_id")
        self.validation_row = self._column("validation_row") if split == "conditions" else np.zeros(0, np.int32)
        ids, weights = self._table.column("input_ids").chunks, self._table.column("loss_weights").chunks
        self._chunk_starts = np.cumsum([0] + [len(chunk) for chunk in ids])
        self._ids = [(chunk.offsets.to_numpy(), chunk.values.to_numpy()) for chunk in ids]
        self._weights = [(chunk.offsets.to_numpy(), chunk.values.to_numpy()) for chunk in weights]
        if not self._lengths_fit():
            problem = "holds rows whose lengths do not fit their tokens, so it is damaged"
            raise DamagedDataError(prepared_dir / split / DATA_FILE, problem, "run `ochat prepare` again")

    def _lengths_fit(self) -> bool:
        """Whether every row has `num_tokens` ids and weights inside its file; reads no token."""
        for columns in (self._ids, self._weights):
            for start, (offsets, values) in zip(self._chunk_starts, columns, strict=False):
                lengths = self.num_tokens[start : start + len(offsets) - 1]
                is_inside = len(lengths) == len(offsets) - 1 and offsets[0] >= 0 and offsets[-1] <= len(values)
                if not is_inside or not np.array_equal(np.diff(offsets), lengths):
                    return False
        return bool((self.num_tokens >= 0).all())

    def __len__(self) -> int:
        return len(self.num_tokens)

    def _column(self, name: str) -> np.ndarray:
        return np.asarray(self._table.column(name).to_numpy())

    def __getitem__(self, row: int) -> TokenizedConversation:
        """Row `row` as views into the mapped file; nothing is copied."""
        chunk = int(np.searchsorted(self._chunk_starts, row, side="right")) - 1
        index = row - int(self._chunk_starts[chunk])
        (id_offsets, ids), (weight_offsets, weights) = self._ids[chunk], self._weights[chunk]
        return TokenizedConversation(
            input_ids=ids[id_offsets[index] : id_offsets[index + 1]],
            loss_weights=weights[weight_offsets[index] : weight_offsets[index + 1]],
        )

    def conversation_id(self, row: int) -> str:
        """The conversation's own id, or the place it was read from."""
        return str(self._table.column("id")[row])

    def rows_with_id(self, identifier: str) -> np.ndarray:
        """int64[n]: the rows of a conversation; several in split `conditions`, or where sources use the same ids."""
        return np.flatnonzero(pc.equal(self._table.column("id"), identifier).to_numpy())


def open_split(prepared_dir: Path, split: Split, manifest: Manifest) -> PreparedSplit:
    """A split that holds as many rows and tokens as its manifest says. Raises DamagedDataError for another number."""
    opened, expected = PreparedSplit(prepared_dir, split), manifest.splits[split]
    found = (len(opened), int(opened.num_tokens.sum()))
    if found != (expected.conversations, expected.tokens):
        problem = (
            f"holds {found[0]:,} rows of {found[1]:,} tokens, but its manifest says {expected.conversations:,} rows of "
            f"{expected.tokens:,} tokens"
        )
        raise DamagedDataError(prepared_dir / split, problem, "run `ochat prepare` again")
    return opened
