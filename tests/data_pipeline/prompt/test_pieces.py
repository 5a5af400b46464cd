"""A long text that is tokenized in pieces has the ids that it has as a whole, or is not cut."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from data_pipeline.conversation import ControlToken, Segment, Text, TokenizedConversation
from data_pipeline.prompt import tokenization
from data_pipeline.prompt.parted_pairs import Between, ParsedPattern, UnknownPatternError
from data_pipeline.prompt.safe_cuts import SafeCuts, UnknownTokenizerError
from data_pipeline.prompt.templates import TEMPLATES
from data_pipeline.prompt.tokenization import TemplateTokenizer, TokenizerSpec
from data_pipeline.prompt.tokenizer_loading import load_tokenizer_spec
from tests.support.piecewise import GPT4, PARTS, make_tokenizers, random_text

TOKENIZERS = make_tokenizers()


def spec_of(tokenizer: Tokenizer, folder: Path) -> TokenizerSpec:
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    return load_tokenizer_spec({"tokenizer.json": folder / "tokenizer.json"}, TEMPLATES["openchat_3.5"])


def segments_of(rng: random.Random) -> tuple[Segment, ...]:
    """Texts with prefixes between control tokens, as a conversation has them."""

    def segments() -> Iterator[Segment]:
        for prefix in ("GPT4 Correct User:", "", "X:", " "):
            content = random_text(rng, rng.randint(1, 120))
            yield Text(prefix=prefix, content=content, weight=1.0)
            yield ControlToken(text="<|end_of_turn|>", weight=1.0)

    return tuple(segments())


@pytest.mark.parametrize("name", TOKENIZERS)
def test_pieces_have_the_ids_of_the_whole(name: str, tmp_path: Path) -> None:
    """Random texts with pieces of a few characters, so that almost every kind of place is cut at."""
    spec = spec_of(TOKENIZERS[name], tmp_path)
    whole = TemplateTokenizer(spec, piece_characters=10**9)
    rng, num_pieces = random.Random(name), 0
    for size in (1, 3, 40):
        pieces = TemplateTokenizer(spec, piece_characters=size)
        cuts = SafeCuts(pieces._backend)
        conversations = [segments_of(rng) for _ in range(12)]
        for expected, found in zip(whole.tokenize(conversations), pieces.tokenize(conversations), strict=True):
            assert isinstance(expected, TokenizedConversation) == isinstance(found, TokenizedConversation)
            if isinstance(expected, TokenizedConversation) and isinstance(found, TokenizedConversation):
                np.testing.assert_array_equal(found.input_ids, expected.input_ids)
                np.testing.assert_array_equal(found.loss_weights, expected.loss_weights)
                assert (found.input_ids.dtype, found.loss_weights.dtype) == (np.int32, np.float32)
        texts = [s.content for conversation in conversations for s in conversation if isinstance(s, Text)]
        num_pieces += sum(len([*cuts.pieces(text, num_characters=size)]) - 1 for text in texts)
    assert num_pieces > 300, "control: texts were cut"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_no_pair_of_characters_is_cut_that_is_not_safe(name: str, tmp_path: Path) -> None:
    """Every place that is called safe, between every two of the parts: the ids of both sides are those of the whole."""
    cuts = SafeCuts(TemplateTokenizer(spec_of(TOKENIZERS[name], tmp_path))._backend)
    whole, rest = (
        tokenization._for_text(backend)
        for backend in (TemplateTokenizer(spec_of(TOKENIZERS[name], tmp_path))._backend, cuts.rest)
    )
    parts, rng = PARTS, random.Random(name)
    texts = [one + two + rng.choice(("", " a", "1", "\u0301")) for one in parts for two in rng.sample(parts, 25)]
    places = [(text, place) for text in texts for place in range(1, len(text)) if cuts.is_safe(text, place)]
    wholes = whole.encode_batch_fast([text for text, _ in places], add_special_tokens=False)
    lefts = whole.encode_batch_fast([text[:place] for text, place in places], add_special_tokens=False)
    rights = rest.encode_batch_fast([text[place:] for text, place in places], add_special_tokens=False)
    wrong = [
        (text, place)
        for (text, place), together, left, right in zip(places, wholes, lefts, rights, strict=True)
        if left.ids + right.ids != together.ids
    ]
    assert wrong == []
    assert len(places) > 100


def test_cutting_anywhere_would_change_ids(tmp_path: Path) -> None:
    """The control: the same comparison finds other ids where places are not chosen."""
    for name, tokenizer in TOKENIZERS.items():
        pieces = TemplateTokenizer(spec_of(tokenizer, tmp_path), piece_characters=3)
        assert pieces._cuts is not None
        pieces._cuts.is_safe = lambda text, place: True  # type: ignore[method-assign]
        whole = TemplateTokenizer(spec_of(tokenizer, tmp_path), piece_characters=10**9)
        conversations = [segments_of(random.Random(seed)) for seed in range(12)]
        pairs = zip(whole.tokenize(conversations), pieces.tokenize(conversations), strict=True)
        assert any(
            isinstance(one, TokenizedConversation)
            and isinstance(two, TokenizedConversation)
            and one.input_ids.tolist() != two.input_ids.tolist()
            for one, two in pairs
        ), name


def unknown_tokenizers() -> dict[str, Tokenizer]:
    """Tokenizers of which nothing is claimed."""
    unigram = Tokenizer(models.Unigram([("a", -1.0), ("b", -2.0), (" ", -3.0)], unk_id=0))
    dropout, stripped, foreign, prefixed = (Tokenizer.from_str(TOKENIZERS["llama"].to_str()) for _ in range(4))
    description = json.loads(dropout.to_str())
    description["model"]["dropout"] = 0.1
    stripped.normalizer = normalizers.Strip()
    foreign.pre_tokenizer = pre_tokenizers.Split(Regex(r"(?<=a)b"), behavior="isolated")
    prefixed.add_tokens([AddedToken("[tag]")])
    spaced = Tokenizer.from_str(TOKENIZERS["gpt4"].to_str())
    spaced.add_tokens([AddedToken("[tag]", rstrip=True)])
    return {
        "unigram": unigram,
        "dropout": Tokenizer.from_str(json.dumps(description)),
        "strip": stripped,
        "lookbehind": foreign,
        "prefix after each added token": prefixed,
        "added token takes space": spaced,
    }


@pytest.mark.parametrize("name", unknown_tokenizers())
def test_a_tokenizer_that_cannot_be_judged_is_not_cut(name: str, tmp_path: Path) -> None:
    tokenizer = unknown_tokenizers()[name]
    with pytest.raises(UnknownTokenizerError):
        SafeCuts(tokenizer.to_str())
    pieces = TemplateTokenizer(spec_of(tokenizer, tmp_path), piece_characters=2)
    assert not pieces._is_cut(Text(prefix="", content="a b a b a b"))


@pytest.mark.parametrize(
    ("pattern", "pair", "expected"),
    [
        (GPT4, "a ", Between.PARTS),
        (GPT4, " a", Between.UNKNOWN),
        (GPT4, "\n ", Between.UNKNOWN),  # looks ahead
        (GPT4, "11", Between.UNKNOWN),
        (GPT4, "'S", Between.UNKNOWN),
        (r"\p{N}{1,3}", "ab", Between.KEEPS),
        (r"\p{N}{2}", "a1", Between.KEEPS),  # a single digit is no match
        (r"a++|b", "xa", Between.KEEPS),
        (r"a(?!b)|c", "ab", Between.UNKNOWN),
        (r"(?:a|b)c", "bc", Between.UNKNOWN),
        (r"[^a-c]+", "dc", Between.KEEPS),
    ],
)
def test_what_a_pattern_does_between_two_characters(pattern: str, pair: str, expected: Between) -> None:
    assert ParsedPattern(pattern).between(*pair) is expected


@pytest.mark.parametrize(
    "pattern",
    [
        "a.",
        "^a",
        "a$",
        r"\ba",
        "(?<=a)b",
        "(?=ab)c",
        "(?>a)",
        r"\p{Han}",
        "[[:alpha:]]",
        "[a&&b]",
        "a*",
        "(a",
        "a)",
        "[",
    ],
)
def test_nothing_is_claimed_of_other_patterns(pattern: str) -> None:
    with pytest.raises(UnknownPatternError):
        ParsedPattern(pattern)
