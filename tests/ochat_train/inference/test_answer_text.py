"""Text of answers: one rule for whole answers and for those that arrive in pieces, whatever the tokenizer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import transformers

from ochat_train.inference.engine import AnswerSettings
from ochat_train.inference.pieces import IdLogprob, PieceMaker
from ochat_train.inference.token_texts import TokenTexts
from ochat_train.system.answer_text import AnswerDecoder, FirstSpace, StopTexts, answer_text, decoding

TEXTS = (" low", "  two spaces", " Grüße, 日本語 👩‍👩‍👧 ½", "\n\n x", " it ' s a .  b", "", " ")
TOKENIZERS = ("small_tokenizer_dir", "mistral_tokenizer_dir")


@pytest.fixture(params=TOKENIZERS, scope="module")
def tokenizer(request: pytest.FixtureRequest) -> transformers.PreTrainedTokenizerBase:
    """A byte-level one, and SentencePiece's of Mistral, which drops the first space of what it decodes."""
    return transformers.AutoTokenizer.from_pretrained(request.getfixturevalue(request.param))


def ids_after(tokenizer: transformers.PreTrainedTokenizerBase, text: str) -> tuple[int, list[int]]:
    """The last id of a prompt, and those of an answer that follows it as in training."""
    before = tokenizer.encode("Assistant:", add_special_tokens=False)
    whole = tokenizer.encode("Assistant:" + text, add_special_tokens=False)
    assert whole[: len(before)] == before
    return before[-1], whole[len(before) :]


def test_ids_are_decoded_as_the_tokenizer_does(tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    """By its compiled part where its class is the usual one, by itself where a class decodes in another way."""

    class Shouting(type(tokenizer)):  # type: ignore[misc]
        def _decode(self, *args: object, **options: object) -> str:
            return str(super()._decode(*args, **options)).upper()

    generator = random.Random(1)
    for _ in range(200):
        ids = [generator.randrange(len(tokenizer)) for _ in range(generator.randrange(6))]
        expected = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert decoding(tokenizer)(ids) == expected
    ids = tokenizer.encode("low it", add_special_tokens=False)
    plain = decoding(tokenizer)(ids)
    own = transformers.AutoTokenizer.from_pretrained(tokenizer.name_or_path)  # other tests have the first one too
    own.__class__ = Shouting
    assert decoding(own)(ids) == plain.upper() != plain


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_what_follows_the_prompt(tokenizer: transformers.PreTrainedTokenizerBase, text: str) -> None:
    before, ids = ids_after(tokenizer, text)
    end = tokenizer.bos_token_id
    assert answer_text(tokenizer, [*ids, end, *ids], before=before, stop_ids={end}) == text.removeprefix(" ")
    decoder, parts = AnswerDecoder(tokenizer, before=before), []
    for token in ids:
        parts.append(decoder.add([token]))
        assert "\ufffd" not in parts[-1], "half a character"
    assert "".join(parts) + decoder.finish() == text


def test_one_of_the_tokenizers_needs_the_token_before(mistral_tokenizer_dir: Path) -> None:
    """The control: decoded alone, the second space would be lost."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(mistral_tokenizer_dir)
    before, ids = ids_after(tokenizer, "  two spaces")
    assert tokenizer.decode(ids).removeprefix(" ") == "two spaces"
    assert answer_text(tokenizer, ids, before=before, stop_ids=()) == " two spaces"


def test_any_ids_in_any_pieces_have_one_text(tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    """Ids that no text has, parts of characters and control tokens among them."""
    draw = random.Random(0)
    before, _ = ids_after(tokenizer, "")
    for _ in range(40):
        ids = [draw.randrange(min(len(tokenizer), 600)) for _ in range(draw.randrange(30))]
        decoder, parts, rest = AnswerDecoder(tokenizer, before=before), [], list(ids)
        while rest:
            size = draw.randrange(1, 4)
            parts.append(decoder.add(rest[:size]))
            rest = rest[size:]
        whole = AnswerDecoder(tokenizer, before=before)
        assert "".join(parts) + decoder.finish() == whole.add(ids) + whole.finish()


def test_half_a_character_at_the_end_is_given_at_the_end(tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    before, ids = ids_after(tokenizer, " 👩")
    decoder = AnswerDecoder(tokenizer, before=before)
    assert "".join(decoder.add([token]) for token in ids[:-1]) in ("", " ")
    assert "\ufffd" in decoder.finish()


@pytest.mark.parametrize(
    ("pieces", "text"),
    [([" low"], "low"), (["", " ", "low"], "low"), (["  low", " high"], " low high"), (["low", " high"], "low high")],
)
def test_the_space_that_begins_a_message_is_taken_off_once(pieces: list[str], text: str) -> None:
    space = FirstSpace()
    assert "".join(map(space.add, pieces)) == text


@pytest.mark.parametrize(
    ("stop", "text", "given"),
    [
        (["END"], " one END two", " one "),
        (["END"], " one EN two", " one EN two"),
        (["END"], " one EN", " one EN"),
        (["ab", "b"], " xaab", " xa"),
        (["aab"], " aaab", " a"),
        ([" "], " one two", " one"),
        (["\n", "one"], " one\n", " "),
        ([], " one", " one"),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 50])
def test_stop_texts_end_before_the_first(stop: list[str], text: str, given: str, size: int) -> None:
    """In pieces of any size; the space that begins a message is not searched."""
    stops = StopTexts(stop)
    found = "".join(stops.add(text[start : start + size]) for start in range(0, len(text), size))
    assert stops.stopped == (given != text)
    assert found + stops.finish() == given


def test_nothing_is_given_that_may_become_a_stop_text() -> None:
    stops = StopTexts(["STOP"])
    assert [stops.add(piece) for piece in ("a", "ST", "O", "Sx", "STOP", "b")] == ["a", "", "", "STOSx", "", ""]
    assert stops.stopped


def test_an_answer_ends_at_its_longest_length_a_stop_id_or_a_stop_text(small_tokenizer_dir: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(small_tokenizer_dir)
    before, ids = ids_after(tokenizer, " The answer is 42.")
    end = tokenizer.bos_token_id
    rows = [IdLogprob(token=token, logprob=-1.0, alternatives=[(token, -1.0), (end, -2.0)]) for token in ids]

    def made(max_new_tokens: int, *stop: str) -> tuple[str, int, object, int]:
        settings = AnswerSettings(max_new_tokens=max_new_tokens, stop=stop)
        maker = PieceMaker(tokenizer, [before], settings, stop_ids={end})
        pieces = []
        for token, row in zip([*ids, end], [*rows, rows[0]], strict=True):
            if not maker.finished:
                pieces.append(maker.add([token], [row]))
        return (
            "".join(piece.text for piece in pieces),
            sum(piece.num_tokens for piece in pieces),
            pieces[-1].finish,
            sum(len(piece.logprobs) for piece in pieces),
        )

    assert made(99) == (" The answer is 42.", len(ids) + 1, "stop", len(ids)), "the end of turn is no text"
    assert made(len(ids)) == (" The answer is 42.", len(ids), "length", len(ids))
    text, num_tokens, finish, _ = made(99, "answer")
    assert (text, finish) == (" The ", "stop")
    assert num_tokens < len(ids)


def test_texts_of_tokens_join_to_the_text(tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    """Spaces that decoding alone would drop, and the bytes of characters that several tokens hold."""
    texts, is_split = TokenTexts(tokenizer), False
    for text in TEXTS:
        _, ids = ids_after(tokenizer, text)
        found = [texts.of(token) for token in ids]
        assert b"".join(part.encode("utf-8", "surrogateescape") for part in found).decode() == text
        is_split |= any("\udc80" <= character <= "\udcff" for part in found for character in part)
    assert is_split, "no character had several tokens"
    whole = [tokenizer.decode([token]) for text in TEXTS for token in ids_after(tokenizer, text)[1]]
    assert "".join(whole) != "".join(TEXTS), "the control: each token alone loses spaces or bytes"


def test_tokens_with_different_bytes_have_different_texts(tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    """So that none of the alternatives of a token is lost, and each of the 256 bytes is given back."""
    texts = TokenTexts(tokenizer)
    parts = [texts.of(token) for token in range(len(tokenizer))]
    data = [part.encode("utf-8", "surrogateescape") for part in parts if any("\udc80" <= c <= "\udcff" for c in part)]
    assert len(set(data)) == len(data)
    single = {one for one in data if len(one) == 1}
    assert {bytes([byte]) for byte in range(0x80, 0x100)} <= single
    assert len({tokenizer.decode([token]) for token in range(len(tokenizer))}) < len(set(parts)), "the control"


def test_a_character_that_stands_for_broken_ones_is_itself() -> None:
    """U+FFFD in a vocabulary whose names do not tell bytes."""

    class Words:
        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return [0]

        def decode(self, ids: list[int], **_: object) -> str:
            return "".join([":", "\ufffd", "a\u20ac\ufffd"][i] for i in ids)

        def convert_ids_to_tokens(self, token: int) -> str:
            return [":", "\ufffd", "a\u20ac\ufffd"][token]

    texts = TokenTexts(Words())
    assert [texts.of(token) for token in (1, 2)] == ["\ufffd", "a\u20ac\ufffd"]
