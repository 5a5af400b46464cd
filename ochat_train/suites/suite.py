"""What a suite is: questions, and a function that scores answers to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ochat_train.suites.data import DataFile, SuiteData

if TYPE_CHECKING:
    from ochat_train.suites.judge import Judge

Finish = Literal["stop", "length"]
Message = Mapping[str, str]
SCORED_BY = "judge"  # in the details of a score: names of who made it


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question of a suite.

    id: unique in its suite, the same for the same data. task: "" for none. turns: what the user says, one text for most
    suites; each later turn is asked after the answer to the one before. right: the right answers, as the suite compares
    them. options: letters that may be chosen, none for a free answer. worked: a right answer written out, as an example
    for other questions; "" where there is none. temperature: None for that of the run. details: other things that the
    suite's scoring needs.
    """

    id: str
    task: str
    turns: tuple[str, ...]
    right: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    worked: str = ""
    temperature: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model answered to a question.

    texts: one for each turn, without the space that begins every message. num_tokens: of all turns, None where the
    server does not count them. finish: `length` if any turn was cut off. started, ended: seconds since 1970.
    failed_tries: reason -> tries that gave no answer before this one did. had_less_room: whether a turn was cut off
    before its longest length, because the context had no more room.
    """

    texts: tuple[str, ...]
    num_tokens: int | None
    finish: Finish
    started: float
    ended: float
    failed_tries: Mapping[str, int] = field(default_factory=dict)
    had_less_room: bool = False

    @property
    def text(self) -> str:
        """The answer to the last turn."""
        return self.texts[-1]

    @property
    def is_empty(self) -> bool:
        """Whether nothing visible was said in any turn."""
        return not any(text.strip() for text in self.texts)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The score of one answer.

    value: 1 for right and 0 for wrong, or points. is_answered: whether the rule found an answer in the text.
    found: what was compared, None for nothing. others: what other rules say of the same answer, by their names.
    details: worth keeping too, such as a judge's words.
    """

    value: float
    is_answered: bool
    found: str | None = None
    others: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Unscored:
    """An answer that could not be scored, such as where a judge did not answer. It counts as failed, never as wrong."""

    reason: str


Answered = tuple[Question, Answer]
ScoreAll = Callable[[Sequence[Answered]], Sequence[Scored | Unscored]]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A suite with its questions.

    version: raised whenever questions or scores of the same data change. rule, other_rules: how an answer becomes a
    score, for people. metric: `accuracy`, `pass@1` or `points`. max_new_tokens: of an answer, unless the user says.
    left_out: reason -> rows of the data that are no questions. facts: things that a result has to state, such as
    whether code ran apart from the network. highest: the best possible value of an answer. has_judge: whether a model
    scores; `details` of a score then name it under SCORED_BY.
    """

    name: str
    title: str
    version: int
    metric: str
    rule: str
    max_new_tokens: int
    questions: tuple[Question, ...]
    score: ScoreAll
    other_rules: Mapping[str, str] = field(default_factory=dict)
    files: tuple[DataFile, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    highest: float = 1.0
    has_judge: bool = False


@dataclass(frozen=True, kw_only=True)
class SuiteOptions:
    """What the user gives to a suite.

    data: None where no data was named. allow_code_execution: whether code that the model wrote may run.
    answer_pattern: as `validation.answer_pattern` of a recipe, None for whole answers. judge: of suites whose answers
    are judged.
    """

    data: SuiteData | None = None
    allow_code_execution: bool = False
    answer_pattern: str | None = None
    judge: Judge | None = None


@dataclass(frozen=True, kw_only=True)
class SuiteKind:
    """A row of the table of suites. make: reads the questions; raises UserError where they are not there.

    is_in: whether data holds questions of this suite, for names that stand for several suites. summary: one line.
    """

    name: str
    summary: str
    make: Callable[[SuiteOptions], Suite]
    is_in: Callable[[SuiteData], bool]


def each(score: Callable[[Question, str], Scored]) -> ScoreAll:
    """A function that scores answers one by one, from one that scores the text of the last turn."""
    return lambda answered: [score(question, answer.text) for question, answer in answered]
