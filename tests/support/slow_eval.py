"""`ochat eval` that never gets more than a few answers, to be signalled in the middle."""

import asyncio
import itertools
import sys

from ochat_train.cli.main import main
from ochat_train.respondents.export import ExportRespondent
from ochat_train.suites.ask import Prompt, TurnAnswer, TurnSettings

_NUM_ANSWERS = 10
_numbers = itertools.count(1)
_answer = ExportRespondent.answer


async def _slow_answer(self: ExportRespondent, prompt: Prompt, settings: TurnSettings) -> TurnAnswer:
    found = await _answer(self, prompt, settings)
    if next(_numbers) > _NUM_ANSWERS:
        await asyncio.Event().wait()
    return found


if __name__ == "__main__":
    ExportRespondent.answer = _slow_answer  # type: ignore[method-assign]
    sys.exit(main(["eval", *sys.argv[1:]]))
