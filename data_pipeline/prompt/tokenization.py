"""Segments to ids and weights: the only file that touches a tokenizer while data is prepared."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from data_pipeline.conversation import ControlToken, Segment, Text, TokenizedConversation
from data_pipeline.errors import RowError
from data_pipeline.prompt.library_errors import tokenizers_errors

# of a prefix whose ids are kept: in a base's own template it can hold a whole question, which no other row has
_REMEMBERED_CHARACTERS = 128


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec:
    """A tokenizer made ready for a template: everything that decides the ids, as plain text that can be sent around.

    backend: `tokenizer.json` with the template's control tokens added and the reserved character removed by its
    normalizer.
    bos_token: put in front of every conversation, None where the tokenizer has none or the template begins with it.
    pad_token, unk_token: the base tokenizer's own, None where it has none.
    added_control_tokens: control tokens that the base tokenizer did not have; the model needs new rows for them.
    """

    backend: str
    bos_token: str | None
    pad_token: str | None
    unk_token: str | None
    added_control_tokens: tuple[str, ...]

    @cached_property
    def vocab_size(self) -> int:
        """Rows that the model's embedding needs: the largest id plus one."""
        return 1 + max(Tokenizer.from_str(self.backend).get_vocab(with_added_tokens=True).values())

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """Every control token of the tokenizer, in the order of their ids."""
        return tuple(sorted(self.control_ids, key=self.control_ids.__getitem__))

    @cached_property
    def control_ids(self) -> dict[str, int]:
        """Control token -> id."""
        added = json.loads(self.backend)["added_tokens"]
        return {token["content"]: token["id"] for token in added if token["special"]}

    @cached_property
    def text_backend(self) -> str:
        """The tokenizer for text that follows a control token, tokenized on its own, as `tokenizer.json`.

        `prepend_scheme: first` puts a space only before the very first text of a prompt, which ours never is.
        A post-processor adds control tokens, which we never ask for, and still takes 8 % of the time; one that trims
        offsets would also hide that a token of white space spans prefix and content.
        """
        description = json.loads(self.backend)
        description["post_processor"] = None
        pre_tokenizer = description.get("pre_tokenizer") or {}
        for part in [pre_tokenizer, *pre_tokenizer.get("pretokenizers", [])]:
            if part.get("type") == "Metaspace" and part.get("prepend_scheme") == "first":
                part["prepend_scheme"] = "never"
        return json.dumps(description)

    @property
    def fingerprint(self) -> str:
        """sha256 over everything that decides the ids and the tokenizer folder."""
        tokens = f"{self.bos_token}\0{self.pad_token}\0{self.unk_token}"
        return hashlib.sha256(f"{self.backend}\0{tokens}".encode()).hexdigest()


class TemplateTokenizer:
    """Turns rendered conversations into ids and weights with the tokenizer of a `TokenizerSpec`."""

    def __init__(self, spec: TokenizerSpec) -> None:
        self._text = Tokenizer.from_str(spec.text_backend)
        self._text.encode_special_tokens = True
        self._control_ids = spec.control_ids
        # A tokenizer without byte fallback writes its unknown token for ordinary text; that is not a control token.
        forbidden = [token_id for token, token_id in self._control_ids.items() if token != spec.unk_token]
        self.is_control = np.zeros(spec.vocab_size, dtype=bool)  # by id; the unknown token is not one
        self.is_control[forbidden] = True
        self._prefix_ids: dict[str, array[int]] = {}

    def num_text_tokens(self, text: str) -> int:
        """How many ids a plain text has."""
        return len(self._encode(text).ids)

    def keeps_prefix(self, prefix: str, content: str) -> bool:
        """Whether a text begins with the ids that its prefix has on its own."""
        ids = self._encode(prefix).ids
        return bool(self._encode(prefix + content).ids[: len(ids)] == ids)

    def _encode(self, text: str) -> Any:
        with tokenizers_errors("model.tokenizer"):
            return self._text.encode(text, add_special_tokens=False)

    def control_id(self, token: str) -> int:
        """The id of a control token."""
        return self._control_ids[token]

    def text_of(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """The texts of many lists of ids, control tokens included."""
        return list(self._text.decode_batch(ids, skip_special_tokens=False))

    def tokenize(self, conversations: Sequence[Sequence[Segment]]) -> list[TokenizedConversation | RowError]:
        """Tokenize many conversations at once.

        A conversation whose text would give a control id (a vocabulary that can spell one) comes as a RowError.
        """
        texts = [
            segment.prefix + segment.content
            for segments in conversations
            for segment in segments
            if isinstance(segment, Text)
        ]
        with tokenizers_errors("model.tokenizer"):
            encodings = iter(self._text.encode_batch_fast(texts, add_special_tokens=False))
        return [self._assemble(segments, encodings) for segments in conversations]

    def _assemble(self, segments: Sequence[Segment], encodings: Any) -> TokenizedConversation | RowError:
        ids = array("i")
        run_weights: list[float] = []
        run_lengths: list[int] = []
        num_control = 0
        for segment in segments:
            if isinstance(segment, ControlToken):
                ids.append(self._control_ids[segment.text])
                run_weights.append(segment.weight)
                run_lengths.append(1)
                num_control += 1
                continue
            text_ids = array("i", next(encodings).ids)
            num_prefix = self._num_prefix_tokens(segment, text_ids)
            ids += text_ids
            run_weights.append(0.0)
            run_lengths.append(num_prefix)
            if segment.spans:
                weights = self._weights_of_spans(segment, len(text_ids))[num_prefix:]
                run_weights += weights
                run_lengths += [1] * len(weights)
            else:
                run_weights.append(segment.weight)
                run_lengths.append(len(text_ids) - num_prefix)
        input_ids = np.array(ids, dtype=np.int32)  # its own memory
        loss_weights = np.repeat(np.array(run_weights, dtype=np.float32), run_lengths)
        loss_weights[:1] = 0.0
        if np.count_nonzero(self.is_control[input_ids]) != num_control:
            return RowError(
                "control_token_in_text", "the tokenizer turns its text into a control token; remove that text"
            )
        return TokenizedConversation(input_ids=input_ids, loss_weights=loss_weights)

    def _num_prefix_tokens(self, segment: Text, text_ids: array[int]) -> int:
        """How many of the ids hold prefix text. A token that spans prefix and content counts as prefix."""
        if not segment.content:
            return len(text_ids)
        prefix_ids = self._prefix_ids.get(segment.prefix)
        if prefix_ids is None:
            prefix_ids = array("i", self._encode(segment.prefix).ids if segment.prefix else [])
            if len(segment.prefix) <= _REMEMBERED_CHARACTERS:
                self._prefix_ids[segment.prefix] = prefix_ids
        if text_ids[: len(prefix_ids)] == prefix_ids:
            return len(prefix_ids)
        # White space at the start of the content joined the prefix's last token: count by character offsets.
        offsets = self._encode(segment.prefix + segment.content).offsets
        return sum(start < len(segment.prefix) for start, _ in offsets)

    def _weights_of_spans(self, segment: Text, num_tokens: int) -> list[float]:
        """The weight of each id of a text with spans, 0 where it ends in the prefix.

        A token of two spans has the weight of the one in which it ends. Tokens carry the space before a word,
        so it makes no difference on which side of the space a span ends.
        """
        edges = np.cumsum([len(segment.prefix), *(len(span.text) for span in segment.spans)])
        assert edges[-1] == len(segment.prefix) + len(segment.content), "the spans of a text join to its content"
        weights = (0.0, *(span.weight for span in segment.spans), segment.spans[-1].weight)
        offsets = self._encode(segment.prefix + segment.content).offsets
        assert len(offsets) == num_tokens, "the same text has the same tokens"
        last_characters = [max(start, end - 1) for start, end in offsets]
        return [weights[i] for i in np.searchsorted(edges, last_characters, side="right")]
