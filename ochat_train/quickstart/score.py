"""How many held-out questions an export answers rightly under each condition:

python -m ochat_train.quickstart.score runs/quickstart/export data/quickstart/held_out.jsonl
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from ochat_train.export import OCHAT_FILE
from ochat_train.generate import Generator

_BATCH = 100
_MAX_ANSWER_TOKENS = 12


def main() -> None:
    """Print the table of right answers, a row per task and a column per condition."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="exported folder")
    parser.add_argument("held_out", type=Path, help="held_out.jsonl")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    problems = [json.loads(line) for line in options.held_out.read_text(encoding="utf-8").splitlines()]
    classes = json.loads((options.model / OCHAT_FILE).read_text(encoding="utf-8"))["classes"]
    generator = Generator(options.model)
    scores = {row["name"]: right_ratio_by_task(generator, problems, row["condition"]) for row in classes}
    if options.json:
        print(json.dumps(scores))
        return
    print(f"\nright answers to {len(problems)} questions that were not trained on, by condition in the prompt")
    print(f"{'task':<16}" + "".join(f"{name:>14}" for name in scores))
    for task in next(iter(scores.values())):
        print(f"{task:<16}" + "".join(f"{ratios[task]:>14.0%}" for ratios in scores.values()))


def right_ratio_by_task(generator: Generator, problems: list[dict[str, str]], condition: str) -> dict[str, float]:
    """Share of right answers for each task, and for `all`."""
    asked, right = Counter[str](), Counter[str]()
    for start in range(0, len(problems), _BATCH):
        batch = problems[start : start + _BATCH]
        answers = generator.answers(
            [[{"role": "user", "content": problem["question"]}] for problem in batch],
            condition=condition, max_new_tokens=_MAX_ANSWER_TOKENS, temperature=0.0,
        )  # fmt: skip
        for problem, answer in zip(batch, answers, strict=True):
            for key in (problem["task"], "all"):
                asked[key] += 1
                right[key] += answer == problem["right"]
    return {task: right[task] / asked[task] for task in sorted(asked, key=lambda task: (task == "all", task))}


if __name__ == "__main__":
    main()
