"""The engine in this process: the answers of `generate`, for each request what its settings say, and no leftovers."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from data_pipeline.errors import UserError
from ochat_train.inference import agreement, continuous, embedded
from ochat_train.inference.answers import whole_answer
from ochat_train.inference.embedded import EmbeddedEngine
from ochat_train.inference.engine import AnswerSettings, EngineError, EngineUnavailable
from ochat_train.inference.generate import Generator, load_generator
from ochat_train.inference.load import load_model
from ochat_train.inference.served_model import ServedModel, load_served_model
from tests.support.tiny_export import write_tiny_export
from tests.support.waiting import wait_for

QUESTIONS = tuple(f"Question {number}: " + "how are you? " * (number % 4) for number in range(12))
PATHS = pytest.mark.parametrize("is_continuous", [True, False], ids=["continuous", "together"])


@pytest.fixture(scope="module", autouse=True)
def little_to_collect() -> Iterator[None]:
    """Each engine that ends collects garbage several times, which takes long where all libraries are looked through."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, small_tokenizer_dir: Path) -> ServedModel:
    folder = tmp_path_factory.mktemp("export")
    return load_served_model(write_tiny_export(folder, small_tokenizer_dir, stop_ids=tuple(range(40, 60))))


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory, small_tokenizer_dir: Path) -> ServedModel:
    """Its answers hardly ever end before their longest length."""
    return load_served_model(write_tiny_export(tmp_path_factory.mktemp("endless"), small_tokenizer_dir))


@asynccontextmanager
async def started(
    served: ServedModel, *, continuous: bool = True, say: Callable[[str], None] = lambda line: None, **options: Any
) -> AsyncIterator[EmbeddedEngine]:
    engine = EmbeddedEngine(served, say=say, **options)
    with nullcontext() if continuous else patch.object(embedded.continuous, "why_not", lambda model: "as asked"):
        await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def prompt(served: ServedModel, text: str, condition: str | None = None) -> list[int]:
    return served.prompt_ids([{"role": "user", "content": text}], condition=condition)


def run(task: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(asyncio.wait_for(task(), 300))  # type: ignore[arg-type]


@PATHS
def test_greedy_answers_are_those_of_generate(served: ServedModel, is_continuous: bool) -> None:
    """All at once, under two conditions, token for token; ends by a list of stop ids."""
    generator = load_generator(served.folder)

    async def task() -> None:
        said: list[str] = []
        async with started(served, continuous=is_continuous, say=said.append) as engine:
            for condition in served.conditions:
                settings = AnswerSettings(max_new_tokens=20)
                asked = [engine.stream(prompt(served, text, condition), settings) for text in QUESTIONS]
                answers = await asyncio.gather(*map(whole_answer, asked))
                expected = generator.answers(
                    [[{"role": "user", "content": text}] for text in QUESTIONS],
                    condition=condition,
                    max_new_tokens=20,
                    temperature=0.0,
                )
                assert [answer.text for answer in answers] == expected
                assert {answer.finish for answer in answers} == {"stop", "length"}
                for answer in answers:
                    assert (answer.num_tokens == 20) or answer.finish == "stop"
        assert ("continuous batching" in said[-1]) == is_continuous

    run(task)


@PATHS
def test_a_seed_gives_the_same_answer_whatever_runs_beside_it(endless: ServedModel, is_continuous: bool) -> None:
    async def task() -> None:
        async with started(endless, continuous=is_continuous) as engine:
            ids = prompt(endless, "Tell me.")

            async def sampled(seed: int | None, temperature: float = 1.5) -> str:
                settings = AnswerSettings(max_new_tokens=16, temperature=temperature, top_p=0.95, seed=seed)
                return (await whole_answer(engine.stream(ids, settings))).text

            alone = [await sampled(7), await sampled(8)]
            beside = await asyncio.gather(*(sampled(7 + number % 2) for number in range(8)), sampled(None, 0.0))
            assert beside[:8] == alone * 4
            assert alone[0] != alone[1], "the control: seeds matter"
            assert len({await sampled(None) for _ in range(3)}) > 1, "without a seed answers differ"
            assert await sampled(1, 1e-6) == await sampled(2, 0.0), "hardly any temperature is greedy"

    run(task)


def whole_characters(text: str) -> str:
    """A token's text as `decode` writes it alone, where it is a part of a character."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


@PATHS
def test_sampling_follows_the_distribution(served: ServedModel, is_continuous: bool) -> None:
    """300 first tokens against the model's own probabilities, and nothing outside the nucleus."""
    from ochat_train.inference.load import load_model

    model, _ = load_model(served.folder)
    ids = prompt(served, "Tell me.")
    with torch.inference_mode():
        probs_V = (model(torch.tensor([ids])).logits[0, -1] / 0.7).softmax(-1)
    sorted_V, order_V = probs_V.sort(descending=True)
    num_kept = int((sorted_V.cumsum(0) - sorted_V < 0.8).sum())
    nucleus = {
        int(token): float(p / sorted_V[:num_kept].sum()) for token, p in zip(order_V[:num_kept], sorted_V, strict=False)
    }

    async def task() -> None:
        async with started(served, continuous=is_continuous) as engine:

            async def first(seed: int) -> str:
                settings = AnswerSettings(max_new_tokens=1, temperature=0.7, top_p=0.8, seed=seed, num_logprobs=0)
                answer = await whole_answer(engine.stream(ids, settings))
                return whole_characters(answer.logprobs[0].text) if answer.logprobs else ""

            found = await asyncio.gather(*map(first, range(300)))
        texts: dict[str, float] = {}
        for token, p in nucleus.items():
            text = "" if token in served.stop_ids else served.tokenizer.decode([token])
            texts[text.removeprefix(" ")] = texts.get(text.removeprefix(" "), 0.0) + p
        assert set(found) <= set(texts)
        assert num_kept > 3, "the nucleus has some tokens"
        for text, p in texts.items():
            assert abs(found.count(text) / 300 - p) < 0.12

    run(task)


@PATHS
def test_logprobs_are_those_of_the_model(served: ServedModel, is_continuous: bool) -> None:
    from ochat_train.inference.load import load_model

    model, _ = load_model(served.folder)
    ids = prompt(served, QUESTIONS[3])

    async def task() -> Any:
        async with started(served, continuous=is_continuous) as engine:
            settings = AnswerSettings(max_new_tokens=4, num_logprobs=3, temperature=0.0)
            return await whole_answer(engine.stream(ids, settings))

    answer = run(task)
    assert len(answer.logprobs) == (answer.num_tokens if answer.finish == "length" else answer.num_tokens - 1) > 0
    for number, row in enumerate(answer.logprobs):
        with torch.inference_mode():
            logprobs_V = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        token = int(logprobs_V.argmax())
        assert row.logprob == pytest.approx(float(logprobs_V[token]), abs=1e-4)
        space = "" if number else " "  # that begins the message
        expected: dict[str, float] = {}
        for value, place in zip(*logprobs_V.topk(3), strict=True):
            expected.setdefault(served.tokenizer.decode([place]).removeprefix(space), float(value))
        found = {whole_characters(text): row.alternatives[text] for text in reversed(row.alternatives)}
        assert found == pytest.approx(expected, abs=1e-4)
        assert next(iter(row.alternatives)).strip() == row.text.strip()
        ids = [*ids, token]


@PATHS
def test_an_answer_that_nobody_reads_any_more_is_not_computed_on(
    served: ServedModel, is_continuous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed after a piece, ended by a stop text, and asked for by a task that was cancelled."""

    async def task() -> None:
        async with started(served, continuous=is_continuous, most_answers=2) as engine:
            ids = prompt(served, QUESTIONS[0])
            long = AnswerSettings(max_new_tokens=served.context_tokens - len(ids), temperature=1.0, seed=5)
            monkeypatch.setattr(engine, "_stop_ids", frozenset())  # the longest answers
            async with aclosing(engine.stream(ids, long)) as pieces:
                texts = [(await anext(pieces)).text for _ in range(6)]
            stopped = await whole_answer(engine.stream(ids, AnswerSettings(**{**vars(long), "stop": (texts[-1],)})))
            assert stopped.finish == "stop"
            assert texts[-1] not in stopped.text
            tasks = [asyncio.create_task(whole_answer(engine.stream(ids, long))) for _ in range(5)]
            await asyncio.sleep(0.05)
            for one in tasks:
                one.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert not engine._requests
            short = AnswerSettings(max_new_tokens=2)
            assert (await whole_answer(engine.stream(ids, short))).num_tokens == 2, "the engine is free"
            if is_continuous:
                batcher: Any = engine._batcher
                processor = batcher._manager.batch_processor
                await asyncio.to_thread(wait_for, lambda: not processor.has_pending_requests())
                assert not batcher._requests
                assert not batcher._manager.output_router.result_handlers

    run(task)


@PATHS
def test_an_engine_that_dies_says_so_and_starts_again(
    served: ServedModel, is_continuous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault in the thread that computes: open answers fail, then the engine is not ready, then it answers again."""
    monkeypatch.setattr(embedded, "_WATCH_SECONDS", 0.01)
    said: list[str] = []

    async def task() -> None:
        async with started(served, continuous=is_continuous, say=said.append) as engine:
            batcher: Any = engine._batcher
            first = batcher._model if is_continuous else batcher
            broken = first.forward if is_continuous else batcher._gather

            def fail(*_: Any, **__: Any) -> Any:
                raise RuntimeError("planted")

            monkeypatch.setattr(first, "forward" if is_continuous else "_gather", fail)
            ids = prompt(served, QUESTIONS[0])
            if not is_continuous:
                batcher._waiting.put(None)  # wakes the thread
                await asyncio.sleep(0.05)
            with pytest.raises(EngineError):
                await whole_answer(engine.stream(ids, AnswerSettings(max_new_tokens=3)))
            await asyncio.to_thread(wait_for, lambda: not engine.is_ready())
            with pytest.raises(EngineUnavailable):
                await whole_answer(engine.stream(ids, AnswerSettings(max_new_tokens=3)))
            monkeypatch.setattr(first, "forward" if is_continuous else "_gather", broken)
            while not engine.is_ready():
                await asyncio.sleep(0.05)
            assert (await whole_answer(engine.stream(ids, AnswerSettings(max_new_tokens=3)))).num_tokens > 0

    run(task)
    assert any("planted" in line and "again in 1 s" in line for line in said)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"sliding_window": 8}, "sliding window"),
        (
            {"model_type": "gemma2", "sliding_window": 8, "attn_logit_softcapping": 20.0, "query_pre_attn_scalar": 8},
            "layers have full attention: sliding_attention",
        ),
    ],
)
def test_what_continuous_batching_cannot_compute_falls_back(
    config: dict[str, Any], words: str, tmp_path: Path, small_tokenizer_dir: Path
) -> None:
    served = load_served_model(write_tiny_export(tmp_path, small_tokenizer_dir, **config))
    generator, said = load_generator(tmp_path), list[str]()

    async def task() -> list[str]:
        async with started(served, say=said.append) as engine:
            asked = [engine.stream(prompt(served, text), AnswerSettings(max_new_tokens=6)) for text in QUESTIONS]
            return [answer.text for answer in await asyncio.gather(*map(whole_answer, asked))]

    answers = run(task)
    assert words in said[0]
    assert "`generate`" in said[1]
    conversations = [[{"role": "user", "content": text}] for text in QUESTIONS]
    assert answers == generator.answers(conversations, condition=None, max_new_tokens=6, temperature=0.0)


def test_a_model_that_is_computed_wrongly_falls_back(served: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe at the start finds another distribution; the control is every other test, where it finds none."""
    right = agreement.expected_probs

    def moved(model: Any, context_tokens: int) -> Sequence[Any]:
        return [(ids, tokens, probs.roll(1, dims=-1)) for ids, tokens, probs in right(model, context_tokens)]

    monkeypatch.setattr(agreement, "expected_probs", moved)
    said: list[str] = []

    async def task() -> None:
        async with started(served, say=said.append) as engine:
            assert (await whole_answer(engine.stream(prompt(served, "x"), AnswerSettings(max_new_tokens=2)))).num_tokens

    run(task)
    assert "probabilities differ" in said[0]


@pytest.mark.parametrize("while_it", ["starts", "is compared"])
def test_a_stop_while_the_engine_starts_leaves_no_thread_that_computes(
    while_it: str, served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a thread at the end of a program aborts it."""
    ended: list[str | None] = []
    begin, close = continuous.ContinuousBatcher.start, continuous.ContinuousBatcher.close

    async def stopped() -> None:
        reached, engine = asyncio.Event(), EmbeddedEngine(served, say=lambda line: None)
        loop = asyncio.get_running_loop()

        def begun(batcher: continuous.ContinuousBatcher) -> None:
            if while_it == "starts":
                loop.call_soon_threadsafe(reached.set)
            begin(batcher)

        def closed(batcher: continuous.ContinuousBatcher) -> None:
            close(batcher)
            ended.append(batcher.failure())

        async def compared(*_: Any) -> float:
            reached.set()
            await asyncio.Event().wait()
            return 0.0

        monkeypatch.setattr(continuous.ContinuousBatcher, "start", begun)
        monkeypatch.setattr(continuous.ContinuousBatcher, "close", closed)
        monkeypatch.setattr(agreement, "difference", compared)
        starting = asyncio.create_task(engine.start())
        await asyncio.wait_for(reached.wait(), timeout=120)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await engine.close()

    asyncio.run(stopped())
    assert ended == ["it is closed"]


def test_other_versions_of_transformers_fall_back(served: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from ochat_train.inference.load import load_model

    model, _ = load_model(served.folder)
    assert continuous.why_not(model) is None
    monkeypatch.setattr(continuous, "_config_fields", set)
    assert "has no continuous batching" in str(continuous.why_not(model))


def test_what_does_not_fit_is_refused_and_ends_nobody_else(served: ServedModel) -> None:
    async def task() -> None:
        async with started(served) as engine:
            ids = prompt(served, "x")
            for wrong in (
                AnswerSettings(max_new_tokens=served.context_tokens),
                AnswerSettings(max_new_tokens=0),
                AnswerSettings(max_new_tokens=1, response_format={"type": "json_object"}),
                AnswerSettings(max_new_tokens=1, adapter="other"),
            ):
                with pytest.raises(EngineError):
                    await whole_answer(engine.stream(ids, wrong))
            whole = AnswerSettings(max_new_tokens=served.context_tokens - len(ids))
            assert (await whole_answer(engine.stream(ids, whole))).num_tokens > 0
            assert set(engine.unsupported) == {"response_format", "adapter"}
        assert not engine.is_ready()
        with pytest.raises(EngineUnavailable):
            await whole_answer(engine.stream(ids, whole))
        await engine.close()

    run(task)


def test_threads_are_all_cores_but_one_while_the_engine_runs(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded.os, "sched_getaffinity", lambda pid: set(range(4)))
    before = torch.get_num_threads()

    async def task() -> None:
        async with started(served):
            assert torch.get_num_threads() == 3

    run(task)
    assert torch.get_num_threads() == before


def test_too_little_memory_is_said_before_anything_is_served(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ochat_train.inference import memory

    monkeypatch.setattr(memory, "_free_ram", lambda: 2.0**16)

    async def task() -> None:
        async with started(served):
            pass

    with pytest.raises(UserError, match="GiB"):
        run(task)


def test_settings_of_a_base_change_no_answer(served: ServedModel, tmp_path: Path, small_tokenizer_dir: Path) -> None:
    """A repetition penalty in generation_config.json: what a request does not say is not done."""
    folder = write_tiny_export(tmp_path, small_tokenizer_dir, stop_ids=tuple(range(40, 60)))
    path = folder / "generation_config.json"
    path.write_text(path.read_text().replace('"do_sample"', '"repetition_penalty": 5.0,\n  "do_sample"'))
    penalised = load_served_model(folder)

    async def texts(one: ServedModel, is_continuous: bool) -> list[str]:
        async with started(one, continuous=is_continuous) as engine:
            asked = [engine.stream(prompt(one, text), AnswerSettings(max_new_tokens=20)) for text in QUESTIONS]
            return [answer.text for answer in await asyncio.gather(*map(whole_answer, asked))]

    expected = run(lambda: texts(served, True))
    assert run(lambda: texts(penalised, True)) == run(lambda: texts(penalised, False)) == expected
    penalty = Generator(*load_model(folder)).answers(
        [[{"role": "user", "content": text}] for text in QUESTIONS],
        condition=None,
        max_new_tokens=20,
        temperature=0.0,
    )
    assert penalty != expected, "the control: it would matter"
