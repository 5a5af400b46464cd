"""Rows of embedding and head for control tokens: those of new tokens, and those that the base never trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from data_pipeline.errors import UserError
from data_pipeline.prepared.dataset import TOKENIZER_FOLDER, Manifest
from data_pipeline.prompt.library_errors import stored_tokenizer
from data_pipeline.prompt.templates import TEMPLATES
from ochat_train.model.base_class import is_tied
from ochat_train.model.weights.files import Headers, stored_name

# A row counts as untrained if its largest number is this much smaller than that of the middle row: weight decay shrinks
# rows that are never used without ever making them exactly zero.
_SMALL = 1e-8
# or if this many other rows have the same bits: trained rows differ.
_ALIKE = 3


@torch.no_grad()
def add_token_rows(causal_lm: Any, *, vocab_size: int) -> None:
    """Grow embedding and head to `vocab_size` rows, each new one the mean of the old ones; also a bias of the head.

    Tied embeddings stay tied. Never shrinks: bases may have spare rows. Raises UserError where `transformers` unties
    them.
    """
    old = causal_lm.get_input_embeddings().weight.shape[0]
    if vocab_size <= old:
        return
    tied = _shares_table(causal_lm)
    causal_lm.resize_token_embeddings(vocab_size, mean_resizing=False)
    for module in _tables(causal_lm, tied=tied):
        module.weight[old:] = module.weight[:old].float().mean(dim=0).to(module.weight.dtype)
    bias = getattr(causal_lm.get_output_embeddings(), "bias", None)
    if bias is not None:
        bias[old:] = bias[:old].float().mean().to(bias.dtype)
    if _shares_table(causal_lm) != tied:
        problem = f"`transformers` cannot add rows to embedding and head of `{causal_lm.config.model_type}` together"
        raise UserError("model", problem, "use a base whose tokenizer has the template's control tokens")


@dataclass(frozen=True, kw_only=True)
class ControlTokens:
    """Tokens that a template writes. ids: token -> row. num_piece_rows: that the vocabulary needs, without added
    tokens.
    """

    ids: Mapping[str, int]
    num_piece_rows: int = 0

    @classmethod
    def of(cls, tokenizer: Tokenizer, tokens: Sequence[str], *, bos_token: str | None) -> ControlTokens:
        """The tokens of a template, and the one that begins conversations."""
        ids = {token: tokenizer.token_to_id(token) for token in (*tokens, *filter(None, (bos_token,)))}
        num_piece_rows = 1 + max(tokenizer.get_vocab(with_added_tokens=False).values(), default=-1)
        return cls(ids={token: row for token, row in ids.items() if row is not None}, num_piece_rows=num_piece_rows)

    @classmethod
    def of_prepared(cls, prepared_dir: Path, manifest: Manifest) -> ControlTokens:
        """The tokens of a prepared dataset."""
        tokenizer = stored_tokenizer(prepared_dir / TOKENIZER_FOLDER / "tokenizer.json")
        tokens = manifest.control_tokens or TEMPLATES[manifest.template].control_tokens
        return cls.of(tokenizer, tokens, bos_token=manifest.bos_token)


def check_pieces(control: ControlTokens, *, num_rows: int, base: str | None) -> None:
    """Raise UserError for a base that lacks rows for pieces of the tokenizer: it was trained with another one.

    Tokens that were added to a tokenizer may lack rows, and get them, all the same. num_rows: of the base. base: where
    it is, None for random weights.
    """
    if control.num_piece_rows > num_rows:
        needed = f"the vocabulary of the tokenizer needs {control.num_piece_rows:,}"
        problem = f"has rows for {num_rows:,} tokens, and {needed}"
        if base is None:
            raise UserError("model.config", problem, "leave `vocab_size` out of it, which gives each token a row")
        raise UserError(
            base,
            f"{problem}: it is not the tokenizer of this base",
            "name the base's own with `model.tokenizer`; if the vocabulary was extended on purpose, add rows to the "
            "base first (`resize_token_embeddings` of transformers)",
        )


@dataclass(frozen=True, kw_only=True)
class UntrainedRows:
    """Control tokens whose rows the base never trained. texts: for people. ids: their rows."""

    texts: Sequence[str] = ()
    ids: Sequence[int] = ()


@torch.no_grad()
def set_untrained_rows(causal_lm: Any, control: ControlTokens, *, num_rows: int) -> UntrainedRows:
    """Give control tokens whose rows the base never trained the mean row, as new tokens get. Trained rows stay.

    num_rows: of the base, before tokens were added. Returns which rows were set.
    """
    tied = _shares_table(causal_lm)
    names = table_names(tied=tied)
    tables_of: dict[str, list[str]] = {}
    for module, name in zip(_tables(causal_lm, tied=tied), names, strict=True):
        table_VD = module.weight[:num_rows]
        found = untrained_tokens(table_VD, control)
        if found:
            mean = table_VD.float().mean(dim=0).to(module.weight.dtype)
        for token in found:
            module.weight[control.ids[token]] = mean
            tables_of.setdefault(token, []).append(name)
    return UntrainedRows(texts=untrained_text(tables_of), ids=[control.ids[token] for token in tables_of])


def padding_text(causal_lm: Any, control: ControlTokens) -> str | None:
    """What is said where a control token is the base's padding token, None where none is.

    The embedding of torch gives the padding row no gradient, here as in every other trainer. causal_lm: with or without
    weights.
    """
    padding = getattr(causal_lm.get_input_embeddings(), "padding_idx", None)
    token = next((token for token, row in control.ids.items() if row == padding), None)
    if token is None:
        return None
    text = f"{token} is the base's padding token: its row of the embedding gets no gradient"
    return f"{text} but that of the head, which is the same table" if is_tied(causal_lm.config) else text


PADDING_REMEDY = "to train it, set `pad_token_id: null` in the config.json of a copy of the base"


def table_names(*, tied: bool) -> Sequence[str]:
    """What the tables of a model are called."""
    return ("embedding and head",) if tied else ("embedding", "head")


def untrained_text(found: Mapping[str, Sequence[str]]) -> Sequence[str]:
    """Tokens and the tables in which their rows are not trained, for people."""
    return [f"{token} ({' and '.join(tables)})" for token, tables in found.items()]


def untrained_tokens(table_VD: torch.Tensor, control: ControlTokens) -> Sequence[str]:
    """The control tokens whose rows a base cannot have trained.

    The row is (nearly) zero, or several others have the same bits. Any other row stays, as nothing proves that it was
    not trained. table_VD: rows of the base. Tokens without a row are left out.
    """
    ids = {token: row for token, row in control.ids.items() if row < len(table_VD)}
    if not ids:
        return []
    largest_V = torch.linalg.vector_norm(table_VD, ord=float("inf"), dim=1)
    small = _SMALL * float(largest_V.float().median())
    return [
        token
        for token, row in ids.items()
        if float(largest_V[row]) <= small or _num_alike(table_VD, largest_V, row) >= _ALIKE
    ]


def untrained_in_files(model: Any, headers: Headers, control: ControlTokens) -> Sequence[str]:
    """As `set_untrained_rows`, from the files of a base on this machine, without changing anything.

    model: the base without weights. A table that is not found under its name is left out.
    """
    from safetensors import safe_open

    tied = _shares_table(model) or is_tied(model.config)
    parameters = {id(parameter): name for name, parameter in model.named_parameters(remove_duplicate=False)}
    tables_of: dict[str, list[str]] = {}
    for module, table in zip(_tables(model, tied=tied), table_names(tied=tied), strict=True):
        name = stored_name(parameters[id(module.weight)], headers)
        if name is None or headers[name].shape != tuple(module.weight.shape):
            continue
        with safe_open(headers[name].file, framework="pt") as file:
            for token in untrained_tokens(file.get_tensor(name), control):
                tables_of.setdefault(token, []).append(table)
    return untrained_text(tables_of)


def _num_alike(table_VD: torch.Tensor, largest_V: torch.Tensor, row: int) -> int:
    """How many other rows have the bits of a row."""
    candidates = (largest_V == largest_V[row]).nonzero()[:, 0]
    return int((table_VD[candidates] == table_VD[row]).all(dim=1).sum()) - 1


def _shares_table(causal_lm: Any) -> bool:
    return causal_lm.get_input_embeddings().weight is causal_lm.get_output_embeddings().weight


def _tables(causal_lm: Any, *, tied: bool) -> list[Any]:
    return [causal_lm.get_input_embeddings()] + ([] if tied else [causal_lm.get_output_embeddings()])
