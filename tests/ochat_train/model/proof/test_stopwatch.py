"""Where the time of a proof goes."""

from __future__ import annotations

import threading

import pytest
import torch

from ochat_train.model.proof import stopwatch
from ochat_train.model.proof.stopwatch import Stopwatch, device_made_ready, parts_text


def test_parts_add_up_and_come_in_their_order() -> None:
    times = iter([0.0, 1.0, 3.0, 10.0, 11.5, 20.0, 20.25, 30.0])
    watch = Stopwatch(lambda: next(times))
    with watch.part("packs"):
        pass
    with pytest.raises(ValueError, match="inside"), watch.part("alone"):
        raise ValueError("inside")
    with watch.part("packs"):
        pass
    assert watch.parts == {"alone": 1.5, "packs": 2.25}
    assert list(watch.parts) == ["alone", "packs"]
    assert watch.seconds == 30.0
    assert parts_text({"small_copy": 0.26, "packs": 2.0}) == "packs 2.0 s, small copy 0.3 s"


def test_a_gpu_is_started_in_a_thread_and_a_cpu_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    let_go, started = threading.Event(), []

    def start(device: torch.device) -> None:
        assert let_go.wait(60)
        started.append(device)

    monkeypatch.setattr(stopwatch, "_start", start)
    with device_made_ready(torch.device("cpu")) as wait:
        wait()
    assert not started
    with device_made_ready(torch.device("cuda", 0)) as wait:
        assert not started  # the CPU goes on
        let_go.set()
        wait()
        assert len(started) == 1


def test_a_gpu_that_does_not_start_is_left_to_its_user() -> None:
    """This process may have no GPU at all: what uses it then says so."""
    stopwatch._start(torch.device("cuda", 99))
