"""Versions of the libraries that a run computes with."""

from __future__ import annotations


def library_versions() -> dict[str, str]:
    """Versions of this project and of the libraries that decide what a run computes."""
    import deepspeed
    import torch
    import transformers

    from ochat_train import __version__

    return {
        "ochat-train": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "deepspeed": deepspeed.__version__,
    }
