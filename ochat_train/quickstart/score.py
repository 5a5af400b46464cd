"""How many held-out questions an export answers rightly under each condition:

python -m ochat_train.quickstart.score runs/quickstart/export data/quickstart/held_out.jsonl
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ochat_train.evaluation.questions import load_questions, right_ratios_by_condition
from ochat_train.export.layout import EXPORT_MARK
from ochat_train.inference.generate import load_generator
from ochat_train.system.scripts import run_script

_MAX_ANSWER_TOKENS = 12


def main() -> None:
    """Print the table of right answers, a row per task and a column per condition."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="exported folder")
    parser.add_argument("held_out", type=Path, help="held_out.jsonl")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    questions = load_questions(options.held_out)
    classes = json.loads((options.model / EXPORT_MARK).read_text(encoding="utf-8"))["classes"]
    conditions = {row["name"]: row["condition"] for row in classes}
    ratios = right_ratios_by_condition(
        load_generator(options.model), questions, list(conditions.values()), max_new_tokens=_MAX_ANSWER_TOKENS
    )
    scores = {name: ratios[condition] for name, condition in conditions.items()}
    if options.json:
        print(json.dumps(scores))
        return
    print(f"\nright answers to {len(questions)} questions that were not trained on, by condition in the prompt")
    print(f"{'task':<16}" + "".join(f"{name:>14}" for name in scores))
    for task in next(iter(scores.values())):
        cells = [f"{of_class[task]:>14.0%}" for of_class in scores.values()]
        print(f"{task:<16}{''.join(cells)}")


if __name__ == "__main__":
    run_script("ochat_train.quickstart.score", main)
