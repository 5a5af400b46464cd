"""Fixtures that several tests share: tokenizers made on the spot, small recipes, ranks in real processes."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ochat_train.quickstart.make import write_tokenizer
from tests.rank_processes import ForkedRank, Rank, start_rank

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs the network

ROOT = Path(__file__).resolve().parent.parent
PYTHONPATH = os.pathsep.join(
    [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
)  # of processes that tests start

MEASURED = "measured: "  # how the figures of `measured` are told from other properties of a test
Measured = Callable[[str, float], None]

# A Mistral that trains in seconds: grouped heads, two layers, untied embeddings.
TINY_MODEL: dict[str, Any] = {
    "model_type": "mistral",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "sliding_window": None,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="session")
def small_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of 400 tokens, as SmolLM2's or Llama-3's, but trained here."""
    return write_small_tokenizer(tmp_path_factory.mktemp("small_tokenizer"))


def write_small_tokenizer(folder: Path) -> Path:
    """Train the small tokenizer into `folder`."""
    texts = [
        "Hello there, how are you today?",
        "GPT4 Correct User: GPT4 Correct Assistant: GPT3",
        "The answer is 42.",
    ] * 20
    write_tokenizer(folder, texts, vocab_size=400)
    return folder


@pytest.fixture(scope="session")
def mistral_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real Mistral-7B-v0.1 tokenizer (32,000 pieces), from the package mistral-common."""
    import transformers

    spec = importlib.util.find_spec("mistral_common")
    assert spec is not None
    assert spec.origin is not None
    work, folder = tmp_path_factory.mktemp("mistral_source"), tmp_path_factory.mktemp("mistral_tokenizer")
    shutil.copy(Path(spec.origin).parent / "data" / "tokenizer.model.v1", work / "tokenizer.model")
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": True, **tokens}
    (work / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = transformers.AutoTokenizer.from_pretrained(work)
    (folder / "tokenizer.json").write_text(tokenizer.backend_tokenizer.to_str(), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **tokens}))
    return folder


def conversations(count: int) -> list[dict[str, Any]]:
    """Rows of format `messages`, one to three turns, of different lengths, with a unique first prompt."""
    rows = []
    for number in range(count):
        messages = []
        for turn in range(1 + number % 3):
            messages.append({"role": "user", "content": f"Question {number}.{turn}: how are you?"})
            messages.append(
                {"role": "assistant", "content": "The answer is " + "42 " * (1 + (number * 7 + turn) % 9) + "."}
            )
        rows.append({"messages": messages})
    return rows


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """Write rows, one JSON document a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Measured:
    """Notes a measured error; the worst of each name is printed when the tests are done (docs/correctness.md shows
    them).
    """

    def note(name: str, error: float) -> None:
        record_property(f"{MEASURED}{name}", error)

    return note


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start ranks first: with two workers, short ones fill the time at the end."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/ochat_train/"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what the tests measured, the worst of each name."""
    worst: dict[str, float] = {}
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name.startswith(MEASURED):
                name = name.removeprefix(MEASURED)
                worst[name] = max(value, worst.get(name, value))
    if worst:
        terminalreporter.section("worst measured")
        for name in sorted(worst):
            terminalreporter.write_line(f"{worst[name]:9.3g}  {name}")


RecipeFactory = Callable[..., Path]


@pytest.fixture
def make_recipe(tmp_path: Path, small_tokenizer_dir: Path) -> RecipeFactory:
    """Writes raw data (two classes) and a small recipe; keyword arguments replace values, `section__key=value`."""

    def make(**changes: Any) -> Path:
        return write_small_recipe(tmp_path, small_tokenizer_dir, **changes)

    return make


def write_small_recipe(folder: Path, tokenizer_dir: Path, *, num_conversations: int = 60, **changes: Any) -> Path:
    """Raw data of two classes and a recipe that trains a tiny model on them, written into `folder`."""
    rows = conversations(num_conversations)
    num_experts = num_conversations * 2 // 5
    write_jsonl(folder / "expert.jsonl", rows[:num_experts])
    write_jsonl(folder / "suboptimal.jsonl", rows[num_experts:])
    recipe: dict[str, Any] = {
        "name": "small",
        "seed": 1,
        "output_dir": str(folder / "run"),
        "model": {
            "config": dict(TINY_MODEL),
            "tokenizer": str(tokenizer_dir),
            "template": "openchat_3.5",
            "max_length_tokens": 256,
        },
        "data": {
            "prepared_dir": str(folder / "prepared"),
            "classes": {
                "expert": {"condition": "GPT4 Correct", "reward": 1.0},
                "suboptimal": {"condition": "GPT3", "reward": 0.0},
            },
            "beta": 0.4342945,
            "sources": [
                {"path": str(folder / "expert.jsonl"), "format": "messages", "class": "expert"},
                {"path": str(folder / "suboptimal.jsonl"), "format": "messages", "class": "suboptimal"},
            ],
        },
        "train": {"epochs": 2, "pack_length_tokens": 256, "tokens_per_step": 1024},
        "optimizer": {"learning_rate": 0.003, "eps": 1.0e-8},
        "deepspeed": {"zero_stage": 2, "config": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}},
    }
    for key, value in changes.items():
        *sections, last = key.split("__")
        target = recipe
        for section in sections:
            target = target.setdefault(section, {})
        target[last] = value
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


def ochat(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the `ochat` command in a process of its own, as a user does; it is forked where ranks are."""
    module, texts = "tests.ochat_command", [*map(str, arguments)]
    if torch.cuda.is_available():
        return run([sys.executable, "-m", module, *texts], **environment)
    process = ForkedRank(module, texts, process_environment(environment), errors=True)
    try:
        output, errors = process.communicate(timeout=600)
    finally:
        process.kill()
    return subprocess.CompletedProcess(["ochat", *texts], process.wait(), output, errors)


def deepspeed_train(recipe: Path, *arguments: str, num_ranks: int = 2) -> subprocess.CompletedProcess[str]:
    """Train under DeepSpeed's own launcher with real ranks."""
    command = [
        sys.executable,
        "-m",
        "deepspeed.launcher.runner",
        "--num_gpus",
        str(num_ranks),
        "--master_port",
        str(free_port()),
        "--module",
        "ochat_train",
        str(recipe),
        *arguments,
    ]
    return run(command)


def train_on_ranks(*commands: list[Any], num_ranks: int = 2) -> None:
    """Run `ochat` commands one after the other on ranks that are started once; all must succeed."""
    outputs, codes = run_jobs(*({"command": command} for command in commands), num_ranks=num_ranks)
    exits = [line for output in outputs for line in output.splitlines() if line.startswith("exit code ")]
    assert codes == [0] * num_ranks, "".join(outputs)[-8000:]
    assert exits == ["exit code 0"] * num_ranks * len(commands), "".join(outputs)[-8000:]


def run_jobs(*jobs: dict[str, Any], num_ranks: int = 2) -> tuple[list[str], list[int]]:
    """Run jobs (see train_worker.py) on ranks that are started once; what each rank printed, and its exit code."""
    texts = [{**job, "command": [str(argument) for argument in job["command"]]} for job in jobs]
    return finish(start_ranks("tests.ochat_train.train_worker", json.dumps(texts), num_ranks=num_ranks))


def finish(ranks: list[Rank], *, seconds: float = 300.0) -> tuple[list[str], list[int]]:
    """Wait for ranks; what each of them printed, and its exit code. A rank that is stopped is killed, as launchers
    do.
    """
    outputs = []
    try:
        for rank in ranks:
            outputs.append(rank.communicate(timeout=seconds)[0])
    finally:
        for rank in ranks:
            rank.kill()
    return outputs, [rank.wait() for rank in ranks]


def start_ranks(module: str, *arguments: str, num_ranks: int, **environment: str) -> list[Rank]:
    """Start a module on ranks without a launcher (which takes longer to start than the ranks do)."""
    world = {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1"}
    shared = process_environment({**world, "MASTER_PORT": str(free_port()), **environment})
    fork = not torch.cuda.is_available()
    return [
        start_rank(module, [*map(str, arguments)], {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, fork=fork)
        for rank in range(num_ranks)
    ]


def process_environment(changes: dict[str, str]) -> dict[str, str]:
    """The environment of processes that tests start."""
    common = {**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    # nothing is compiled on a CPU, and DeepSpeed would import the compiler: two seconds
    if not torch.cuda.is_available():
        common["TORCHDYNAMO_DISABLE"] = "1"
    return {**common, **changes}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository's root and return it finished; output is kept as text."""
    env = process_environment(environment)
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False)


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
