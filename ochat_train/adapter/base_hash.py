"""Which base an adapter was trained on, by the content of its weights."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from data_pipeline.errors import UserError
from data_pipeline.file_hashes import hash_files
from ochat_train.model.weights.files import downloaded_weight_files
from ochat_train.model.weights.load import weight_file_name
from ochat_train.recipe.sections.model import ModelSettings


def base_sha256(settings: ModelSettings, causal_lm: Any) -> str:
    """sha256 over the weights of a base, by which an adapter's checkpoint knows it again.

    Of its files, whatever they are called and wherever they are; hashes of files that did not change are remembered.
    For a base with random weights (`model.config`), of its tensors. causal_lm: before an adapter is put on it.
    """
    if settings.path is None:
        return _sha256_of_tensors(causal_lm)
    files = list(downloaded_weight_files(settings, named=weight_file_name(causal_lm.config)))
    try:
        hashed = hash_files(files, group=files[0].parent)
    except OSError as error:
        raise UserError("model.path", f"{settings.path}: its weights cannot be read: {error}") from None
    hashes = sorted(file.sha256 for file in hashed.files.values())
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _sha256_of_tensors(causal_lm: Any) -> str:
    digest = hashlib.sha256()
    for name, tensor in causal_lm.named_parameters():
        content = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {content.dtype} {tuple(content.shape)}\n".encode())
        digest.update(content.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
