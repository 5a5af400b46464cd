"""`ochat inspect`: what is in a prepared dataset, as a person wants to see it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from data_pipeline.dataset import SPLITS, TOKENIZER_FOLDER, ClassRow, Manifest, PreparedSplit, Split
from data_pipeline.errors import UserError

_RESET, _PLAIN, _CONTROL = "\033[0m", "\033[2m", "\033[35m"
_GREENS = (22, 28, 34, 40, 46)  # darker to brighter: lighter to heavier weight


def rows(prepared_dir: Path, split: Split, selected: slice) -> Iterator[dict[str, Any]]:
    """One document per row: row, id, class, condition, input_ids, loss_weights, text."""
    manifest, data, tokenizer = _open(prepared_dir, split)
    for row in range(*selected.indices(len(data))):
        tokens, info = data[row], manifest.classes[int(data.class_id[row])]
        yield {
            "row": row,
            "id": data.conversation_id(row),
            "class": info.name,
            "condition": manifest.conditions[int(data.condition_id[row])],
            "input_ids": tokens.input_ids.tolist(),
            "loss_weights": tokens.loss_weights.tolist(),
            "text": tokenizer.decode(tokens.input_ids.tolist(), skip_special_tokens=False),
        }


def text(prepared_dir: Path, split: Split, selected: slice, *, color: bool) -> str:
    """Class table, histogram of lengths, and rows with their tokens coloured by weight."""
    manifest, data, tokenizer = _open(prepared_dir, split)
    parts = [class_table(manifest.classes), _histogram(data.num_tokens), _legend(color)]
    for row in range(*selected.indices(len(data))):
        tokens, info = data[row], manifest.classes[int(data.class_id[row])]
        parts.append(f"\nrow {row}  id {data.conversation_id(row)}  class {info.name}  {len(tokens.input_ids)} tokens")
        parts.append(_colored(tokens.input_ids, tokens.loss_weights, tokenizer, color))
    return "\n".join(parts)


def class_table(classes: Sequence[ClassRow]) -> str:
    """The classes of a prepared dataset as a table; `effective`: ClassRow.effective_conversations."""
    head = ("class", "condition", "weight", "conversations", "effective", "tokens", "supervised", "weight share")
    lines = [
        (
            row.name,
            repr(row.condition),
            _weight_text(row),
            f"{row.conversations:,}",
            f"{row.effective_conversations:,.0f}",
            f"{row.tokens:,}",
            f"{row.supervised_tokens:,}",
            f"{row.weight_share:.1%}",
        )
        for row in classes
    ]
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in (head, *lines))


def _weight_text(row: ClassRow) -> str:
    if row.weight is not None:
        return f"{row.weight:.4g}"
    if row.smallest_weight is None or row.largest_weight is None:
        return "in rows"
    same = math.isclose(row.smallest_weight, row.largest_weight, rel_tol=1e-6)
    return f"{row.smallest_weight:.4g}" + ("" if same else f" to {row.largest_weight:.4g}")


def _open(prepared_dir: Path, split: Split) -> tuple[Manifest, PreparedSplit, Tokenizer]:
    assert split in SPLITS
    manifest = Manifest.load(prepared_dir)
    if manifest is None:
        raise UserError(f"{prepared_dir}: holds no prepared dataset; name the recipe's `data.prepared_dir`")
    data = PreparedSplit(prepared_dir, split)
    if not len(data):
        raise UserError(f"{prepared_dir}: split `{split}` is empty")
    tokenizer = Tokenizer.from_file(str(prepared_dir / TOKENIZER_FOLDER / "tokenizer.json"))
    return manifest, data, tokenizer


def _histogram(lengths: np.ndarray, width: int = 40) -> str:
    edges = [0] + [2**i for i in range(4, int(lengths.max()).bit_length() + 1)]
    counts, _ = np.histogram(lengths, bins=edges)
    lines = [f"lengths: mean {lengths.mean():.0f}, median {np.median(lengths):.0f}, longest {lengths.max()} tokens"]
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        if count:
            bar = "#" * max(1, round(width * count / counts.max()))
            lines.append(f"  {low:>7,} to {high - 1:>7,}  {bar:<{width}}  {count:,}")
    return "\n".join(lines)


def _legend(color: bool) -> str:
    if not color:
        return "tokens: supervised text is written as [weight|text]"
    names = ("light", ".", ".", ".", "heavy")
    scale = "".join(f"\033[38;5;{green}m{name}{_RESET} " for green, name in zip(_GREENS, names, strict=True))
    return f"tokens: {_PLAIN}not supervised{_RESET}, {_CONTROL}control token{_RESET}, supervised: {scale}"


def _colored(ids: np.ndarray, weights: np.ndarray, tokenizer: Tokenizer, color: bool) -> str:
    """Runs of tokens with equal weight, decoded together (a character may take several tokens)."""
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    heaviest = float(weights.max()) or 1.0
    pieces = []
    start = 0
    for end in range(1, len(ids) + 1):
        if end < len(ids) and weights[end] == weights[start] and ids[end] not in special and ids[start] not in special:
            continue
        piece = tokenizer.decode(ids[start:end].tolist(), skip_special_tokens=False)
        weight = float(weights[start])
        if not color:
            pieces.append(f"[{weight:.4g}|{piece}]" if weight else piece)
        elif weight:
            green = _GREENS[min(len(_GREENS) - 1, int(weight / heaviest * len(_GREENS)))]
            pieces.append(f"\033[38;5;{green}m{piece}{_RESET}")
        else:
            pieces.append(f"{_CONTROL if ids[start] in special else _PLAIN}{piece}{_RESET}")
        start = end
    return "".join(pieces)
