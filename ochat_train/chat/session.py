"""A conversation as a value: what was said under one condition, or under several that are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

Message = dict[str, str]  # role, content


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A message of the user and its answer. number: of the message, the same in all lanes. condition: of the answer,
    None for the default of the model. is_whole: whether the model ended the answer; one that was stopped or was too
    long ends in the middle.
    """

    number: int
    user: str
    answer: str
    condition: str | None
    is_whole: bool = True


@dataclass(frozen=True, kw_only=True)
class Lane:
    """The conversation under a condition. condition: None for the default of the model."""

    condition: str | None
    turns: tuple[Turn, ...] = ()

    def messages(self, system: str, user: str | None = None) -> list[Message]:
        """What the model reads. system: empty for none. user: a new message, None for what was said until now."""
        found = [{"role": "system", "content": system}] if system else []
        for turn in self.turns:
            found += [{"role": "user", "content": turn.user}, {"role": "assistant", "content": turn.answer}]
        return found if user is None else [*found, {"role": "user", "content": user}]


@dataclass(frozen=True, kw_only=True)
class Session:
    """All of a chat. lanes: one, or those that are compared. max_new_tokens: of an answer, None for as many as fit.
    temperature: 0 for greedy. seed: None for a random one.
    """

    lanes: tuple[Lane, ...]
    system: str = ""
    temperature: float = 0.0
    max_new_tokens: int | None = None
    seed: int | None = None

    @property
    def next_number(self) -> int:
        """The number of the next message."""
        return 1 + max((turn.number for lane in self.lanes for turn in lane.turns), default=0)

    def under(self, conditions: Sequence[str | None]) -> Session:
        """The chat under other conditions. One that is a lane keeps its history; others continue that of the first."""
        known = {lane.condition: lane for lane in self.lanes}
        first = self.lanes[0].turns
        lanes = tuple(known.get(condition, Lane(condition=condition, turns=first)) for condition in conditions)
        return replace(self, lanes=lanes)

    def answered(self, turns: Sequence[Turn | None]) -> Session:
        """With a turn more in each lane. None for a lane without an answer."""
        added = [
            lane if turn is None else replace(lane, turns=(*lane.turns, turn))
            for lane, turn in zip(self.lanes, turns, strict=True)
        ]
        return replace(self, lanes=tuple(added))

    def reset(self) -> Session:
        """Without history."""
        return replace(self, lanes=tuple(replace(lane, turns=()) for lane in self.lanes))

    def undone(self) -> tuple[Session, str | None]:
        """Without the last message and its answers; and that message, None where there was none."""
        last = self.next_number - 1
        texts = [turn.user for lane in self.lanes for turn in lane.turns if turn.number == last]
        lanes = [replace(lane, turns=tuple(turn for turn in lane.turns if turn.number != last)) for lane in self.lanes]
        return replace(self, lanes=tuple(lanes)), texts[0] if texts else None
