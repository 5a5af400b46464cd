"""The tokens of a prepared row with what they are and how they read, for showing them to people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from tokenizers import Tokenizer

from data_pipeline.conversation import TokenizedConversation
from data_pipeline.prompt.header_texts import texts_after
from data_pipeline.prompt.template import Template

Kind = Literal["control", "prefix", "content"]
_MOST_TOKENS_OF_A_CHARACTER = 4  # bytes of UTF-8
_UNFINISHED = "\ufffd"  # how a tokenizer decodes a part of a character


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownToken:
    """A token. kind: a control token, the template's own text (condition and role), or what a person or model wrote.

    text: raw, not yet fit for a terminal or a page (`text_rules.visible`). Empty where a character takes several
    tokens: the last of them has it.
    """

    id: int
    weight: float
    kind: Kind
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRun:
    """Neighbouring tokens of one kind and weight."""

    weight: float
    kind: Kind
    text: str


class TokenReader:
    """Reads the rows of one prepared dataset. template: None where it is not known; then nothing counts as a
    prefix.
    """

    def __init__(self, tokenizer: Tokenizer, template: Template | None) -> None:
        self._tokenizer, self._template = tokenizer, template
        self._controls: Mapping[int, str] = {
            number: token.content for number, token in tokenizer.get_added_tokens_decoder().items() if token.special
        }

    def __call__(self, row: TokenizedConversation, *, condition: str) -> list[ShownToken]:
        """All tokens of a row. condition: what the row is prompted with."""
        ids = row.input_ids.tolist()
        kinds: list[Kind] = []
        texts: list[str] = []
        last_control = None
        for is_control, group in groupby(ids, key=self._controls.__contains__):
            part = list(group)
            if is_control:
                texts += [self._controls[token] for token in part]
                kinds += ["control"] * len(part)
                last_control = texts[-1]
            else:
                found = list(self._texts(part))
                num_prefix = self._num_prefix_tokens(found, last_control, condition)
                texts += found
                kinds += ["prefix"] * num_prefix
                kinds += ["content"] * (len(part) - num_prefix)
        columns = zip(ids, row.loss_weights.tolist(), kinds, texts, strict=True)
        return [ShownToken(id=number, weight=weight, kind=kind, text=text) for number, weight, kind, text in columns]

    def _texts(self, ids: Sequence[int]) -> Iterator[str]:
        """The texts of tokens between two control tokens; together they are the whole text.

        Each is decoded together with the tokens before it, since decoders drop a space at the very beginning.
        """
        before: list[int] = []
        pending: list[int] = []
        for index, token in enumerate(ids):
            pending.append(token)
            text = self._decode(before + pending)[len(self._decode(before)) :]
            is_last = index == len(ids) - 1
            if text.endswith(_UNFINISHED) and len(pending) < _MOST_TOKENS_OF_A_CHARACTER and not is_last:
                yield ""
            else:
                yield text
                before, pending = pending, []

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False)) if ids else ""

    def _num_prefix_tokens(self, texts: Sequence[str], last_control: str | None, condition: str) -> int:
        """How many tokens hold the template's text. A token that spans prefix and content counts as prefix."""
        if self._template is None:
            return 0
        whole = "".join(texts)
        prefixes = [text for text in texts_after(last_control, self._template, condition) if whole.startswith(text)]
        longest = max(map(len, prefixes), default=0)
        starts, position = [], 0
        for text in texts:
            starts.append(position)
            position += len(text)
        return sum(start < longest for start in starts)


def runs(tokens: Sequence[ShownToken]) -> Iterator[TokenRun]:
    """Tokens joined where nothing but their text differs."""
    for (kind, weight), group in groupby(tokens, key=lambda token: (token.kind, token.weight)):
        yield TokenRun(kind=kind, weight=weight, text="".join(token.text for token in group))
