"""Fixtures that several tests share: tokenizers made on the spot, small recipes, ranks in real processes."""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.measured import MEASURED, Measured
from tests.support.small_recipe import RecipeFactory, write_small_recipe
from tests.support.tokenizers import changed_tokenizer, smaller_vocabulary, write_small_tokenizer

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a script; programs of tests get Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs the network
# Trainings that tests start share one folder of proofs and hashes: each base is proven once; workers inherit it.
if "OCHAT_TEST_CACHE" not in os.environ:
    os.environ["OCHAT_TEST_CACHE"] = tempfile.mkdtemp(prefix="ochat-test-cache-")
    atexit.register(shutil.rmtree, os.environ["OCHAT_TEST_CACHE"], ignore_errors=True)
os.environ["XDG_CACHE_HOME"] = os.environ["OCHAT_TEST_CACHE"]
os.environ.pop("OCHAT_CACHE_DIR", None)  # it would win: nothing is remembered for the user who tests


@pytest.fixture(autouse=True, scope="session")
def _prove_each_tokenizer_once() -> Iterator[None]:
    from data_pipeline.prepare import prepare
    from tests.support.checked_once import check_once

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "check_chat_template", check_once)
        yield


@pytest.fixture(scope="session")
def small_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of 400 tokens, as SmolLM2's or Llama-3's, but trained here."""
    return write_small_tokenizer(tmp_path_factory.mktemp("small_tokenizer"))


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


@pytest.fixture(scope="session")
def llama_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory, mistral_tokenizer_dir: Path) -> Path:
    """The Mistral tokenizer with few pieces, for what does not depend on the number of pieces."""
    return changed_tokenizer(tmp_path_factory.mktemp("llama") / "tokenizer", mistral_tokenizer_dir, smaller_vocabulary)


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
    items.sort(key=lambda item: not item.nodeid.startswith(("tests/ochat_train/", "tests/docs/")))


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


@pytest.fixture
def make_recipe(tmp_path: Path, small_tokenizer_dir: Path) -> RecipeFactory:
    """Writes raw data (two classes) and a small recipe; keyword arguments replace values, `section__key=value`."""

    def make(**changes: Any) -> Path:
        return write_small_recipe(tmp_path, small_tokenizer_dir, **changes)

    return make
