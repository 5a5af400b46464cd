"""What the tests of the Hub share: the stand-in with this process as its client, and a folder like an export."""

from __future__ import annotations

import hashlib
import json
import socket
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.utils import _http

from ochat_train.hub.retry import RetryPolicy
from tests.support.hub_stand_in import HubStandIn

CARD = "---\nlicense: other\ntags:\n- ochat-train\n---\n\n# A model\n"


@dataclass
class Clock:
    """Waits that take no time. waits, library_waits: seconds that `ochat` and huggingface_hub would have slept.

    said: lines that `ochat` printed.
    """

    waits: list[float] = field(default_factory=list)
    library_waits: list[float] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    @property
    def policy(self) -> RetryPolicy:
        return RetryPolicy(sleep=self.waits.append, report=self.said.append)


@contextmanager
def silent_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What this process takes for the Hub accepts connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        for name, value in {"ENDPOINT": url, "HF_HUB_OFFLINE": False}.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.setenv("HF_TOKEN", "hf_alice")
        yield
        _http.close_session()


@contextmanager
def client_of(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Iterator[HubStandIn]:
    """A stand-in that this process takes for the Hub, through LFS (there is no Xet)."""
    with HubStandIn(folder, **options).serving() as server:
        for name, value in {"ENDPOINT": server.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.setenv("HF_TOKEN", "hf_alice")
        yield server
        _http.close_session()


def quick_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock for `ochat`, which also replaces huggingface_hub's own."""
    clock = Clock()
    monkeypatch.setattr(_http, "time", types.SimpleNamespace(sleep=clock.library_waits.append))
    return clock


def environment_of(server: HubStandIn) -> dict[str, str]:
    """For processes that are to take the stand-in for the Hub."""
    return {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_alice"}


def make_export(folder: Path, *, shards: int = 1, seed: int = 0, num_bytes: int = 300_000) -> Path:
    """A folder as `ochat export` leaves it, with random bytes for weights."""
    folder.mkdir(parents=True)
    names = (
        ["model.safetensors"]
        if shards == 1
        else [f"model-{n + 1:05d}-of-{shards:05d}.safetensors" for n in range(shards)]
    )
    for number, name in enumerate(names):
        (folder / name).write_bytes(pseudo_random(num_bytes, seed=f"{seed}/{number}"))
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text("{}")
    (folder / "config.json").write_text('{"model_type": "mistral"}')
    (folder / "README.md").write_text(CARD)
    write_mark(folder)
    return folder


def write_mark(folder: Path) -> None:
    """Write ochat.json over the files that are there."""
    files = {path.name: sha256_of(path) for path in folder.iterdir() if path.name != "ochat.json"}
    (folder / "ochat.json").write_text(json.dumps({"step": 1, "files": files}))


def sha256_of(path: Path) -> str:
    """sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pseudo_random(num_bytes: int, *, seed: str) -> bytes:
    """Bytes that are always the same for a seed, and differ between seeds."""
    return hashlib.shake_256(seed.encode()).digest(num_bytes)


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file of a local folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def content_on_hub(server: HubStandIn, repo: str, revision: str = "main") -> dict[str, bytes]:
    """Every file of a repository, without what the Hub puts there."""
    names = server.tree(repo, revision).keys() - {".gitattributes"}
    return {name: server.read(repo, name, revision) for name in names}
