"""`python -m ochat_train` whose answers to sample prompts take a third of a second a token."""

import dataclasses
import sys
import time
from typing import Any

from ochat_train.cli.main import main
from ochat_train.evaluation import answers


def slow_replace(value: Any, **changes: Any) -> Any:
    """As `dataclasses.replace`, which the answerer calls once a token."""
    time.sleep(0.33)
    return dataclasses.replace(value, **changes)


if __name__ == "__main__":
    answers.replace = slow_replace  # type: ignore[attr-defined]
    sys.exit(main(["train", *sys.argv[1:]]))
