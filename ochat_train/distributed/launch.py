"""What launchers tell a process in its environment, and how to start one that no launcher has started."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Mapping
from pathlib import Path

# Names the folder where ranks leave their exit codes: a launcher that is signalled itself waits for its ranks, and then
# ends with 1 (DeepSpeed's `sigkill_handler`, torchrun), whatever they ended with.
EXIT_CODES = "OCHAT_EXIT_CODES"
# Set by torchrun and by DeepSpeed's launcher. A process that is started from a rank must not inherit them: it would
# take itself for that rank, or wait for the ranks of another run.
_VARIABLES = frozenset(
    {
        *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
        *("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME"),  # torchrun
        *("CROSS_RANK", "CROSS_SIZE", "LOCAL_SIZE"),  # DeepSpeed
        EXIT_CODES,
    }
)
_PORTS = range(12_000, 32_000)  # Linux gives those from 32,768
_FIRST = int.from_bytes(os.urandom(4))  # containers that share a network may have the same process ids
_STRIDE = 97  # ports between those of two processes that were forked one after the other
_COUNTER = itertools.count()
_PREFIX = "TORCHELASTIC_"  # torchrun: restarts, and whether the launcher keeps the store of the process group


def is_launched(environment: Mapping[str, str]) -> bool:
    """Whether a launcher has started the process of this environment."""
    return "WORLD_SIZE" in environment


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for a separate process, without what a launcher told this one."""
    return {
        name: value for name, value in environment.items() if name not in _VARIABLES and not name.startswith(_PREFIX)
    }


def single_rank() -> dict[str, str]:
    """What a launcher would tell the only rank of a run."""
    return {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }


def leave_exit_code(code: int, environment: Mapping[str, str]) -> None:
    """Tell `ochat launch`, where it has started this rank's launcher, how this rank ends."""
    folder = environment.get(EXIT_CODES)
    if folder is not None:
        with contextlib.suppress(OSError):  # it has ended, or the disk is full
            (Path(folder) / f"{int(environment.get('RANK', '0')):05d}").write_text(str(code), encoding="utf-8")


def exit_codes_left(folder: Path) -> list[int]:
    """The exit codes of the ranks that have left one, by rank."""
    texts = [file.read_text(encoding="utf-8") for file in sorted(folder.iterdir())]
    return [int(text) for text in texts if text.isdecimal()]  # one may be empty: a rank that was killed as it wrote


def free_port() -> int:
    """A TCP port of this host that nothing listens on.

    It is not one of those that the system gives to whoever asks for any port: every connection asks, and would
    sometimes get this one before it is used. Processes begin at different ports, and none gets one twice.
    """
    for _ in range(len(_PORTS)):
        port = _PORTS[(_FIRST + os.getpid() * _STRIDE + next(_COUNTER)) % len(_PORTS)]
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
