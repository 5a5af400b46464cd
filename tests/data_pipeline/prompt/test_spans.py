"""Weights of spans: which token has which, against an independent count of characters."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from data_pipeline.conversation import ControlToken, Message, PartWeights, Span, Text, TokenizedConversation
from data_pipeline.prompt.part_weights import message_weights
from data_pipeline.prompt.tokenization import TemplateTokenizer
from tests.support.data import tokenizer_spec


def weights_of(tokenizer: TemplateTokenizer, text: Text) -> TokenizedConversation:
    start, end = ControlToken(text="<s>"), ControlToken(text="<|end_of_turn|>", weight=9.0)
    [tokens] = tokenizer.tokenize([[start, text, end]])
    assert isinstance(tokens, TokenizedConversation)
    assert tokens.loss_weights[-1] == 9.0
    return TokenizedConversation(input_ids=tokens.input_ids[1:-1], loss_weights=tokens.loss_weights[1:-1])


def expected_weights(whole: Tokenizer, ids: list[int], text: Text) -> list[float]:
    """Each character has the weight of its span; a token that of its last character. Counted with decoded text: how
    many characters are there once a token is written.
    """
    by_character = [0.0] * len(text.prefix) + [span.weight for span in text.spans for _ in span.text]
    found = []
    for number in range(1, len(ids) + 1):
        written = whole.decode(ids[:number], skip_special_tokens=False)
        found.append(by_character[len(written) - 1])
    return found


def test_a_token_has_the_weight_of_the_span_in_which_it_ends(small_tokenizer_dir: Path) -> None:
    spec = tokenizer_spec(small_tokenizer_dir, "openchat_3.5")
    tokenizer = TemplateTokenizer(spec)
    whole, rng, num_shared = Tokenizer.from_str(spec.backend), random.Random(3), 0
    for _ in range(60):
        words = rng.choices(["the", " the", " and ", "ing", "\n", "\n\n", " ", "1", "23", "User:", "s"], k=14)
        texts = ["".join(words[:5]), *words[5:]]
        if rng.random() < 0.3:
            texts.insert(3, "")
        spans = tuple(Span(text=text, weight=1.0 + number) for number, text in enumerate(texts))
        text = Text(prefix="GPT4 User:", content="".join(texts), spans=spans)
        found = weights_of(tokenizer, text)
        ids = found.input_ids.tolist()
        assert ids == weights_of(tokenizer, Text(prefix=text.prefix, content=text.content)).input_ids.tolist()
        expected = expected_weights(whole, ids, text)
        # white space that joined the prefix's last token counts as prefix, as without spans
        first = next(i for i, weight in enumerate(found.loss_weights) if weight)
        assert found.loss_weights[first:].tolist() == expected[first:]
        assert sum(expected[:first]) <= max(expected[:first], default=0.0)
        edges = set(np.cumsum([len(t) for t in (text.prefix, *texts)]).tolist())
        ends = {len(whole.decode(ids[:n], skip_special_tokens=False)) for n in range(len(ids) + 1)}
        num_shared += len(edges - ends)
    assert num_shared > 10, "control: there are tokens of two spans"


def test_a_span_may_end_on_either_side_of_the_space(small_tokenizer_dir: Path) -> None:
    tokenizer = TemplateTokenizer(tokenizer_spec(small_tokenizer_dir, "openchat_3.5"))
    cuts = [("right", " the"), ("right ", "the")]
    rows = [
        weights_of(
            tokenizer,
            Text(prefix="A:", content=a + b, spans=(Span(text=a, weight=1.0), Span(text=b, weight=0.0))),
        )
        for a, b in cuts
    ]
    assert rows[0].loss_weights.tolist() == rows[1].loss_weights.tolist()
    assert 0 < np.count_nonzero(rows[0].loss_weights) < len(rows[0].loss_weights)


def test_spans_with_one_weight_are_a_text_with_that_weight(small_tokenizer_dir: Path) -> None:
    tokenizer = TemplateTokenizer(tokenizer_spec(small_tokenizer_dir, "openchat_3.5"))
    for content in ("the and", "the 🙂é and", "🙂" * 30):
        spans = tuple(Span(text=character, weight=0.5) for character in content)
        one = weights_of(tokenizer, Text(prefix="A:", content=content, weight=0.5))
        many = weights_of(tokenizer, Text(prefix="A:", content=content, spans=spans))
        assert many.loss_weights.tolist() == one.loss_weights.tolist()


def test_weights_of_parts_multiply() -> None:
    factors = PartWeights(reasoning=0.5, answer=3.0, tool_calls=0.25)
    spans = (Span(text="a", weight=0.5), Span(text="b", weight=0.0))
    whole = message_weights(Message(role="assistant", content="ab", spans=spans, reasoning="r"), 2.0, factors)
    assert (whole.reasoning, [s.weight for s in whole.text], whole.tool_calls) == (1.0, [3.0, 0.0], 0.5)
    assert whole.end == 0.0, "the end of turn counts as the last span"
    assert message_weights(Message(role="assistant", content="ab"), 2.0, factors).end == 6.0
    assert message_weights(Message(role="assistant", content="", reasoning="r"), 2.0, factors).end == 1.0
