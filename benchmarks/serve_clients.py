"""Other programs' clients against a real `ochat serve`: each asks the same questions under each condition.

    pip install openai langchain-openai litellm "lm-eval[api]"         # in an environment that also has ochat-train
    python benchmarks/serve_clients.py EXPORT held_out.jsonl

The rows of the second file have `question` and `answer`, as data/quickstart/held_out.jsonl. What `generate` of this
project answers in one process is the truth: each client must get exactly that, letter by letter, for every question.
Prints one table; exit code 1 for any other answer. A client that is not installed is named and left out.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.serve_process import served_export  # noqa: E402
from ochat_train.inference.generate import load_generator  # noqa: E402

_KEY = "sk-clients-1"
_TOKENS = 12
_TASK = """
task: ochat_held_out
dataset_path: json
dataset_kwargs: {data_files: %s}
test_split: train
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: %d, temperature: 0, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where and what the clients ask."""

    url: str
    model: str
    rows: Path
    questions: Sequence[str]


def main() -> int:
    """Ask with every client that is installed, under every condition."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("export", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--condition", action="append", help="may be repeated; default: GPT4 Correct and GPT3")
    parser.add_argument("--only", choices=tuple(CLIENTS))
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.rows.read_text(encoding="utf-8").splitlines()]
    questions, right = [row["question"] for row in rows], [row["answer"] for row in rows]
    conditions = options.condition or ["GPT4 Correct", "GPT3"]
    expected = own_answers(options.export, questions, conditions)
    is_broken = False
    with served_with_key(options.export) as (url, model):
        place = Place(url=url, model=model, rows=options.rows.resolve(), questions=questions)
        print(f"{'client':<34}{'version':<10}{'condition':<14}{'right':>12}{'as expected':>13}{'seconds':>9}")
        for name, (package, ask) in CLIENTS.items():
            version = _version(package)
            if version is None:
                print(f"{name:<34}not installed")
            elif options.only in (None, name):
                for condition in conditions:
                    began = time.monotonic()
                    answers = ask(place, condition)
                    seconds = time.monotonic() - began
                    equal, num_right = _num_equal(answers, expected[condition]), _num_equal(answers, right)
                    is_broken |= equal < len(rows)
                    shares = f"{num_right:>8}/{len(rows):<3}{equal:>9}/{len(rows):<3}"
                    print(f"{name:<34}{version:<10}{condition:<14}{shares}{seconds:>9.1f}", flush=True)
    return int(is_broken)


def _num_equal(answers: Sequence[str], others: Sequence[str]) -> int:
    return sum(one.strip() == other.strip() for one, other in zip(answers, others, strict=True))


def own_answers(export: Path, questions: Sequence[str], conditions: Sequence[str]) -> dict[str, list[str]]:
    """What `ochat generate` answers, greedily."""
    generator = load_generator(export)
    conversations = [[{"role": "user", "content": question}] for question in questions]
    return {
        condition: generator.answers(conversations, condition=condition, max_new_tokens=_TOKENS, temperature=0.0)
        for condition in conditions
    }


@contextmanager
def served_with_key(export: Path) -> Iterator[tuple[str, str]]:
    """The server with a key, as (address of the API, name of the model)."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "keys"
        file.write_text(_KEY + "\n")
        file.chmod(0o600)
        with served_export(export, "--api-keys-file", str(file)) as server:
            found = server.get("/v1/models", {"authorization": f"Bearer {_KEY}"}).json()
            yield f"{server.url}/v1", found["data"][0]["id"]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


_loop = asyncio.Runner()  # one for all: some clients keep their connections for the next call


def _sixteen(questions: Sequence[str], ask: Callable[[str], Awaitable[str]]) -> list[str]:
    """Answers in order, 16 requests at once."""

    async def run() -> list[str]:
        places = asyncio.Semaphore(16)

        async def one(question: str) -> str:
            async with places:
                return await ask(question)

        return await asyncio.gather(*map(one, questions))

    return _loop.run(run())


def openai_whole(place: Place, condition: str) -> list[str]:
    """The field `condition`, as `extra_body`."""
    from openai import AsyncOpenAI

    async def ask(question: str) -> str:
        async with AsyncOpenAI(base_url=place.url, api_key=_KEY, max_retries=0) as client:
            found = await client.chat.completions.create(
                model=place.model,
                messages=[{"role": "user", "content": question}],
                temperature=0,
                max_tokens=_TOKENS,
                extra_body={"condition": condition},
            )
        return found.choices[0].message.content or ""

    return _sixteen(place.questions, ask)


def openai_stream(place: Place, condition: str) -> list[str]:
    """A stream from `NAME@CONDITION`."""
    from openai import AsyncOpenAI

    async def ask(question: str) -> str:
        async with AsyncOpenAI(base_url=place.url, api_key=_KEY, max_retries=0) as client:
            stream = await client.chat.completions.create(
                model=f"{place.model}@{condition}",
                messages=[{"role": "user", "content": question}],
                temperature=0,
                max_completion_tokens=_TOKENS,
                stream=True,
            )
            return "".join([event.choices[0].delta.content or "" async for event in stream])

    return _sixteen(place.questions, ask)


def langchain_whole(place: Place, condition: str) -> list[str]:
    """ChatOpenAI with `extra_body`."""
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(
        base_url=place.url,
        api_key=_KEY,
        model=place.model,
        temperature=0,
        max_tokens=_TOKENS,
        max_retries=0,
        extra_body={"condition": condition},
    )

    async def ask(question: str) -> str:
        return str((await chat.ainvoke(question)).content)

    return _sixteen(place.questions, ask)


def langchain_stream(place: Place, condition: str) -> list[str]:
    """ChatOpenAI's stream, from `NAME@CONDITION`."""
    from langchain_openai import ChatOpenAI

    model = f"{place.model}@{condition}"
    chat = ChatOpenAI(base_url=place.url, api_key=_KEY, model=model, temperature=0, max_tokens=_TOKENS, max_retries=0)

    async def ask(question: str) -> str:
        return "".join([str(part.content) async for part in chat.astream(question)])

    return _sixteen(place.questions, ask)


def litellm_whole(place: Place, condition: str) -> list[str]:
    """LiteLLM as a client."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # otherwise it asks another host
    import litellm

    async def ask(question: str) -> str:
        found = await litellm.acompletion(
            model=f"openai/{place.model}",
            api_base=place.url,
            api_key=_KEY,
            messages=[{"role": "user", "content": question}],
            temperature=0,
            max_tokens=_TOKENS,
            num_retries=0,
            extra_body={"condition": condition},
        )
        return found.choices[0].message.content or ""

    return _sixteen(place.questions, ask)


def lm_eval_chat(place: Place, condition: str) -> list[str]:
    """lm-eval's `local-chat-completions`, as a program."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "task.yaml").write_text(_TASK % (json.dumps(str(place.rows)), _TOKENS))
        model = f"model={place.model},base_url={place.url}/chat/completions,num_concurrent=16,tokenizer_backend=none"
        command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-chat-completions", "--model_args", model]
        command += ["--include_path", name, "--tasks", "ochat_held_out", "--apply_chat_template"]
        command += ["--gen_kwargs", json.dumps({"condition": condition, "max_gen_toks": _TOKENS, "temperature": 0})]
        command += ["--output_path", str(folder / "out"), "--log_samples"]
        variables = {
            **os.environ,
            "OPENAI_API_KEY": _KEY,
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(folder / "cache"),
        }
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise SystemExit(f"lm-eval ended with code {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}")
        [samples] = (folder / "out").rglob("samples_*.jsonl")
        found = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    by_question = {sample["doc"]["question"]: sample["resps"][0][0] for sample in found}
    return [by_question[question] for question in place.questions]


CLIENTS: dict[str, tuple[str, Callable[[Place, str], list[str]]]] = {
    "openai": ("openai", openai_whole),
    "openai, streams": ("openai", openai_stream),
    "LangChain ChatOpenAI": ("langchain-openai", langchain_whole),
    "LangChain ChatOpenAI, streams": ("langchain-openai", langchain_stream),
    "LiteLLM": ("litellm", litellm_whole),
    "lm-eval local-chat-completions": ("lm-eval", lm_eval_chat),
}

if __name__ == "__main__":
    sys.exit(main())
