"""The manifest of a checkpoint: the mark of completeness, and its hash beside it."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.files import sha256_of_file
from ochat_train.checkpoint.state import (
    MANIFEST,
    MANIFEST_HASH,
    CheckpointManifest,
    Progress,
    list_checkpoints,
    verify,
)
from ochat_train.system import durable


def make_checkpoint(output_dir: Path) -> Path:
    folder = output_dir / "checkpoints" / "step-00000004"
    (folder / "state").mkdir(parents=True)
    file = folder / "state" / "shard.pt"
    file.write_bytes(b"weights")
    manifest = CheckpointManifest(
        progress=Progress(step=4, nonfinite_steps=1, grad_norms=(1.5, 0.1)),
        num_ranks=2,
        recipe={"name": "größe", "sha256": ""},
        data_fingerprint="a",
        validation_loss=1.25,
        versions={"torch": "2"},
        files={"state/shard.pt": (7, sha256_of_file(file))},
    )
    manifest.write(folder)
    return folder


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path)
    assert verify(folder) is None
    found = CheckpointManifest.load(folder)
    assert (found.step, found.progress.nonfinite_steps, list(found.progress.grad_norms)) == (4, 1, [1.5, 0.1])
    assert (found.num_ranks, found.recipe["name"], found.validation_loss) == (2, "größe", 1.25)


def test_a_flipped_bit_in_the_manifest_or_its_hash_is_found(tmp_path: Path) -> None:
    """Every byte of both, one bit each; the file is named."""
    folder, rng = make_checkpoint(tmp_path), random.Random(0)
    for name in (MANIFEST, MANIFEST_HASH):
        whole = (folder / name).read_bytes()
        for position in range(len(whole)):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << rng.randrange(8)
            (folder / name).write_bytes(flipped)
            problem = verify(folder)
            assert problem is not None, (name, position)
            assert name in problem
        (folder / name).write_bytes(whole)
    assert verify(folder) is None


def test_a_hash_that_is_missing_is_found(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path)
    (folder / MANIFEST_HASH).unlink()
    assert MANIFEST_HASH in str(verify(folder))


def test_a_process_that_ends_between_the_two_writes_leaves_no_complete_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the folder had its final name already, which it gets last."""
    written: list[str] = []
    original = durable.write_file

    def once(path: Path, write: Callable[..., object]) -> durable.FileRecord:
        if written:
            raise KeyboardInterrupt
        written.append(path.name)
        return original(path, write)

    monkeypatch.setattr(durable, "write_file", once)
    with pytest.raises(KeyboardInterrupt):
        make_checkpoint(tmp_path)
    assert written == [MANIFEST_HASH]
    assert (tmp_path / "checkpoints" / "step-00000004").is_dir()
    assert list_checkpoints(tmp_path) == []


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="coreutils are not installed")
def test_the_hash_is_what_sha256sum_checks(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path)
    subprocess.run(["sha256sum", "--check", "--strict", MANIFEST_HASH], cwd=folder, check=True, capture_output=True)
