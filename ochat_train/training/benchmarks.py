"""Benchmarks that the model in training answers when a run validates."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.prepared.dataset import TOKENIZER_FOLDER, Manifest
from ochat_train.distributed.agreement import on_every_rank, require_agreement
from ochat_train.distributed.ranks import Ranks
from ochat_train.evaluation.answers import PackedAnswerer, num_tokens_read
from ochat_train.evaluation.evaluate import Between
from ochat_train.evaluation.results import BenchmarkScore, BenchmarkScores
from ochat_train.evaluation.schedule import affordable_answers
from ochat_train.recipe.recipe import Recipe
from ochat_train.suites.benchmarks import Benchmark, digest, load_benchmarks
from ochat_train.suites.intervals import mean_estimate
from ochat_train.suites.suite import Question, Scored
from ochat_train.system.pretrained import load_tokenizer, prompt_ids


@dataclass(frozen=True, kw_only=True)
class BenchmarkQuestions:
    """The questions of a run, those that fit into a pack with their answers. tokenizer: of the prepared dataset."""

    benchmarks: Sequence[Benchmark]
    tokenizer: Any

    def prompt(self, question: Question, condition: str) -> list[int]:
        """The ids of a question under a condition."""
        messages = [{"role": "user", "content": question.turns[0]}]
        ids: list[int] = prompt_ids(self.tokenizer, messages, condition=condition, add_generation_prompt=True)
        return ids


def agreed_benchmarks(recipe: Recipe, manifest: Manifest, ranks: Ranks) -> BenchmarkQuestions | None:
    """The questions of a recipe, the same on all hosts; None without any. All ranks call it.

    Raises UserError where they cannot be read, or none of a benchmark fits into a pack.
    """
    if not recipe.validation.benchmarks:
        return None
    questions = on_every_rank(ranks, partial(benchmark_questions, recipe, manifest))
    require_agreement(ranks, {"questions of validation.benchmarks": digest(questions.benchmarks)})
    return questions


def benchmark_questions(recipe: Recipe, manifest: Manifest) -> BenchmarkQuestions:
    """As `agreed_benchmarks`, on one rank."""
    loaded = load_benchmarks(recipe.validation, conditions=[row.condition for row in manifest.classes])
    tokenizer = load_tokenizer(Path(recipe.data.prepared_dir) / TOKENIZER_FOLDER)
    whole = BenchmarkQuestions(benchmarks=loaded, tokenizer=tokenizer)
    return replace(whole, benchmarks=[_fitting(whole, benchmark, recipe) for benchmark in loaded])


def _fitting(questions: BenchmarkQuestions, benchmark: Benchmark, recipe: Recipe) -> Benchmark:
    """A benchmark with those of its questions that fit into a pack, and no more than the recipe's limit.

    The limit is taken first, so that the sample does not depend on the length of a pack.
    """
    sample = benchmark.sample(benchmark.limit, seed=recipe.seed)
    most = recipe.train.pack_length_tokens - benchmark.max_new_tokens - 1
    fitting = tuple(
        question
        for question in sample.questions
        if max(len(questions.prompt(question, condition)) for condition in benchmark.conditions) <= most
    )
    if not fitting:
        problem = (
            f"no question fits into train.pack_length_tokens {recipe.train.pack_length_tokens} with an answer of "
            f"{benchmark.max_new_tokens} tokens"
        )
        raise UserError(benchmark.place, problem, "set `answer_tokens`, or raise the pack length")
    return replace(sample, questions=fitting)


class Benchmarks:
    """Asks the benchmarks of a run after every `every_steps` steps, and after the last one."""

    def __init__(self, recipe: Recipe, questions: BenchmarkQuestions, *, every_steps: int, num_steps: int) -> None:
        self._questions, self._every_steps, self._num_steps, self._seed = questions, every_steps, num_steps, recipe.seed
        self._started, self._spent_seconds = time.monotonic(), 0.0
        self._answerer = PackedAnswerer(
            end_id=questions.tokenizer.eos_token_id,
            pack_length=recipe.train.pack_length_tokens,
            compiled=bool(recipe.model.compile),
        )
        self.asked = [self._affordable(benchmark, recipe) for benchmark in questions.benchmarks]

    def is_due(self, step: int) -> bool:
        """Whether to ask after step `step` (from 1)."""
        return step % self._every_steps == 0 or step == self._num_steps

    def run(self, engine: Any, ranks: Ranks, step: int, *, between: Between) -> BenchmarkScores:
        """Ask and score; all ranks call it and get the same.

        between: called on all ranks together while it works; what it raises ends the asking.
        """
        start = time.monotonic()
        scores = [
            self._score(engine, ranks, benchmark, condition, between)
            for benchmark in self.asked
            for condition in benchmark.conditions
        ]
        seconds = time.monotonic() - start
        self._spent_seconds += seconds
        return BenchmarkScores(
            step=step,
            scores=scores,
            seconds=round(seconds, 3),
            benchmark_time_ratio=round(self._spent_seconds / (time.monotonic() - self._started), 4),
        )

    def _score(
        self, engine: Any, ranks: Ranks, benchmark: Benchmark, condition: str, between: Between
    ) -> BenchmarkScore:
        tokenizer = self._questions.tokenizer
        prompts = [self._questions.prompt(question, condition) for question in benchmark.questions]
        what = f"{benchmark.suite.name}, tokens of answers"
        answers = self._answerer.answers(
            engine, ranks, prompts, max_new_tokens=benchmark.max_new_tokens, between=partial(between, what)
        )
        cut = [tokenizer.eos_token_id not in ids for ids in answers]
        whole = [ids if is_cut else ids[:-1] for ids, is_cut in zip(answers, cut, strict=True)]
        texts = [str(tokenizer.decode(ids, skip_special_tokens=True)).removeprefix(" ") for ids in whole]
        return self._summary(benchmark, condition, benchmark.scored(texts, cut=cut), cut)

    def _summary(
        self, benchmark: Benchmark, condition: str, scored: Sequence[Scored], cut: Sequence[bool]
    ) -> BenchmarkScore:
        found = mean_estimate([score.value for score in scored], seed=self._seed, highest=benchmark.suite.highest)
        return BenchmarkScore(
            suite=benchmark.suite.name,
            condition=condition,
            score=found.mean,
            low=found.low,
            high=found.high,
            answered=sum(score.is_answered for score in scored) / len(scored),
            cut=sum(cut) / len(scored),
            questions=len(scored),
        )

    def _affordable(self, benchmark: Benchmark, recipe: Recipe) -> Benchmark:
        """A benchmark whose limit the recipe leaves open, with as many questions as there is time for."""
        if benchmark.limit is not None:
            return benchmark
        lengths = [
            len(self._questions.prompt(question, condition))
            for question in benchmark.questions
            for condition in benchmark.conditions
        ]
        read = sum(num_tokens_read(length, max_new_tokens=benchmark.max_new_tokens) for length in lengths)
        limit = affordable_answers(
            tokens_of_one=read / len(benchmark.questions),
            tokens_per_step=recipe.train.tokens_per_step,
            every_steps=self._every_steps,
            num_benchmarks=len(self._questions.benchmarks),
        )
        return benchmark.sample(limit, seed=self._seed)
