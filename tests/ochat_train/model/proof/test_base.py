"""A proof is remembered for the same base, libraries, source, kernel and device, and for nothing else."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from data_pipeline.errors import UserError
from data_pipeline.file_hashes import cache_folder
from ochat_train.model.attention.kernels import KERNELS
from ochat_train.model.proof import base as base_module
from ochat_train.model.proof import prove as prove_module
from ochat_train.model.proof import remembered
from ochat_train.model.proof.base import ProvenBase, prove_base
from ochat_train.model.proof.remembered import key_of, recall, remember
from ochat_train.recipe.sections.model import ModelSettings
from tests.support.base_configs import base_config, broken_kernel
from tests.support.hybrids import GPU_HYBRIDS, gpu_hybrid_config, has_kernels
from tests.support.measured import Measured

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def proofs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The configs of the proofs that were really made."""
    made: list[Any] = []
    prove = prove_module.prove

    def counted(config: Any, *args: Any, **kwargs: Any) -> Any:
        made.append(config)
        return prove(config, *args, **kwargs)

    monkeypatch.setattr(base_module, "prove", counted)
    return made


def settings(**changes: Any) -> ModelSettings:
    values = {"path": "somewhere", "template": "chatml", "max_length_tokens": 128, **changes}
    return ModelSettings.model_validate(values)


def proven(config: Any, **changes: Any) -> ProvenBase:
    return prove_base(config, settings(**changes), device=CPU)


def test_a_base_is_proven_once_and_another_one_again(proofs: list[Any], own_cache: Path) -> None:
    first, second = proven(base_config("mistral")), proven(base_config("mistral"))
    assert (len(proofs), first.is_remembered, second.is_remembered) == (1, False, True)
    assert (second.errors, second.kernel, second.needs) == (first.errors, "sdpa", first.needs)
    assert "tested before, in" in second.text()
    [file] = (own_cache / "ochat-train" / "proofs").iterdir()
    assert file.suffix == ".json"
    proven(base_config("mistral", sliding_window=16))
    proven(base_config("mistral"), max_length_tokens=200)
    proven(base_config("mistral"), attention="sdpa")
    assert len(proofs) == 4


@pytest.mark.parametrize(("device", "threads", "wanted"), [("cuda", 8, [1, 8]), ("cuda", 1, []), ("cpu", 8, [])])
def test_a_gpus_host_proves_with_one_thread_and_a_run_on_the_cpu_keeps_its_threads(
    device: str, threads: int, wanted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the proof fails."""
    numbers: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    monkeypatch.setattr(base_module, "check_precision", lambda *_: None)
    monkeypatch.setattr(base_module, "key_of", lambda *_, **__: "key")

    def failing(*_: Any, **__: Any) -> None:
        assert numbers == wanted[:1]
        raise UserError("model", "is wrong", "use another base")

    monkeypatch.setattr(base_module, "_prove", failing)
    with pytest.raises(UserError, match="is wrong"):
        prove_base(base_config("mistral"), settings(), device=torch.device(device))
    assert numbers == wanted


def test_a_long_test_is_said_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    said = threading.Event()
    monkeypatch.setattr(base_module, "print_notice", lambda text: said.set() if "still being tested" in text else None)
    monkeypatch.setattr(base_module, "_SAID_AFTER", 0.0)
    monkeypatch.setattr(base_module, "key_of", lambda *_, **__: "key")

    def failing(*_: Any, **__: Any) -> None:
        assert said.wait(60.0)
        raise UserError("model", "is wrong", "use another base")

    monkeypatch.setattr(base_module, "_prove", failing)
    with pytest.raises(UserError, match="is wrong"):
        proven(base_config("mistral"))


def test_whatever_decides_a_proof_is_part_of_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"attention": "auto"}
    keys = [key_of(base_config("mistral"), device=CPU, facts=facts)]
    keys.append(key_of(base_config("mistral"), device=CPU, facts={"attention": "sdpa"}))
    keys.append(key_of(base_config("qwen2"), device=CPU, facts=facts))
    monkeypatch.setattr(remembered, "_kind", lambda device: "NVIDIA H100")
    keys.append(key_of(base_config("mistral"), device=CPU, facts=facts))
    monkeypatch.setattr(remembered, "_source_hash", lambda: "other source")
    keys.append(key_of(base_config("mistral"), device=CPU, facts=facts))
    monkeypatch.setattr(remembered, "installed_version", lambda name: "9.9" if name == "transformers" else None)
    keys.append(key_of(base_config("mistral"), device=CPU, facts=facts))
    assert len(set(keys)) == len(keys)
    named = base_config("mistral")
    named.name_or_path = "another folder with the same config"
    assert key_of(named, device=CPU, facts=facts) == keys[-1]


def test_a_failure_is_not_remembered(proofs: list[Any], own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = base_config("mistral", sliding_window=16)
    monkeypatch.setitem(KERNELS, "sdpa", broken_kernel("sdpa", window=lambda window: None))
    for _ in range(2):
        with pytest.raises(UserError, match="trained wrongly"):
            proven(config)
    assert len(proofs) == 2
    assert not own_cache.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": "of another"}', '{"kernel": 1}'])
def test_a_broken_record_is_not_used(content: str, proofs: list[Any], own_cache: Path) -> None:
    proven(base_config("mistral"))
    [file] = (own_cache / "ochat-train" / "proofs").iterdir()
    file.write_text(content, encoding="utf-8")
    assert not proven(base_config("mistral")).is_remembered
    assert len(proofs) == 2
    assert proven(base_config("mistral")).is_remembered  # written again


def test_a_cache_that_cannot_be_written_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    remember("key", {"kernel": "sdpa"})
    assert recall("key") is None
    assert (tmp_path / "file").read_text() == "not a folder"


def test_where_the_cache_is(tmp_path: Path) -> None:
    assert cache_folder({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "ochat-train"
    for environment in ({}, {"XDG_CACHE_HOME": ""}, {"XDG_CACHE_HOME": "relative"}):
        assert cache_folder(environment) == Path("~/.cache/ochat-train").expanduser()


def test_a_base_made_for_shorter_texts_is_refused_before_it_is_tested(proofs: list[Any]) -> None:
    with pytest.raises(UserError, match="257 is more than the base's max_position_embeddings 256"):
        proven(base_config("mistral"), max_length_tokens=257)
    assert not proofs


@pytest.mark.gpu
@pytest.mark.parametrize("model_type", GPU_HYBRIDS)
def test_gpu_hybrids_are_proven_with_their_kernels(model_type: str, measured: Measured) -> None:
    """With packages of kernels installed, `transformers` calls them on every device: nothing may run on the CPU.

    One group of channels: transformers 5.17 normalises two in another way in training than for answers.
    """
    groups = {"mamba_n_groups": 1} if model_type in ("bamba", "granitemoehybrid") else {}
    config = transformers.AutoConfig.for_model(**gpu_hybrid_config(model_type, vocab_size=300, **groups))
    found = prove_base(config, settings(attention="auto", precision="bfloat16"), device=torch.device("cuda", 0))
    print(model_type, has_kernels(model_type), found.text())
    measured("self-test of hybrids on a GPU: gradients", found.errors.gradient)
    assert found.num_kinds >= 2
