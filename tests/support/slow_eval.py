"""`ochat eval` whose answers take a little longer, to be signalled in the middle."""

import asyncio
import sys

from ochat_train.cli.main import main
from ochat_train.respondents.export import ExportRespondent
from ochat_train.suites.ask import Prompt, TurnAnswer, TurnSettings

_SECONDS = 0.05
_answer = ExportRespondent.answer


async def _slow_answer(self: ExportRespondent, prompt: Prompt, settings: TurnSettings) -> TurnAnswer:
    found = await _answer(self, prompt, settings)
    await asyncio.sleep(_SECONDS)
    return found


if __name__ == "__main__":
    ExportRespondent.answer = _slow_answer  # type: ignore[method-assign]
    sys.exit(main(["eval", *sys.argv[1:]]))
