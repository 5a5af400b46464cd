"""The first look at a template: in another process, with limits on its time and memory.

A template that never ends, or that fills the memory, is stopped there before it runs in the process of a user.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_pipeline.prompt.base_template.sandbox import DateAsked, TemplateFault, compiled

_MOST_BYTES = 2 << 30
_MOST_SECONDS = 60
_ROOT = Path(__file__).resolve().parents[3]
_PROGRAM = (
    f"import sys; sys.path.insert(0, {str(_ROOT)!r}); from data_pipeline.prompt.base_template.probe import main; main()"
)


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What a template made of one set of variables. text: None where it failed, with the fault for people.

    date_format: what it asked `strftime_now` for, where that was the fault.
    """

    text: str | None
    fault: str = ""
    date_format: str | None = None


def probe(text: str, renders: Sequence[Mapping[str, Any]], *, dates: Mapping[str, str]) -> list[Probed]:
    """Render a template for each set of variables. Raises TemplateFault where it is stopped, or cannot be compiled."""
    answer = json.loads(_known(json.dumps({"text": text, "renders": list(renders), "dates": dict(dates)})))
    if isinstance(answer, str):
        raise TemplateFault(answer)
    return [Probed(**entry) for entry in answer]


@lru_cache(maxsize=32)
def _known(request: str) -> str:
    """The answer of the process; a TemplateFault is raised again each time."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM], input=request, capture_output=True, text=True, timeout=_MOST_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise TemplateFault(f"it does not end within {_MOST_SECONDS} seconds") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["killed"])[-1]
        raise TemplateFault(f"it could not be tried ({last[:200]}); it may need too much memory")
    return done.stdout


def main() -> None:
    """Render what comes in as JSON; the texts go out as JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    request = json.load(sys.stdin)
    try:
        render = compiled(request["text"])
    except TemplateFault as error:
        json.dump(str(error), sys.stdout)
        return
    found: list[dict[str, str | None]] = []
    for variables in request["renders"]:
        try:
            found.append({"text": render(variables, dates=request["dates"])})
        except DateAsked as error:
            found.append({"text": None, "fault": str(error), "date_format": error.format})
        except (TemplateFault, MemoryError) as error:
            found.append({"text": None, "fault": str(error) or "it needs too much memory"})
    json.dump(found, sys.stdout)
