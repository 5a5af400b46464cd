"""Was a condition learnt? The rule, from a margin and its interval to one word.

What the method needs is a model that answers differently under each condition. So a margin counts only where it is
large enough to change answers, and where enough conversations show it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from ochat_train.system.json_values import fields_from

Verdict: TypeAlias = Literal["yes", "weak", "no"]

# docs/validation.md, "What counts as learnt", has the measurements behind these.
SMALLEST_PER_TOKEN = 0.005  # nats; models that never saw a condition had margins of 0.003 in size on long answers
SMALLEST_PER_CONVERSATION = 0.1  # nats; such models had 0.08 on answers of 6 tokens
FEWEST_CONVERSATIONS = 10  # an interval from fewer is too narrow


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """Whether a class's own condition makes its answers likelier than any other.

    condition: the class's own. nearest: the other condition under which its answers are likeliest.
    margin: nll under `nearest` minus nll under the own condition, nats per token; low, high: its 95 % interval, from a
    bootstrap over conversations; None where they are not finite. smallest: the margin that counts, nats per token
    (`smallest_effect`). verdict: None where the model was trained with one condition, so that it had none to learn.
    conversations: that the margin was measured on.
    """

    condition: str
    nearest: str
    margin: float | None
    low: float | None
    high: float | None
    smallest: float
    verdict: Verdict | None
    conversations: int

    @property
    def learnt(self) -> bool:
        """Whether the verdict is `yes`."""
        return self.verdict == "yes"

    def to_json(self) -> dict[str, Any]:
        """An entry of `learnt` in a line of validation.jsonl."""
        row = asdict(self)
        row = {key: row[key] for key in ("condition", "nearest", "margin", "low", "high")}
        return row | {
            "learnt": self.learnt,
            "conversations": self.conversations,
            "smallest": self.smallest,
            "verdict": self.verdict,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, tokens_per_conversation: float | None) -> Learnt:
        """From `to_json`. Raises KeyError where a key is missing.

        A line of a version that said `yes` to every margin above 0 gets the verdict of this one.
        tokens_per_conversation: for such a line, supervised tokens of a held-out conversation of the class; None where
        it is not known.
        """
        if "verdict" in values:
            return cls(**fields_from(cls, values))
        smallest = smallest_effect(tokens_per_conversation or float("inf"))
        found = verdict_of(
            values["margin"], values["low"], values["high"], smallest=smallest, conversations=values["conversations"]
        )
        return cls(**fields_from(cls, {**values, "smallest": smallest, "verdict": found}))


def smallest_effect(tokens_per_conversation: float) -> float:
    """The margin that counts, nats per token, for answers of so many supervised tokens a conversation.

    smallest = max(0.005, 0.1 / tokens_per_conversation)

    Short answers need more per token: what has to change is the answer, whose log-likelihood is a sum over its tokens.
    """
    return max(SMALLEST_PER_TOKEN, SMALLEST_PER_CONVERSATION / tokens_per_conversation)


def verdict_of(
    margin: float | None, low: float | None, high: float | None, *, smallest: float, conversations: int
) -> Verdict:
    """One word for a margin. margin, low, high: as in `Learnt`.

    yes: the whole interval is at or above `smallest`, from at least `FEWEST_CONVERSATIONS`.
    no: the interval reaches 0, or lies below `smallest`.
    weak: something between them, or too few conversations.
    """
    if margin is None or low is None or high is None or low <= 0 or high < smallest:
        return "no"
    return "yes" if low >= smallest and conversations >= FEWEST_CONVERSATIONS else "weak"
