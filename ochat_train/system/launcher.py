"""What a launcher (`deepspeed`, `torchrun`) tells each rank by environment variables."""

from __future__ import annotations

from collections.abc import Mapping

LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for a process that is not a rank of this launch."""
    return {name: value for name, value in environment.items() if name not in LAUNCHER_VARIABLES}
