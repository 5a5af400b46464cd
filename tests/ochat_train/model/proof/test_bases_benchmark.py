"""`benchmarks/bases.py` on a few families: its verdicts, and that it sees what a proof did not."""

from __future__ import annotations

import importlib.util
import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from ochat_train.model.attention.kernels import KERNELS
from tests.support.base_configs import broken_kernel
from tests.support.processes import ROOT

RESULTS = ROOT / "benchmarks" / "bases.json"


@pytest.fixture(scope="module")
def bases() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bases_benchmark", ROOT / "benchmarks" / "bases.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "verdict", "why"),
    [
        ("llama_yarn", "right", ""),
        ("phi3_longrope", "right", ""),
        ("gpt_oss", "right", ""),
        ("stablelm", "refused", "does not pass `cu_seqlens`"),
        ("reformer", "not built", ""),
    ],
)
def test_what_comes_out_for_a_base(name: str, verdict: str, why: str, bases: ModuleType) -> None:
    found = bases.outcome_of(name, kernel="sdpa")
    assert (found.verdict, why in found.why) == (verdict, True), found
    if verdict == "right":
        assert found.error < 1e-4 < 1e-2 < found.control


def test_what_is_wrong_or_crashes_is_seen_even_where_nothing_refuses_it(
    bases: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the proof is switched off, and a kernel has a fault."""
    monkeypatch.setattr("ochat_train.model.build.prove_base", lambda *_, **__: SimpleNamespace(kernel="sdpa"))
    assert bases.outcome_of("llama_tied", kernel="sdpa").verdict == "right"
    monkeypatch.setitem(KERNELS, "sdpa", broken_kernel("sdpa", scale=lambda scale: 1.05 * scale))
    wrong = bases.outcome_of("llama_tied", kernel="sdpa")
    assert (wrong.verdict, wrong.error > 1e-3) == ("wrong", True)

    def crash(*_: Any, **__: Any) -> Any:
        raise KeyError("inside")

    monkeypatch.setattr("ochat_train.model.build.prove_base", crash)
    crashed = bases.outcome_of("llama_tied", kernel="sdpa")
    assert (crashed.verdict, crashed.why) == ("crash", "KeyError: 'inside'")
    assert bases.summary([wrong, crashed]) == "2 tried: 0 right, 0 refused, 1 wrong, 1 crash, 0 not built"


def test_no_committed_result_is_wrong() -> None:
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert {row["verdict"] for row in rows} == {"right", "refused"}
    assert len({row["base"] for row in rows}) >= 70
