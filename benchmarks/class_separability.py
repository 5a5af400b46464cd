"""How well a class can be told from the words of an answer alone: what conditioning can learn at most from style.

    python benchmarks/class_separability.py conversations.jsonl

Rows in OpenChat's format. A naive Bayes classifier over words and pairs of words learns from four fifths of the prompts
and names the condition of the others' answers; the baseline names the most frequent condition. All conversations of a
prompt are on one side.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path


def features(text: str) -> Counter[str]:
    """Words, numbers by their length, signs, and pairs of neighbours."""
    words = [re.sub(r"\d", "0", word) for word in re.findall(r"\w+|[^\w\s]|\n", text.lower())]
    return Counter([*words, *(f"{first} {second}" for first, second in pairwise(words))])


class NaiveBayes:
    """Multinomial, with one added to every count."""

    def __init__(self, rows: Sequence[tuple[Counter[str], str]]) -> None:
        self._classes = Counter(name for _, name in rows)
        self._counts = {name: Counter[str]() for name in self._classes}
        for found, name in rows:
            self._counts[name] += found
        self._vocabulary = set().union(*self._counts.values())
        self._totals = {name: sum(counts.values()) + len(self._vocabulary) for name, counts in self._counts.items()}

    def name(self, found: Counter[str]) -> str:
        """The likeliest class."""

        def score(name: str) -> float:
            counts, total = self._counts[name], self._totals[name]
            known = ((word, number) for word, number in found.items() if word in self._vocabulary)
            return math.log(self._classes[name]) + sum(
                number * math.log((counts[word] + 1) / total) for word, number in known
            )

        return max(self._classes, key=score)


def main() -> None:
    """Print how often the classifier is right, and how often the most frequent class would be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    sides: tuple[list[tuple[Counter[str], str]], list[tuple[Counter[str], str]]] = ([], [])
    for line in parser.parse_args().file.read_text(encoding="utf-8").removesuffix("\n").split("\n"):
        row = json.loads(line)
        prompt = next(item["content"] for item in row["items"] if item["role"] == "user")
        answers = "\n".join(item["content"] for item in row["items"] if item["role"] == "assistant")
        is_held_out = hashlib.sha256(prompt.encode()).digest()[0] % 5 == 0
        sides[is_held_out].append((features(answers), row["condition"]))
    known, held_out = sides
    classifier, (frequent, _) = NaiveBayes(known), Counter(name for _, name in known).most_common(1)[0]
    right = sum(classifier.name(found) == name for found, name in held_out) / len(held_out)
    baseline = sum(name == frequent for _, name in held_out) / len(held_out)
    print(
        f"{len(held_out):,} held-out answers: {right:.1%} named rightly, {baseline:.1%} by always naming `{frequent}`"
    )


if __name__ == "__main__":
    main()
