"""The results of an evaluation as values; `results_file` writes and reads them.

What is measured (times) is in `started`, `ended` and what follows from them; everything else is the same for
the same model, data and settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ochat_train.suites.data import DataFile
from ochat_train.suites.intervals import Estimate
from ochat_train.suites.lm_eval import HarnessScore
from ochat_train.suites.suite import Finish

FORMAT = 2  # of the document
Status = Literal["scored", "failed", "too_long"]


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What was asked. kind: `export`, or `url` for a server, which does not say what it is.

    sha256: over the files that decide answers, weights_sha256: over the weights alone; None for a URL. base, template:
    None where they are not known.
    """

    name: str
    kind: Literal["export", "url"]
    url: str | None = None
    sha256: str | None = None
    weights_sha256: str | None = None
    base: str | None = None
    template: str | None = None

    @property
    def identity(self) -> tuple[str, ...]:
        """What decides the answers: a folder may have any name."""
        return ("export", self.sha256) if self.sha256 else ("url", self.url or "", self.name)


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """How it was asked. max_new_tokens: None where each suite has its own. limit: questions of a suite, None for all.
    top_p, seed: of sampling; the seed also draws samples of questions, examples and intervals.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_new_tokens: int | None = None
    few_shot: int = 0
    limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class SuiteFacts:
    """What was asked of a suite. num_questions: in the data, num_asked: of them, under each condition; see `Suite` for
    the others.
    """

    name: str
    title: str
    version: int
    metric: str
    rule: str
    other_rules: Mapping[str, str]
    max_new_tokens: int
    highest: float
    num_questions: int
    num_asked: int
    left_out: Mapping[str, int]
    files: tuple[DataFile, ...]
    facts: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class AnswerResult:
    """What came of a question under a condition.

    prompt_sha256: of the ids or messages that were asked. texts: the answer to each turn, none where it failed.
    value: None unless scored. found, others, details: as in `Scored`. started, ended: seconds since 1970. reason: why
    it was not scored. failed_tries: reason -> tries without an answer. had_less_room: as in `Answer`.
    """

    status: Status
    prompt_sha256: str
    texts: tuple[str, ...] = ()
    value: float | None = None
    is_answered: bool = False
    found: str | None = None
    others: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    num_tokens: int | None = None
    finish: Finish | None = None
    started: float | None = None
    ended: float | None = None
    reason: str | None = None
    failed_tries: Mapping[str, int] = field(default_factory=dict)
    had_less_room: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether the model said nothing visible."""
        return bool(self.texts) and not any(text.strip() for text in self.texts)


@dataclass(frozen=True, kw_only=True)
class QuestionResult(AnswerResult):
    """A question under a condition (None: the model's own). turns, right: as in `Question`."""

    suite: str
    id: str
    task: str
    condition: str | None
    turns: tuple[str, ...] = ()
    right: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SuiteScore:
    """How a suite, or one of its tasks, was answered under a condition.

    task: None for all questions of the suite, each of which counts the same. num_questions = num_scored + num_failed +
    num_too_long; shares and means are of the scored ones. score: None where nothing was scored. others: rule -> its
    score. answered: share in which the rule found an answer. empty: share without any text, cut: share that reached the
    limit of tokens, or the end of the context. num_had_less_room: those that reached the end of the context before the
    limit. mean_tokens: of an answer. seconds: in which at least one question was being answered; tokens_per_second: of
    all answers together. extra: columns of other parts of the program.
    """

    suite: str
    task: str | None
    condition: str | None
    num_questions: int
    num_scored: int
    num_failed: int
    num_too_long: int
    score: Estimate | None
    others: Mapping[str, Estimate]
    answered: float | None
    empty: float | None
    cut: float | None
    mean_tokens: float | None
    seconds: float | None
    tokens_per_second: float | None
    num_had_less_room: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Two conditions on the same questions: second - first.

    num_questions: scored under both. num_first_better, num_second_better: of them; the rest are equal.
    """

    suite: str
    first: str | None
    second: str | None
    num_questions: int
    num_first_better: int
    num_second_better: int
    difference: Estimate | None


@dataclass(frozen=True, kw_only=True)
class SeenScores:
    """How many questions of a suite are in the training data, and the scores under a condition with and without them.

    num_questions: of the whole suite; num_seen, num_unchecked: of them (see `contamination`). score_seen, score_unseen:
    of the asked ones that are there, and of all others; None where there is none. seen: id of a question -> id of the
    first conversation that has it. fingerprint, num_conversations: of the prepared dataset.
    """

    suite: str
    condition: str | None
    num_questions: int
    num_seen: int
    num_unchecked: int
    score_seen: Estimate | None
    score_unseen: Estimate | None
    seen: Mapping[str, str]
    fingerprint: str
    num_conversations: int


@dataclass(frozen=True, kw_only=True)
class EvalResults:
    """All of an evaluation. created: UTC, when the last answer was made. versions: package -> version, of what
    asked; engine_versions: of what answered. questions: in the order of suites, conditions, questions.
    """

    created: str
    model: ModelFacts
    engine: str
    engine_versions: Mapping[str, str]
    versions: Mapping[str, str]
    settings: EvalSettings
    conditions: tuple[str | None, ...]
    suites: tuple[SuiteFacts, ...]
    scores: tuple[SuiteScore, ...]
    paired: tuple[PairedDifference, ...]
    failed_tries: Mapping[str, int]
    questions: tuple[QuestionResult, ...]
    contamination: tuple[SeenScores, ...] = ()
    harness: tuple[HarnessScore, ...] = ()
    harness_versions: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def facts_of(self, suite: str) -> SuiteFacts:
        """What was asked of the suite with this name."""
        return next(facts for facts in self.suites if facts.name == suite)

    @property
    def num_failed(self) -> int:
        """Questions without an answer, or whose answer could not be scored."""
        return sum(question.status == "failed" for question in self.questions)

    @property
    def without_score(self) -> tuple[SuiteScore, ...]:
        """Suites under conditions of which no question at all was scored."""
        return tuple(row for row in self.scores if row.task is None and row.num_scored == 0)
