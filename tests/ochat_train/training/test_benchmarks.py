"""Benchmarks in training: answers of greedy generation on any number of ranks, and nothing of the training changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.errors import UserError
from data_pipeline.prepared.dataset import Manifest
from ochat_train.checkpoint.state import list_checkpoints
from ochat_train.evaluation.answers import num_tokens_read
from ochat_train.evaluation.results import BenchmarkScores
from ochat_train.evaluation.schedule import affordable_answers
from ochat_train.export.export import export
from ochat_train.export.trained import load_trained_weights
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import prepare_recipe
from ochat_train.training.benchmarks import Benchmarks, benchmark_questions
from tests.support.processes import train_on_ranks
from tests.support.small_recipe import TINY_MODEL, RecipeFactory

STEPS = 6
ANSWER_TOKENS = 40  # more than one block of answers
CONDITIONS = ["GPT4 Correct", "GPT3"]
DROPOUT = {"model__config": {**TINY_MODEL, "attention_dropout": 0.1}}


def written_questions(folder: Path, answers: list[str] | None = None) -> Path:
    """Questions whose right answers are `answers`, and by default texts that no model writes."""
    texts = ["Question 1.0: how are you?", "42", "Hello there.", "Is it so, and if it is, why is it so?", "A?", "What?"]
    rows = [
        {"task": "", "question": text, "answer": answer}
        for text, answer in zip(texts, answers or ["never said"] * len(texts), strict=True)
    ]
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def train_all(tmp_path: Path, make_recipe: RecipeFactory) -> Callable[..., list[Path]]:
    """Prepares and trains recipes (name -> changes) on ranks that are started once; returns their run folders."""

    def run(runs: dict[str, dict[str, Any]], *arguments: str, num_ranks: int = 2) -> list[Path]:
        commands: list[list[Any]] = []
        for name, changes in runs.items():
            own = {"output_dir": str(tmp_path / name), "data__prepared_dir": str(tmp_path / f"{name}-prepared")}
            own |= {"train__max_steps": STEPS, "train__epochs": 2, "validation__every_steps": 3}
            own |= {"validation__sample_tokens": 0, "checkpoint__save_every_steps": 3}
            recipe = make_recipe(**{**own, **changes})
            prepare_recipe(load_recipe(recipe), num_workers=1, progress=lambda rows: None)
            commands.append(["train", recipe.rename(tmp_path / f"{name}.yaml"), *arguments])
        train_on_ranks(*commands, num_ranks=num_ranks)
        return [tmp_path / name for name in runs]

    return run


def entry(data: Path, **more: Any) -> list[dict[str, Any]]:
    values = {"suite": "held-out", "data": str(data), "answer_tokens": ANSWER_TOKENS, "limit": 6}
    return [values | more]


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "benchmarks.jsonl").read_text().splitlines()]


def scores(run_dir: Path) -> list[Any]:
    return [(line["step"], line["scores"]) for line in lines(run_dir)]


def greedy_answers(run_dir: Path, data: Path) -> list[tuple[str, bool]]:
    """Text, and whether it reached the limit, for each condition and question, by `transformers` alone."""
    import transformers

    out = export(run_dir, run_dir / "export", step=None, max_shard_size="5GB")
    model = transformers.AutoModelForCausalLM.from_pretrained(out, attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    found = []
    for condition in CONDITIONS:
        for line in data.read_text().splitlines():
            messages = [{"role": "user", "content": json.loads(line)["question"]}]
            ids = tokenizer.apply_chat_template(
                messages, condition=condition, add_generation_prompt=True, return_dict=False
            )
            new = model.generate(torch.tensor([ids]), max_new_tokens=ANSWER_TOKENS, do_sample=False)[0, len(ids) :]
            text = tokenizer.decode(new, skip_special_tokens=True).removeprefix(" ")
            found.append((text, tokenizer.eos_token_id not in new.tolist()))
    return found


def test_scores_are_those_of_greedy_generation_on_any_number_of_ranks(
    tmp_path: Path, train_all: Callable[..., list[Path]]
) -> None:
    """The first training says what the model answers; in the second ones some of these answers are the right ones."""
    data, still = written_questions(tmp_path), {"optimizer__learning_rate": 1e-12, "train__max_steps": 3}
    [first] = train_all({"first": {**still, "validation__benchmarks": entry(data)}}, num_ranks=1)
    answers = greedy_answers(first, data)
    right = [text if number in (0, 3, 4) else "never said" for number, (text, _) in enumerate(answers[:6])]
    written_questions(tmp_path, right)
    expected = [
        sum(text.strip() == right[number % 6].strip() for number, (text, _) in part) / 6
        for part in (list(enumerate(answers))[:6], list(enumerate(answers))[6:])
    ]
    assert 0.5 <= expected[0] < 1.0
    benchmarks = {"validation__benchmarks": entry(data)}
    stages = {f"stage{stage}": {**still, **benchmarks, "deepspeed__zero_stage": stage} for stage in (1, 3)}
    for run in [*train_all(stages), *train_all({"alone": {**still, **benchmarks}}, num_ranks=1)]:
        [line] = lines(run)
        assert line["step"] == 3
        assert [row["condition"] for row in line["scores"]] == CONDITIONS
        assert [row["score"] for row in line["scores"]] == pytest.approx(expected)
        assert [row["cut"] for row in line["scores"]] == [
            sum(is_cut for _, is_cut in answers[:6]) / 6,
            sum(is_cut for _, is_cut in answers[6:]) / 6,
        ]
        assert [row["questions"] for row in line["scores"]] == [6, 6]
        assert BenchmarkScores.from_json(line).to_json() == line


def test_benchmarks_change_nothing_of_the_training_and_resume(
    tmp_path: Path, train_all: Callable[..., list[Path]]
) -> None:
    benchmarks = {"validation__benchmarks": entry(written_questions(tmp_path))}
    runs = train_all({"with": {**benchmarks, **DROPOUT}, "without": DROPOUT, "other": {**DROPOUT, "seed": 2}})
    weights = [load_trained_weights(list_checkpoints(run)[-1]) for run in runs]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])  # the control
    before = scores(runs[0])
    assert [step for step, _ in before] == [3, 6]
    assert not (runs[1] / "benchmarks.jsonl").exists()
    newest = list_checkpoints(runs[0])[-1]
    newest.rename(newest.with_name("away"))
    train_on_ranks(["train", runs[0].with_suffix(".yaml")])
    assert scores(runs[0]) == before
    again = load_trained_weights(list_checkpoints(runs[0])[-1])
    assert all(torch.equal(weights[0][name], again[name]) for name in again)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"suite": "held-outt"}, r"benchmarks.0.suite: held-outt is no suite; .*held-out"),
        ({"suite": "mt-bench"}, r"benchmarks.0: --judge: "),
        ({"data": "nothing.jsonl"}, r"benchmarks.0: .*nothing.jsonl: is not there"),
        (
            {"conditions": ["GPT9"]},
            r"benchmarks.0.conditions: no class has the condition 'GPT9'; known: 'GPT4 Correct'",
        ),
        ({"answer_tokens": 250}, r"benchmarks.0: no question fits into train.pack_length_tokens 256"),
    ],
)
def test_wrong_benchmarks_are_refused(
    changes: dict[str, Any], problem: str, tmp_path: Path, make_recipe: RecipeFactory
) -> None:
    benchmarks = [entry(written_questions(tmp_path))[0] | changes]
    recipe = load_recipe(make_recipe(validation__benchmarks=benchmarks))
    manifest, _ = prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
    with pytest.raises(UserError, match=problem):
        benchmark_questions(recipe, manifest)


def test_the_default_limit_is_what_there_is_time_for(tmp_path: Path, make_recipe: RecipeFactory) -> None:
    benchmarks = entry(written_questions(tmp_path), limit=None)
    recipe = load_recipe(make_recipe(validation__benchmarks=benchmarks))
    manifest, _ = prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
    assert Manifest.load(Path(recipe.data.prepared_dir)) == manifest
    questions = benchmark_questions(recipe, manifest)
    asked = [
        [len(benchmark.questions) for benchmark in Benchmarks(recipe, questions, every_steps=n, num_steps=n).asked]
        for n in (1, 100_000)
    ]
    assert asked[0] < [6]
    assert asked[1] == [6]


def test_the_cost_of_answers() -> None:
    # a block of 32 tokens reads prompt and room 32 times; the next one has 8 tokens, and the first 32 before them
    assert num_tokens_read(100, max_new_tokens=40) == 32 * 132 + 8 * 140
    # 5 % of 10 steps of 1,000 tokens, each as long as three forward passes, is 1,500 tokens; half of it for each of two
    assert affordable_answers(tokens_of_one=74, tokens_per_step=1000, every_steps=10, num_benchmarks=2) == 10
    assert affordable_answers(tokens_of_one=1e9, tokens_per_step=1000, every_steps=10, num_benchmarks=2) == 1
