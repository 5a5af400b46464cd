"""Which questions of a benchmark appear in the data that a model was trained on.

The rule is that of GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C) with its longest and shortest lengths: words
without case, punctuation and layout (`word_hashes`), and

- a question of 13 words or more was seen if any 13 consecutive words of it are in one message of the training data;
- a shorter one, of at least 8 words, if all of it is in one message;
- one of fewer than 8 words, if a message is that question and nothing else: so few words are found by chance.

As there, what many share is not evidence: 13 words that more than 10 questions of the benchmark have in common are its
way of asking, and are not looked for. A question without words of its own cannot be checked, and is counted.

Training data is the split `train` of a prepared dataset: the ids that were trained on, as text, with everything that
the model read (users' messages, answers, system messages).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.prepared.dataset import TOKENIZER_FOLDER, Manifest, PreparedSplit, open_split
from data_pipeline.prompt.chat_folder import stored_template
from data_pipeline.prompt.header_texts import texts_after
from data_pipeline.prompt.library_errors import stored_tokenizer
from ochat_train.suites.word_hashes import Words, runs_of, words_of

LONGEST_RUN, SHORTEST_RUN = 13, 8
MOST_SHARED = 10
RULE = (
    f"{LONGEST_RUN} consecutive words of the question, without case and punctuation, are in one message of the "
    f"training data; of a shorter question all its words, and below {SHORTEST_RUN} words the whole message"
)
_TOKENS_AT_ONCE = 2**20
_PREFIX_WORDS = 4  # of a role, where the prompt's template is not one of ours and cannot say where a message begins
_FILTER_BITS = 24


@dataclass(frozen=True, kw_only=True)
class Contamination:
    """What of a benchmark a training set holds.

    seen: number of a question -> id of the first conversation that has it. unchecked: numbers of questions that have no
    words of their own. num_conversations: that were read. fingerprint: of the prepared dataset.
    """

    seen: Mapping[int, str]
    unchecked: frozenset[int]
    num_questions: int
    num_conversations: int
    fingerprint: str


def contamination(benchmarks: Mapping[str, Sequence[str]], prepared_dir: Path) -> dict[str, Contamination]:
    """Look for every question in the training split of a prepared dataset, which is read once.

    benchmarks: name -> all questions, so that what they share is known. Raises UserError for a folder without a
    dataset, and for one with damaged rows.
    """
    manifest = Manifest.load(prepared_dir)
    if manifest is None:
        raise UserError(prepared_dir, "holds no prepared dataset", "name the recipe's `data.prepared_dir`")
    wanted = {name: Wanted.of(questions) for name, questions in benchmarks.items()}
    texts = _TrainingTexts(prepared_dir, manifest)
    first: dict[str, dict[int, int]] = {name: {} for name in benchmarks}
    for found in texts.chunks():
        for name, runs in wanted.items():
            for question, text in runs.found_in(found.words, _PREFIX_WORDS if texts.template is None else 0):
                first[name].setdefault(question, int(found.rows[text]))
    return {
        name: Contamination(
            seen={question: texts.split.conversation_id(row) for question, row in sorted(first[name].items())},
            unchecked=runs.unchecked,
            num_questions=len(benchmarks[name]),
            num_conversations=len(texts.split),
            fingerprint=manifest.fingerprint,
        )
        for name, runs in wanted.items()
    }


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The runs of words to look for.

    runs: number of words -> uint64[n], sorted hashes. questions: the same -> int64[n], the question of each.
    unchecked: as in `Contamination`.
    """

    runs: Mapping[int, np.ndarray]
    questions: Mapping[int, np.ndarray]
    unchecked: frozenset[int]

    @classmethod
    def of(cls, questions: Sequence[str]) -> Wanted:
        """From the texts of questions."""
        words = words_of(questions)
        counts = words.counts(len(questions))
        runs, owners = {}, {}
        for num_words in sorted({int(count) for count in np.minimum(counts, LONGEST_RUN)} - {0}):
            hashes = runs_of(words, num_words=num_words)
            owner = words.text[: len(hashes)]
            is_inside = _without_separator(words, num_words) & (np.minimum(counts, LONGEST_RUN)[owner] == num_words)
            pairs = np.unique(np.stack((hashes[is_inside], owner[is_inside].astype(np.uint64))), axis=1)
            _, inverse, shared = np.unique(pairs[0], return_inverse=True, return_counts=True)
            own = pairs[:, shared[inverse] <= MOST_SHARED] if num_words == LONGEST_RUN else pairs
            if own.size:
                runs[num_words], owners[num_words] = own[0], own[1].astype(np.int64)
        checked = set(np.concatenate([np.zeros(0, np.int64), *owners.values()]).tolist())
        return cls(runs=runs, questions=owners, unchecked=frozenset(range(len(questions))) - checked)

    @cached_property
    def _filters(self) -> Mapping[int, np.ndarray]:
        """Which first bits of a hash are wanted at all: nearly every run of a training set fails here."""
        filters = {}
        for num_words, hashes in self.runs.items():
            filters[num_words] = np.zeros(2**_FILTER_BITS, bool)
            filters[num_words][hashes >> np.uint64(64 - _FILTER_BITS)] = True
        return filters

    def found_in(self, words: Words, most_prefix_words: int) -> Iterator[tuple[int, int]]:
        """(question, text) for every question that a text holds, a pair at least once.

        most_prefix_words: that may stand before a message that is a whole question.
        """
        for num_words, hashes in self.runs.items():
            runs = runs_of(words, num_words=num_words)
            places = np.flatnonzero(self._filters[num_words][runs >> np.uint64(64 - _FILTER_BITS)])
            if num_words < SHORTEST_RUN:
                places = places[_is_whole(words, places, num_words, most_prefix_words)]
            start = np.searchsorted(hashes, runs[places], side="left")
            stop = np.searchsorted(hashes, runs[places], side="right")
            for place, low, high in zip(places[stop > start], start[stop > start], stop[stop > start], strict=True):
                for question in self.questions[num_words][low:high]:
                    yield int(question), int(words.text[place])


def _without_separator(words: Words, num_words: int) -> np.ndarray:
    """bool[n]: whether the run from each place on is inside one text."""
    separators = np.cumsum(words.is_separator)
    count = max(0, len(separators) - num_words + 1)
    before = separators[:count] - words.is_separator[:count]
    return np.asarray(separators[num_words - 1 : num_words - 1 + count] == before)


def _is_whole(words: Words, places: np.ndarray, num_words: int, most_prefix_words: int) -> np.ndarray:
    """bool[places]: whether a run ends its text and begins it, but for a few words of the prompt's template."""
    starts = np.flatnonzero(words.is_separator)
    before = places - starts[np.searchsorted(starts, places, side="right") - 1] - 1
    return np.asarray((before <= most_prefix_words) & words.is_separator[places + num_words])


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """rows: int64[texts], the row that each text is from."""

    words: Words
    rows: np.ndarray


class _TrainingTexts:
    """The training split as text, message by message: what is between two control tokens, without the role."""

    def __init__(self, prepared_dir: Path, manifest: Manifest) -> None:
        folder = prepared_dir / TOKENIZER_FOLDER
        self.split: PreparedSplit = open_split(prepared_dir, "train", manifest)
        self.template = stored_template(folder, manifest.template)
        self._manifest, self._tokenizer = manifest, stored_tokenizer(folder / "tokenizer.json")
        self._controls = {
            number: token.content
            for number, token in self._tokenizer.get_added_tokens_decoder().items()
            if token.special
        }
        self._prefixes: dict[tuple[str | None, int], list[str]] = {}

    def chunks(self) -> Iterator[_Chunk]:
        """All rows, about a million tokens at a time."""
        part = np.cumsum(self.split.num_tokens, dtype=np.int64) // _TOKENS_AT_ONCE
        for _, group in groupby(range(len(self.split)), key=part.__getitem__):
            yield self._chunk(list(group))

    def _chunk(self, rows: Sequence[int]) -> _Chunk:
        ids: list[list[int]] = []
        befores: list[tuple[str | None, int]] = []
        owners: list[int] = []
        for row in rows:
            last, condition = None, int(self.split.condition_id[row])
            for is_control, group in groupby(self.split[row].input_ids.tolist(), key=self._controls.__contains__):
                part = list(group)
                if is_control:
                    last = self._controls[part[-1]]
                    continue
                ids.append(part)
                befores.append((last, condition))
                owners.append(row)
        decoded = self._tokenizer.decode_batch(ids, skip_special_tokens=False)
        texts = [self._content(text, *before) for text, before in zip(decoded, befores, strict=True)]
        return _Chunk(words=words_of(texts), rows=np.array(owners, np.int64))

    def _content(self, text: str, control: str | None, condition_id: int) -> str:
        """A text without the template's own words at its beginning."""
        if self.template is None:
            return text
        key = (control, condition_id)
        if key not in self._prefixes:
            found = texts_after(control, self.template, self._manifest.conditions[condition_id])
            self._prefixes[key] = sorted((prefix.strip() for prefix in found), key=len, reverse=True)
        stripped = text.lstrip()
        return stripped.removeprefix(next(filter(stripped.startswith, self._prefixes[key]), ""))
