"""Do our matching rules find what OpenChat's own do, and what filters of lm-evaluation-harness do?

    python benchmarks/matching_rules.py --openchat CHECKOUT --lm-eval SITE_PACKAGES

CHECKOUT: of imoneoi/openchat, whose `ochat/evaluation/match_answer.py` is run. SITE_PACKAGES: a folder in which
lm-eval is installed. Nothing of either is part of this project.

Answers are made by a seed: right and wrong ones of one question of each kind, in many shapes. For each rule, the table
says in how many of the answers the verdict (right or wrong) is the same, and shows the first answers where it is not.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ochat_train.suites import math  # noqa: E402
from ochat_train.suites.numbers import last_number  # noqa: E402
from ochat_train.suites.rules import RULES  # noqa: E402

NUM_ANSWERS = 100  # of each of the five kinds
NUM_SHOWN = 2

_CHOICES = (
    "{x}", "({x})", "{x}.", "({x}).", "({x}) because the others do not fit.", "The answer is ({x}).",
    "The answer is {x}.", "the answer is ({x})", "So the answer is ({x}).", "So the answer is ({x}), not ({y}).",
    "Let me think. ({y}) is wrong. The answer is ({x}).", "Answer: ({x})", "Answer: {x}", "**{x}**",
    "**Answer:** ({x})",
    "I choose option {x}.", "It cannot be ({y}), so it is ({x})", "The answer is ({y}). No, the answer is ({x}).",
    "First ({y}) comes to mind.\nSo the answer is ({x}).\n\nQ: another one", "x", "", "I do not know.",
    "The answer is: ({x})", "the answer is probably ({x})", "Because of that, ({x}) holds.", "\\boxed{{{x}}}",
)  # fmt: skip
_TEXTS = (
    "{x}", "So the answer is {x}.", "the answer is {x}", "The answer is {x}.", "The answer is {x}..", "Answer: {x}",
    "2 and 2 is {y}. So the answer is {x}.", "So the answer is {y}. Wait, the answer is {x}.", "the answer is  {x} .",
    "So the answer is {x}.\n\nQ: another one", "{x}.", "the answer is: {x}", "I do not know.", "", "the answer is ",
    "So the answer is not {x}.", "The Answer is {x}.", "**{x}**",
)  # fmt: skip
_NUMBERS = (
    "{x}", "#### {x}", "The answer is {x}.", "so {x} dollars", "${x}", "It costs ${x}.00.", "{y} + {y} = {x}",
    "**{x}**",
    "{x} of them, which is {y}", "#### {x}\nI used {y} steps.", "The answer is {x}", "-{x}", "x = {x}", "{x}%", "none",
    "", "The answer is ${x}.", "{y} - {y} + {x} = {x}.", "about {x}.5", "{x}/1", "so it is {x}!",
)  # fmt: skip
_FORMULAS = (
    "\\boxed{{{x}}}", "So $x = \\boxed{{{x}}}$.", "\\boxed{{ {x} }}", "\\boxed{{{y}}} or rather \\boxed{{{x}}}",
    "The answer is ${x}$.", "\\fbox{{{x}}}", "\\boxed{{\\left( {x} \\right)}}", "\\boxed{{{x}\\text{{ units}}}}",
    "\\boxed{{\\${x}}}", "{x}", "", "\\boxed{{", "$\\boxed{{{x}}}$ and that is all",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """An answer to a question with one right answer."""

    answer: str
    right: str


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """One rule of ours, and others that judge the same answers. others: name -> verdicts."""

    rule: str
    cases: Sequence[Case]
    ours: Sequence[bool]
    others: dict[str, Sequence[bool]]


def made(rng: random.Random, shapes: Sequence[str], values: Sequence[str], right: Callable[[], str]) -> list[Case]:
    """Answers in shapes drawn at random; in half of them x is the right answer."""
    cases = []
    for number in range(NUM_ANSWERS):
        truth = right()
        wrong = [value for value in values if value != truth]
        x = truth if rng.random() < 0.5 else rng.choice(wrong)
        shape = shapes[number % len(shapes)]
        cases.append(Case(answer=shape.format(x=x, y=rng.choice(wrong)), right=truth))
    return cases


class OpenChat:
    """OpenChat's rules, from a checkout. Its grader of formulas needs SymPy and is not used."""

    def __init__(self, checkout: Path) -> None:
        name = "ochat.evaluation.grading.math_grader"
        grader = types.ModuleType(name)
        grader.grade_answer = None  # type: ignore[attr-defined]
        for parent in ("ochat", "ochat.evaluation", "ochat.evaluation.grading"):
            sys.modules.setdefault(parent, types.ModuleType(parent))
        sys.modules[name] = grader
        self._rules = module_of(checkout / "ochat" / "evaluation" / "match_answer.py").MATCH_ANSWER_FUNCTION

    def verdict(self, kind: str, answer: str, label: Any, options: Sequence[str] | None) -> bool:
        """Right or wrong, as its `run_eval.py` says: the answer is in the label. An error is wrong there too."""
        try:
            _, found = self._rules[kind]({"options": options}, answer)
            return found in label
        except Exception:  # its rule for free answers fails at an empty one
            return False


class Harness:
    """Filters and metrics of lm-eval, as its tasks configure them."""

    def __init__(self, site: Path) -> None:
        sys.path.append(str(site))
        self._tasks = site / "lm_eval" / "tasks"
        yaml.SafeLoader.add_constructor("!function", lambda loader, node: str(node.value))

    def verdicts(self, task: str, name: str, cases: Sequence[Case], targets: Sequence[str]) -> list[bool]:
        """task: a YAML file of a task. name: of its filter."""
        from lm_eval.api.metrics import exact_match_hf_evaluate
        from lm_eval.filters import extraction

        config = yaml.safe_load((self._tasks / task).read_text(encoding="utf-8"))
        [steps] = [entry["filter"] for entry in config["filter_list"] if entry["name"] == name]
        kinds = {
            "regex": extraction.RegexFilter,
            "multi_choice_regex": extraction.MultiChoiceRegexFilter,
            "remove_whitespace": extraction.WhitespaceFilter,
        }
        found: list[list[str]] = [[case.answer] for case in cases]
        docs = [{"choices": ["none of these"] * 4} for _ in cases]
        for step in steps:
            if step["function"] == "take_first":
                continue
            options = {key: value for key, value in step.items() if key != "function"}
            found = list(kinds[step["function"]](**options).apply(found, docs))
        [metric] = config["metric_list"]
        options = {
            key: value for key, value in metric.items() if key not in ("metric", "aggregation", "higher_is_better")
        }
        return [
            bool(exact_match_hf_evaluate([answer[0]], [target], **options)["exact_match"])
            for answer, target in zip(found, targets, strict=True)
        ]

    def formulas(self, cases: Sequence[Case]) -> list[bool]:
        """The comparison of hendrycks_math, of the last boxed formula."""
        tools = module_of(self._tasks / "hendrycks_math" / "utils.py")
        verdicts = []
        for case in cases:
            boxed = tools.last_boxed_only_string(case.answer)
            try:
                found = tools.remove_boxed(boxed) if boxed else case.answer
                verdicts.append(bool(tools.is_equiv(found, case.right)))
            except Exception:  # an answer that it cannot take apart
                verdicts.append(False)
        return verdicts


def module_of(path: Path) -> Any:
    """A Python file as a module."""
    spec = importlib.util.spec_from_file_location(f"other_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(openchat: OpenChat, harness: Harness) -> list[Verdicts]:
    """All verdicts."""
    rng = random.Random(0)
    letters = ["A", "B", "C", "D"]
    bracketed = [f"({letter})" for letter in letters]
    words = ["True", "False", "yes", "no", "valid", "invalid"]
    numbers = ["18", "7", "1,250", "3", "240"]
    first = made(rng, _CHOICES, letters, lambda: rng.choice(letters))
    cot = made(rng, _CHOICES, letters, lambda: rng.choice(letters))
    texts = made(rng, _TEXTS, words, lambda: rng.choice(words))
    sums = made(rng, _NUMBERS, numbers, lambda: rng.choice(numbers))
    formulas = made(rng, _FORMULAS, ["3", "12", "x+1", "\\frac{1}{2}"], lambda: "\\frac{1}{2}")
    in_brackets = [f"({case.right})" for case in cot]
    flan, bbh = (
        "mmlu/flan_cot_zeroshot/_mmlu_flan_cot_zeroshot_template_yaml",
        "bbh/cot_fewshot/_cot_fewshot_template_yaml",
    )
    gsm8k = "gsm8k/gsm8k-cot-zeroshot.yaml"
    digits = [case.right.replace(",", "") for case in sums]

    def ours(rule: str, cases: Sequence[Case], labels: Sequence[str]) -> list[bool]:
        return [RULES[rule].find(case.answer, letters).text == label for case, label in zip(cases, labels, strict=True)]

    def theirs(kind: str, cases: Sequence[Case], labels: Sequence[Any], options: Sequence[str] | None) -> list[bool]:
        return [openchat.verdict(kind, case.answer, label, options) for case, label in zip(cases, labels, strict=True)]

    rights = [case.right for case in first]
    return [
        Verdicts(
            rule="first letter A-F",
            cases=first,
            ours=ours("first letter A-F", first, rights),
            others={"OpenChat zs/agieval": theirs("zs/agieval", first, [[right] for right in rights], letters)},
        ),
        Verdicts(
            rule="first option letter",
            cases=first,
            ours=ours("first option letter", first, rights),
            others={"OpenChat zs/bbh_mc_orca": theirs("zs/bbh_mc_orca", first, [[right] for right in rights], letters)},
        ),
        Verdicts(
            rule="MMLU",
            cases=cot,
            ours=ours("MMLU", cot, in_brackets),
            others={
                "OpenChat fs_cothub/mmlu": theirs("fs_cothub/mmlu", cot, in_brackets, bracketed),
                "lm-eval mmlu_flan_cot, strict-match": harness.verdicts(flan, "strict-match", cot, in_brackets),
            },
        ),
        Verdicts(
            rule="BBH choice",
            cases=cot,
            ours=ours("BBH choice", cot, in_brackets),
            others={
                "OpenChat fs_cothub/bbh": theirs("fs_cothub/bbh", cot, [[right] for right in in_brackets], bracketed),
                "lm-eval bbh_cot_fewshot, get-answer": harness.verdicts(bbh, "get-answer", cot, in_brackets),
            },
        ),
        Verdicts(
            rule="strict (stated)",
            cases=cot,
            ours=ours("stated", cot, [case.right for case in cot]),
            others={
                "OpenChat fs_cothub/mmlu": theirs("fs_cothub/mmlu", cot, in_brackets, bracketed),
                "lm-eval mmlu_flan_cot, strict-match": harness.verdicts(flan, "strict-match", cot, in_brackets),
                "lm-eval mmlu_flan_cot, flexible-extract": harness.verdicts(flan, "flexible-extract", cot, in_brackets),
            },
        ),
        Verdicts(
            rule="BBH text",
            cases=texts,
            ours=ours("BBH text", texts, [case.right for case in texts]),
            others={
                "OpenChat fs_cothub/bbh": theirs("fs_cothub/bbh", texts, [[case.right] for case in texts], None),
                "lm-eval bbh_cot_fewshot, get-answer": harness.verdicts(
                    bbh, "get-answer", texts, [case.right for case in texts]
                ),
            },
        ),
        Verdicts(
            rule="last digits",
            cases=sums,
            ours=ours("last digits", sums, digits),
            others={"OpenChat fs_cothub/gsm8k": theirs("fs_cothub/gsm8k", sums, [[each] for each in digits], None)},
        ),
        Verdicts(
            rule="gsm8k, our own",
            cases=sums,
            ours=[last_number(case.answer) == last_number(case.right) for case in sums],
            others={
                "OpenChat fs_cothub/gsm8k": theirs("fs_cothub/gsm8k", sums, [[each] for each in digits], None),
                "lm-eval gsm8k_cot, flexible-extract": harness.verdicts(gsm8k, "flexible-extract", sums, digits),
                "lm-eval gsm8k_cot, strict-match": harness.verdicts(gsm8k, "strict-match", sums, digits),
            },
        ),
        Verdicts(
            rule="math",
            cases=formulas,
            ours=[
                (found := math.find_answer(case.answer)) is not None and math.is_same(found, case.right)
                for case in formulas
            ],
            others={"lm-eval hendrycks_math": harness.formulas(formulas)},
        ),
    ]


def main() -> None:
    """Print the table, then what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--openchat", type=Path, required=True, metavar="CHECKOUT")
    parser.add_argument("--lm-eval", type=Path, required=True, metavar="SITE_PACKAGES")
    options = parser.parse_args()
    rows = measure(OpenChat(options.openchat), Harness(options.lm_eval))
    print("| our rule | right, of 100 | judged by | right | same verdict |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        for name, theirs in row.others.items():
            same = sum(one == other for one, other in zip(row.ours, theirs, strict=True))
            print(f"| {row.rule} | {sum(row.ours)} | {name} | {sum(theirs)} | {same} |")
    for row in rows:
        for name, theirs in row.others.items():
            different = [
                (case, one) for case, one, other in zip(row.cases, row.ours, theirs, strict=True) if one != other
            ]
            for case, one in different[:NUM_SHOWN]:
                verdict = "right only for us" if one else "right only there"
                print(f"{row.rule} / {name}: {json.dumps(case.answer)} (right: {case.right}): {verdict}")


if __name__ == "__main__":
    main()
