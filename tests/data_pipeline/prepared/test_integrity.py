"""Prepared data that is not what was written: found, with the file's name. And what need not be read again."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from data_pipeline import file_hashes
from data_pipeline.errors import UserError
from data_pipeline.file_hashes import hash_files
from data_pipeline.files import sha256_of_file
from data_pipeline.prepare.prepare import prepare
from data_pipeline.prepared.dataset import DamagedDataError, Manifest, PreparedSplit, open_split, rows_digest
from data_pipeline.prepared.integrity import check_sizes, hashes_of, verify
from tests.support.data import edit_manifest, make_job, rows_of, source, without_hashes
from tests.support.prepared_faults import PREPARED_FAULTS, TRAIN, flip_bit, rewrite, without_first_rows
from tests.support.rows import conversations, write_jsonl


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, small_tokenizer_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    path = write_jsonl(folder / "rows.jsonl", conversations(60))
    prepare(make_job(folder / "prepared", [source(path)], small_tokenizer_dir, validation_ratio=0.3), num_workers=1)
    return folder / "prepared"


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "prepared"))


def loaded(folder: Path) -> Manifest:
    manifest = Manifest.load(folder)
    assert manifest is not None
    return manifest


def test_the_manifest_has_every_other_file_and_its_own_digest(copy: Path) -> None:
    manifest = loaded(copy)
    assert manifest.files.keys() == {p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()} - {
        "manifest.json"
    }
    for name, file in manifest.files.items():
        assert (file.size, file.sha256) == ((copy / name).stat().st_size, sha256_of_file(copy / name))
    found = verify(copy, manifest)
    assert (found.num_files, found.warning) == (len(manifest.files), "")
    assert found.num_bytes == found.read_bytes == sum(file.size for file in manifest.files.values())
    assert found.rows_digest == rows_digest(manifest.files) != ""
    assert verify(copy, manifest, read_all=True).content == found.content


@pytest.mark.parametrize("name", PREPARED_FAULTS)
def test_a_fault_is_found_and_its_file_named(name: str, copy: Path) -> None:
    fault, file = PREPARED_FAULTS[name]
    verify(copy, loaded(copy))
    fault(copy)
    with pytest.raises(DamagedDataError) as caught:
        verify(copy, loaded(copy))
    assert caught.value.place == str(copy / file)
    assert caught.value.remedy


def test_every_byte_of_the_manifest_counts(copy: Path) -> None:
    """One bit of each, and nothing but layout may be read as before."""
    path, manifest = copy / "manifest.json", loaded(copy)
    written = path.read_bytes()
    for position in range(0, len(written), 7):
        content = bytearray(written)
        content[position] ^= 1 << (position % 7)
        path.write_bytes(content)
        try:
            found = Manifest.load(copy)
        except UserError as error:
            assert str(path) in str(error)  # noqa: PT017 (both outcomes are right)
        else:
            assert found == manifest, position


def test_sizes_are_compared_without_reading(copy: Path) -> None:
    """A flipped bit is what only hashes find."""
    manifest = loaded(copy)
    flip_bit(copy / TRAIN)
    check_sizes(copy, manifest)
    with pytest.raises(DamagedDataError, match="another sha256"):
        verify(copy, manifest)
    with (copy / TRAIN).open("ab") as file:
        file.write(b"x")
    with pytest.raises(DamagedDataError, match=r"bytes were written by `ochat prepare`; run `ochat prepare` again"):
        check_sizes(copy, manifest)


def test_a_part_may_be_a_link_to_another_disk(copy: Path, tmp_path: Path) -> None:
    (copy / "train").rename(tmp_path / "large_disk")
    (copy / "train").symlink_to(tmp_path / "large_disk")
    assert verify(copy, loaded(copy)).num_files == len(loaded(copy).files)
    flip_bit(copy / TRAIN)
    with pytest.raises(DamagedDataError):
        verify(copy, loaded(copy))


def test_what_nfs_leaves_of_open_files_is_no_fault(copy: Path) -> None:
    (copy / "train" / ".nfs0001").write_bytes(b"x")
    verify(copy, loaded(copy))


def test_data_of_a_version_without_hashes_is_taken_with_a_warning(copy: Path) -> None:
    content = verify(copy, loaded(copy)).content
    without_hashes(copy)
    manifest = loaded(copy)
    found = verify(copy, manifest)
    assert "kept no hashes" in found.warning
    assert (found.content, found.rows_digest) == (content, loaded_rows(copy))
    flip_bit(copy / TRAIN)
    assert verify(copy, manifest).content != content, "so other hosts, and a later resume, still see it"
    open_split(copy, "train", manifest)
    rewrite(copy / TRAIN, without_first_rows)
    with pytest.raises(DamagedDataError, match=r"rows of .* tokens, but its manifest says"):
        open_split(copy, "train", manifest)


def loaded_rows(folder: Path) -> str:
    return rows_digest(hashes_of(folder))


def test_unreadable_rows_are_no_traceback(copy: Path) -> None:
    """Flipped bits anywhere in the file: read, or refused with its name. Never rows beyond their file."""
    path = copy / TRAIN
    written = path.read_bytes()
    refused = 0
    for position in (*range(0, 2000, 41), *range(2000, len(written), 4001)):
        content = bytearray(written)
        content[position] ^= 0x80
        path.write_bytes(content)
        try:
            split = PreparedSplit(copy, "train")
        except UserError as error:
            refused += 1
            assert str(copy / "train") in str(error)  # noqa: PT017 (both outcomes are right)
        else:
            for row in range(len(split)):
                assert len(split[row].input_ids) == len(split[row].loss_weights) == split.num_tokens[row]
    assert refused > 3


# ---- prepared again ----


def damaged(folder: Path) -> None:
    flip_bit(folder / TRAIN)


@pytest.mark.parametrize("spoil", [damaged, without_hashes])
def test_a_folder_that_cannot_be_trusted_is_prepared_again(
    spoil: Any, tmp_path: Path, small_tokenizer_dir: Path
) -> None:
    """The remedy of every message: the same command makes it whole, with the same fingerprint and rows."""
    path = write_jsonl(tmp_path / "rows.jsonl", conversations(9))
    job = make_job(tmp_path / "prepared", [source(path)], small_tokenizer_dir)
    first, _ = prepare(job, num_workers=1)
    rows = rows_of(tmp_path / "prepared")
    spoil(tmp_path / "prepared")
    said: list[str] = []
    assert prepare(job, num_workers=1, say=said.append) == (first, False)
    assert len(said) == 1
    assert said[0].endswith(": it is prepared again")
    assert rows_of(tmp_path / "prepared") == rows
    assert prepare(job, num_workers=1, say=said.append) == (first, True)


def test_an_edited_manifest_is_prepared_again(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", conversations(9))
    job = make_job(tmp_path / "prepared", [source(path)], small_tokenizer_dir)
    first, _ = prepare(job, num_workers=1)
    edit_manifest(tmp_path / "prepared", lambda content: content.update(vocab_size=9), sealed=False)
    assert prepare(job, num_workers=1) == (first, False)


# ---- what is remembered ----


@pytest.fixture
def old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of which the memory of this test alone may know, and which counts as settled at once."""
    monkeypatch.setenv(file_hashes.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(file_hashes, "_SETTLED_SECONDS", -1e9)
    path = tmp_path / "data" / "file"
    path.parent.mkdir()
    path.write_bytes(b"a" * 1000)
    return path


def num_read(path: Path, **options: Any) -> int:
    found = hash_files([path], group=path.parent, **options)
    assert found.files[path].sha256 == sha256_of_file(path)
    return found.read_bytes


def test_an_untouched_file_is_read_once(old_file: Path) -> None:
    assert [num_read(old_file) for _ in range(3)] == [1000, 0, 0]
    assert num_read(old_file, read_all=True) == 1000
    assert hash_files([old_file], group=None).read_bytes == 1000, "nothing is remembered without a group"


def test_another_content_with_the_same_size_and_date_is_read(old_file: Path) -> None:
    assert num_read(old_file) == 1000
    status = old_file.stat()
    old_file.write_bytes(b"b" * 1000)
    os.utime(old_file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert old_file.stat().st_mtime_ns == status.st_mtime_ns
    assert num_read(old_file) == 1000, "the time of the inode is another"
    replacement = old_file.with_name("new")
    replacement.write_bytes(b"c" * 1000)
    replacement.replace(old_file)
    assert num_read(old_file) == 1000, "the inode is another"
    assert num_read(old_file) == 0


def test_a_file_that_was_just_written_is_not_remembered(old_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_hashes, "_SETTLED_SECONDS", 1e6)
    assert [num_read(old_file) for _ in range(2)] == [1000, 1000]


def test_a_memory_that_is_old_or_damaged_is_not_used(old_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [num_read(old_file) for _ in range(2)] == [1000, 0]
    [memory] = (old_file.parent.parent / "cache" / "hashes").iterdir()
    written = memory.read_text(encoding="utf-8")
    for content in ("", "[]", "{}", written[:-20], written.replace(sha256_of_file(old_file), "0" * 64)):
        memory.write_text(content, encoding="utf-8")
        assert num_read(old_file) == 1000
        assert num_read(old_file) == 0
    now = time.time()
    monkeypatch.setattr(file_hashes.time, "time", lambda: now + 8 * 86_400)
    assert num_read(old_file) == 1000


def test_a_cache_folder_that_takes_no_file_costs_only_time(old_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(file_hashes.CACHE_VARIABLE, str(old_file))
    assert [num_read(old_file) for _ in range(2)] == [1000, 1000]


def test_errors_of_the_threads_are_raised(old_file: Path) -> None:
    with pytest.raises(FileNotFoundError):
        hash_files([old_file, old_file.with_name("none")], group=None)
