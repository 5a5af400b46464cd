"""Tokenizers of several kinds, trained on the spot, and random texts that are hard to cut."""

from __future__ import annotations

import json
import random
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
CJK = "[一-龥぀-ゟ゠-ヿ]+"
PARTS = (
    *"abcdeXYZ0123456789",
    *(" ", " ", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028"),
    *(".", ",", "!", "'s", "'", '"', "<", ">", "=", "-", "_", "/", "\\", "{", "(", "#"),
    *("the ", "and", " of", "ing", "x1", "foo_bar", "Ünï", "naïve", "e\u0301", "n\u0303", "=\u0338", "<\u0338"),
    *("日本", "，", "。", "、", "語", "か", "한국", "\u1100\u1161", "привет", "שלום", "ﬁ", "Ａ", "½", "²"),
    *("🙂", "👩\u200d👩", "\u200b", "▁", "Ġ", "<|end|>", "<s>", "[tag]", "two words", "aa", "aaaa"),
)


def random_text(rng: random.Random, num_parts: int) -> str:
    """A text of some of these parts, often the same ones again."""
    some = rng.sample(PARTS, rng.randint(2, 30))
    return "".join(rng.choice(some) for _ in range(num_parts))


def _trained(tokenizer: Tokenizer, **options: Any) -> Tokenizer:
    rng = random.Random(0)
    trainer = trainers.BpeTrainer(vocab_size=700, show_progress=False, special_tokens=["<unk>", "<s>"], **options)
    tokenizer.train_from_iterator([random_text(rng, 60) for _ in range(300)], trainer)
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    return tokenizer


def _byte_level(*steps: Any, use_regex: bool = False, add_prefix_space: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=use_regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, last]) if steps else last
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def _split(pattern: str) -> Any:
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


def _sentencepiece(*steps: Any, pre_tokenizer: Any = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([*steps]) if steps else None
    tokenizer.pre_tokenizer = pre_tokenizer
    description = json.loads(_trained(tokenizer).to_str())
    vocab = description["model"]["vocab"]  # bytes that stand for characters without their own token
    vocab.update({f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)})
    return Tokenizer.from_str(json.dumps(description))


def _with_added(tokenizer: Tokenizer, *tokens: AddedToken) -> Tokenizer:
    tokenizer.add_tokens([*tokens])
    return tokenizer


def make_tokenizers() -> dict[str, Tokenizer]:
    """Tokenizers that can be cut."""
    space = normalizers.Replace(" ", "▁")
    return {
        "gpt2": _byte_level(use_regex=True),
        "gpt2, a space first": _byte_level(use_regex=True, add_prefix_space=True),
        "gpt4": _byte_level(_split(GPT4)),
        "several splits": _byte_level(_split(r"\p{N}{1,3}"), _split(CJK), _split(GPT4)),
        "digits": _byte_level(pre_tokenizers.Digits(individual_digits=True), use_regex=True),
        "bytes without pieces": _byte_level(),
        "llama": _sentencepiece(normalizers.Prepend("▁"), space),
        "gemma": _sentencepiece(space, pre_tokenizer=pre_tokenizers.Split(" ", behavior="merged_with_previous")),
        "metaspace": _sentencepiece(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="always", split=False)),
        "metaspace, words": _sentencepiece(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="always", split=True)),
        "forms": _sentencepiece(normalizers.NFKC(), normalizers.Lowercase(), space),
        "added": _with_added(_sentencepiece(normalizers.NFC(), space), AddedToken("[tag]"), AddedToken("two words")),
    }
