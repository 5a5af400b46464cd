"""One split of a prepared dataset, open for looking at: selecting rows, and what is in them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.look.tokens import ShownToken, TokenReader
from data_pipeline.prepared.dataset import SPLITS, TOKENIZER_FOLDER, Manifest, PreparedSplit, Split
from data_pipeline.prepared.integrity import check_sizes
from data_pipeline.prompt.chat_folder import stored_template
from data_pipeline.prompt.library_errors import stored_tokenizer
from data_pipeline.text_rules import shown

_HOW_A_SPLIT_IS_FILLED = {
    "validation": "set data.validation_ratio above 0 and run `ochat prepare` again",
    "conditions": "it holds held-out conversations under the conditions of other classes, so it needs "
    "data.validation_ratio above 0 and two conditions",
}


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which rows to look at: those that match everything given, and of them numbers start to stop - 1 (None: all).

    find: a text in the row, which shows control tokens the way they are written. of_every_class: about `stop` rows in
    all, of every class the same number and at least one; start, class_name, conversation_id and find are not given.
    """

    start: int = 0
    stop: int | None = None
    class_name: str | None = None
    conversation_id: str | None = None
    find: str | None = None
    of_every_class: bool = False


@dataclass(frozen=True, kw_only=True)
class ShownRow:
    """A row with its tokens read. number: its place in the split."""

    number: int
    conversation_id: str
    class_name: str
    condition: str
    tokens: list[ShownToken]

    @property
    def num_supervised(self) -> int:
        """Tokens with a weight."""
        return sum(token.weight != 0 for token in self.tokens)

    @property
    def weight_sum(self) -> float:
        """Sum of the loss weights."""
        return sum(token.weight for token in self.tokens)


class Inspection:
    """A split and everything that is needed to read it. Raises UserError where there is nothing to look at."""

    def __init__(self, prepared_dir: Path, split: Split) -> None:
        assert split in SPLITS
        manifest = Manifest.load(prepared_dir)
        if manifest is None:
            raise UserError(prepared_dir, "holds no prepared dataset", "name the recipe's `data.prepared_dir`")
        check_sizes(prepared_dir, manifest)
        self.prepared_dir, self.split, self.manifest = prepared_dir, split, manifest
        self.data = PreparedSplit(prepared_dir, split)
        if not len(self.data):
            remedy = _HOW_A_SPLIT_IS_FILLED.get(split, "run `ochat prepare` again")
            raise UserError(prepared_dir, f"split `{split}` is empty", remedy)
        self._tokenizer = stored_tokenizer(prepared_dir / TOKENIZER_FOLDER / "tokenizer.json")
        self._read = TokenReader(self._tokenizer, stored_template(prepared_dir / TOKENIZER_FOLDER, manifest.template))

    @property
    def heaviest_weight(self) -> float:
        """The largest mean weight of a conversation, which weights are shown in proportion to."""
        return max((row.largest_weight or 0.0 for row in self.manifest.classes), default=0.0) or 1.0

    def select(self, selection: Selection) -> list[int]:
        """Numbers of the selected rows. Raises UserError where none matches, or fewer than asked for by number."""
        if selection.of_every_class:
            assert selection.stop is not None, "a number of rows to choose"
            return self._of_every_class(selection.stop)
        rows = self._candidates(selection)
        if selection.find is not None:
            # An empty A:B also looks for row A, to learn whether it exists.
            most = None if selection.stop is None else max(selection.stop, selection.start + 1)
            rows = self._holding(selection.find, rows, most=most)
        if not len(rows):
            raise UserError(f"{self._described(selection)}", "no row matches")
        if selection.start >= len(rows):
            asked = f"--rows {selection.start}:{'' if selection.stop is None else selection.stop}"
            raise UserError(
                asked,
                f"{self._described(selection)} has {len(rows):,} rows",
                f"give 0:{len(rows)} or a part of it",
            )
        return [int(row) for row in rows[selection.start : selection.stop]]

    def row(self, number: int) -> ShownRow:
        """One row with its tokens."""
        return ShownRow(
            number=number,
            tokens=self._read(self.data[number], condition=self._condition(number)),
            **self._names(number),
        )

    def document(self, number: int) -> dict[str, Any]:
        """One row as `ochat inspect --json` prints it."""
        tokens, names = self.data[number], self._names(number)
        return {
            "row": number,
            "id": names["conversation_id"],
            "class": names["class_name"],
            "condition": names["condition"],
            "input_ids": tokens.input_ids.tolist(),
            "loss_weights": tokens.loss_weights.tolist(),
            "text": self._text(number),
        }

    def class_lengths(self) -> Mapping[str, np.ndarray]:
        """Class -> int32[n], tokens of its rows in this split; classes without a row are left out."""
        found = {row.name: self.data.num_tokens[self.data.class_id == i] for i, row in enumerate(self.manifest.classes)}
        return {name: lengths for name, lengths in found.items() if len(lengths)}

    def _names(self, number: int) -> dict[str, str]:
        return {
            "conversation_id": self.data.conversation_id(number),
            "class_name": self.manifest.classes[int(self.data.class_id[number])].name,
            "condition": self._condition(number),
        }

    def _condition(self, number: int) -> str:
        return self.manifest.conditions[int(self.data.condition_id[number])]

    def _text(self, number: int) -> str:
        return str(self._tokenizer.decode(self.data[number].input_ids.tolist(), skip_special_tokens=False))

    def _of_every_class(self, about: int) -> list[int]:
        """The first rows of each class, by number; the data of a class are often one after the other."""
        rows = [np.flatnonzero(self.data.class_id == class_id) for class_id in np.unique(self.data.class_id)]
        most = -(-about // len(rows))
        return sorted(int(row) for of_class in rows for row in of_class[:most])

    def _candidates(self, selection: Selection) -> np.ndarray:
        rows = np.arange(len(self.data))
        if selection.class_name is not None:
            names = [row.name for row in self.manifest.classes]
            if selection.class_name not in names:
                raise UserError(
                    f"--class {shown(selection.class_name)}",
                    "no such class",
                    f"classes: {', '.join(map(shown, names))}",
                )
            rows = np.flatnonzero(self.data.class_id == names.index(selection.class_name))
        if selection.conversation_id is not None:
            rows = np.intersect1d(rows, self.data.rows_with_id(selection.conversation_id))
        return rows

    def _holding(self, text: str, rows: np.ndarray, *, most: int | None) -> np.ndarray:
        """The first rows that hold a text, `most` of them at most."""
        matches = (int(row) for row in rows if text in self._text(int(row)))
        return np.array(list(itertools.islice(matches, most)), dtype=np.int64)

    def _described(self, selection: Selection) -> str:
        parts = (("--class", selection.class_name), ("--id", selection.conversation_id), ("--find", selection.find))
        given = [f"{option} {shown(value)}" for option, value in parts if value is not None]
        return " ".join([f"split `{self.split}` of {self.prepared_dir}", *(["with", *given] if given else [])])
