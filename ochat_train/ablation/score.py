"""Scores one trained arm on the conversations that C-RLFT's own preparation held out, the same for every arm:

python -m ochat_train.ablation.score RUN PREPARED_DIR RESULT.json [QUESTIONS.jsonl] [--benchmarks RECIPE.json]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from data_pipeline import nesting
from data_pipeline.errors import UserError
from data_pipeline.prepared.dataset import TOKENIZER_FOLDER, Manifest
from data_pipeline.prepared.integrity import verify
from ochat_train.ablation.results import ArmScore
from ochat_train.checkpoint.choose import find_checkpoint
from ochat_train.checkpoint.state import CheckpointManifest
from ochat_train.distributed.ranks import Ranks
from ochat_train.evaluation.evaluate import evaluate
from ochat_train.evaluation.held_out import held_out_data
from ochat_train.evaluation.questions import load_questions, right_ratios_by_condition
from ochat_train.export.trained import load_model
from ochat_train.inference.generate import Generator
from ochat_train.model.attention.choose import choose_attention
from ochat_train.model.attention.needs import attention_needs
from ochat_train.model.attention.register import register_attention
from ochat_train.model.packed import PackedCausalLM
from ochat_train.recipe.sections.validation import ValidationSettings
from ochat_train.runs.folder import read_run_folder
from ochat_train.suites.benchmarks import Benchmark, load_benchmarks
from ochat_train.system.durable import replace_text
from ochat_train.system.library_output import quiet_libraries

_BATCH = 100  # questions that are answered together
_MOST_QUESTIONS = 500  # of a benchmark whose limit the recipe leaves open


def main() -> None:
    """Score a run and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("prepared_dir", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("questions", type=Path, nargs="?")
    parser.add_argument("--benchmarks", type=Path, help="recipe.json with `validation.benchmarks`")
    options = parser.parse_args()
    quiet_libraries()
    result = score(options.run_dir, options.prepared_dir, questions=options.questions, recipe_file=options.benchmarks)
    replace_text(options.result, json.dumps(result.to_json(), indent=1, allow_nan=False) + "\n")


def score(run_dir: Path, prepared_dir: Path, *, questions: Path | None, recipe_file: Path | None = None) -> ArmScore:
    """The newest checkpoint of a run on the held-out conversations of a prepared dataset, on questions, and on the
    benchmarks of a recipe.

    Raises UserError where nothing was held out, or there is no checkpoint.
    """
    run = read_run_folder(run_dir)
    manifest = Manifest.load(prepared_dir)
    if manifest is None or not manifest.splits["validation"].conversations:
        raise UserError(prepared_dir, "holds no held-out conversations", "set data.validation_ratio")
    verify(prepared_dir, manifest)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    checkpoint = find_checkpoint(run.path, None)
    causal_lm = load_model(run, checkpoint).to(device)
    settings = run.recipe.validation
    generator = Generator(causal_lm, run.path / TOKENIZER_FOLDER)
    benchmarks = {} if recipe_file is None else _benchmark_scores(generator, recipe_file, manifest)
    accuracy = right_ratios_by_condition(
        generator,
        load_questions(questions) if questions else [],
        manifest.conditions,
        max_new_tokens=settings.answer_tokens,
        pattern=settings.answer_pattern,
    )
    # after the answers, which are generated with the kernel that transformers chooses
    needs = replace(attention_needs(causal_lm), dropout=0.0)  # nothing is dropped in an evaluation
    kernel = choose_attention(run.recipe.model.attention, device=device, dtype=causal_lm.dtype, needs=needs)
    causal_lm.set_attn_implementation(register_attention(kernel))
    data = held_out_data(prepared_dir, manifest, pack_length=run.recipe.train.pack_length_tokens)
    longest = run.recipe.model.max_length_tokens
    model = PackedCausalLM(causal_lm, num_classes=len(manifest.classes), max_length_tokens=longest)
    found = evaluate(model, data, Ranks(rank=0, num_ranks=1, device=device), seed=0)
    if len(run.prepared.conditions) < 2:
        found = found.without_verdicts()
    return ArmScore(
        step=CheckpointManifest.load(checkpoint).step, evaluation=found, accuracy=accuracy, benchmarks=benchmarks
    )


def _benchmark_scores(generator: Generator, recipe_file: Path, manifest: Manifest) -> dict[str, dict[str, float]]:
    """Suite -> condition -> mean score of the benchmarks of a recipe, greedy. Every arm gets the same questions."""
    values = nesting.loads(recipe_file.read_text(encoding="utf-8"))
    settings = ValidationSettings.model_validate(values["validation"])
    scores: dict[str, dict[str, float]] = {}
    for loaded in load_benchmarks(settings, conditions=[row.condition for row in manifest.classes]):
        benchmark = loaded.sample(loaded.limit or _MOST_QUESTIONS, seed=values["seed"])
        scores[benchmark.suite.name] = {
            condition: _benchmark_score(generator, benchmark, condition) for condition in benchmark.conditions
        }
    return scores


def _benchmark_score(generator: Generator, benchmark: Benchmark, condition: str) -> float:
    texts: list[str] = []
    for start in range(0, len(benchmark.questions), _BATCH):
        texts += generator.answers(
            [[{"role": "user", "content": q.turns[0]}] for q in benchmark.questions[start : start + _BATCH]],
            condition=condition,
            max_new_tokens=benchmark.max_new_tokens,
            temperature=0.0,
        )
    scored = benchmark.scored(texts, cut=[False] * len(texts))
    return sum(each.value for each in scored) / len(scored)


if __name__ == "__main__":
    main()
