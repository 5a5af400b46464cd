"""Models that answer suites without a model: what they say is a function of the question."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ochat_train.suites.ask import NoAnswer, Patience, Prompt, TurnAnswer, TurnSettings
from ochat_train.suites.plan import Asker
from ochat_train.suites.results import ModelFacts
from ochat_train.suites.suite import Message

Say = Callable[[Sequence[Message], str | None], str]
NO_WAIT = Patience(first_wait_seconds=0.0, longest_wait_seconds=0.0)


class Speaker:
    """Answers with `say(messages, condition)`, and counts what it was asked.

    failures: last message -> the failures of its first tries. room: tokens that an answer may have.
    """

    def __init__(
        self, say: Say, *, failures: dict[str, list[NoAnswer]] | None = None, room: Callable[[str], int | None] = len
    ) -> None:
        self._say, self._failures = say, failures or {}
        self._room = room
        self.asked: Counter[tuple[str, str | None]] = Counter()
        self.settings: list[TurnSettings] = []
        self.most_at_once = self._now = 0

    def prompt(self, messages: Sequence[Message], condition: str | None) -> Prompt:
        room = None if self._room is len else self._room(messages[-1]["content"])
        fingerprint = json.dumps([list(messages), condition])
        return Prompt(fingerprint=fingerprint, room=room, content=(list(messages), condition))

    async def answer(self, prompt: Prompt, settings: TurnSettings) -> TurnAnswer:
        messages, condition = prompt.content
        text = messages[-1]["content"]
        self.asked[text, condition] += 1
        self.settings.append(settings)
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        await asyncio.sleep(0)
        self._now -= 1
        if waiting := self._failures.get(text):
            raise waiting.pop(0)
        said = self._say(messages, condition)
        return TurnAnswer(text=said, num_tokens=len(said.split()), finish="stop")


def asker(respondent: Any, *, sha256: str = "0" * 64) -> Asker:
    """Who is asked."""
    model = ModelFacts(name="speaker", kind="export", sha256=sha256, weights_sha256="1" * 64)
    return Asker(respondent=respondent, model=model, engine="words", engine_versions={}, versions={})
