"""A prepared folder as a whole: reused, made again, split, replaced or left alone, whatever happens in the middle."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from data_pipeline.errors import UserError
from data_pipeline.prepare.job import PrepareJob
from data_pipeline.prepare.prepare import prepare
from data_pipeline.prepared.dataset import SCHEMA, Manifest, PreparedSplit, SplitCounts, rows_digest
from data_pipeline.prepared.writer import PreparedWriter
from data_pipeline.read.chunks import ChunkSizes
from ochat_train.quickstart.make import write_tokenizer
from tests.support.data import EXPERT, edit_manifest, folder_state, make_job, rows_of, source
from tests.support.processes import ROOT
from tests.support.rows import conversations, write_jsonl

JobFactory = Callable[..., PrepareJob]


@pytest.fixture
def job(tmp_path: Path, small_tokenizer_dir: Path) -> JobFactory:
    """A job over 30 conversations; keyword arguments change it."""
    path = write_jsonl(tmp_path / "rows.jsonl", conversations(30))

    def make(*, tokenizer_dir: Path = small_tokenizer_dir, **changes: Any) -> PrepareJob:
        return make_job(tmp_path / "prepared", [source(path)], tokenizer_dir, **changes)

    return make


# ---- reused or made again ----


def test_unchanged_input_is_reused_and_no_file_is_touched(job: JobFactory, tmp_path: Path) -> None:
    manifest, reused = prepare(job(), num_workers=1)
    assert not reused
    before = folder_state(tmp_path / "prepared")
    assert "train/data-00000-of-00001.arrow" in before
    again, reused = prepare(job(), num_workers=2)
    assert reused
    assert again == manifest == Manifest.load(tmp_path / "prepared")
    assert folder_state(tmp_path / "prepared") == before


def test_newer_time_stamp_alone_changes_nothing(job: JobFactory, tmp_path: Path) -> None:
    prepare(job(), num_workers=1)
    os.utime(tmp_path / "rows.jsonl", (2e9, 2e9))
    assert prepare(job(), num_workers=1)[1]


def change_bytes_only(folder: Path, make: JobFactory) -> PrepareJob:
    """Same size, same time stamp, another word."""
    path = folder / "rows.jsonl"
    stat = path.stat()
    path.write_bytes(path.read_bytes().replace(b"Question 7.0", b"Question 8.8"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    return make()


def change_tokenizer(folder: Path, make: JobFactory) -> PrepareJob:
    write_tokenizer(folder / "other_tokenizer", ["The answer is 42."] * 20, vocab_size=300)
    return make(tokenizer_dir=folder / "other_tokenizer")


def with_value(**changes: Any) -> Callable[[Path, JobFactory], PrepareJob]:
    return lambda folder, make: make(**changes)


CHANGES: dict[str, tuple[Callable[[Path, JobFactory], PrepareJob], str]] = {
    "data_bytes": (change_bytes_only, "sources"),
    "template": (with_value(template="openchat_3.2"), "template"),
    "template_and_its_control_tokens": (with_value(template="chatml"), "template"),
    "tokenizer": (change_tokenizer, "tokenizer"),
    "class_weight": (with_value(classes={"expert": {**EXPERT["expert"], "weight": 0.9}}), "settings"),
    "condition": (with_value(classes={"expert": {**EXPERT["expert"], "condition": "GPT3"}}), "settings"),
    "max_length": (with_value(max_length_tokens=200), "settings"),
    "validation_ratio": (with_value(validation_ratio=0.3), "settings"),
    "seed": (with_value(seed=1), "settings"),
    "overlong": (with_value(overlong="drop"), "settings"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_input_is_prepared_anew(name: str, job: JobFactory, tmp_path: Path) -> None:
    """And the manifest says which of the inputs changed."""
    change, changed_input = CHANGES[name]
    old, _ = prepare(job(), num_workers=1)
    new_job = change(tmp_path, job)
    new, reused = prepare(new_job, num_workers=1)
    assert not reused
    assert new.fingerprint != old.fingerprint
    changed = {key for key, value in new.inputs.items() if value != old.inputs[key]}
    assert changed == ({"template", "tokenizer"} if name == "template_and_its_control_tokens" else {changed_input})
    assert Manifest.load(tmp_path / "prepared") == new
    assert prepare(new_job, num_workers=1)[1]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_pad_token_of_the_tokenizer_reaches_the_prepared_tokenizer(
    job: JobFactory, tmp_path: Path, small_tokenizer_dir: Path
) -> None:
    """It decides no ids, but it is in the tokenizer folder that exports get."""

    def padded_with(token: str) -> str:
        folder = shutil.copytree(small_tokenizer_dir, tmp_path / f"tokenizer-{token}")
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": token}), encoding="utf-8")
        prepare(job(tokenizer_dir=folder), num_workers=1)
        prepared = tmp_path / "prepared" / "tokenizer" / "tokenizer_config.json"
        return str(json.loads(prepared.read_text(encoding="utf-8"))["pad_token"])

    assert [padded_with("a"), padded_with("b")] == ["a", "b"]


def test_new_file_in_a_folder_and_renamed_files_are_noticed(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    rows = conversations(6)
    for number in range(3):
        write_jsonl(tmp_path / "raw" / f"{number}.jsonl", rows[2 * number : 2 * number + 2])
    job = make_job(tmp_path / "prepared", [source(tmp_path / "raw")], small_tokenizer_dir)
    prepare(job, num_workers=1)
    first = [row.input_ids for row in rows_of(tmp_path / "prepared")]
    (tmp_path / "raw" / "0.jsonl").rename(tmp_path / "raw" / "9.jsonl")
    assert not prepare(job, num_workers=1)[1]
    assert [row.input_ids for row in rows_of(tmp_path / "prepared")] == first[2:] + first[:2]
    write_jsonl(tmp_path / "raw" / "new.jsonl", conversations(7)[6:])
    assert not prepare(job, num_workers=1)[1]
    assert len(rows_of(tmp_path / "prepared")) == 7


def test_dataset_saved_again_with_other_rows_is_noticed(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    job = make_job(tmp_path / "prepared", [source(tmp_path / "saved")], small_tokenizer_dir)
    datasets.Dataset.from_list(conversations(5)).save_to_disk(str(tmp_path / "saved"))
    prepare(job, num_workers=1)
    assert prepare(job, num_workers=1)[1]
    datasets.Dataset.from_list(conversations(10)[5:]).save_to_disk(str(tmp_path / "saved"))
    assert not prepare(job, num_workers=1)[1]


# ---- the same rows with any number of processes ----


def test_one_and_two_processes_write_the_same_bytes(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    rows: list[Any] = conversations(400)
    for number, row in enumerate(rows):
        row["id"] = number % 390  # ten duplicates, far from their firsts
    rows[100] = {"messages": []}
    described = [
        source(write_jsonl(tmp_path / "rows.jsonl", rows)),
        source(write_jsonl(tmp_path / "more.jsonl", rows[:50])),
    ]
    results, states = [], []
    for num_workers in (1, 2):
        folder = tmp_path / f"prepared-{num_workers}"
        job = make_job(folder, described, small_tokenizer_dir, bad_rows="drop", validation_ratio=0.1)
        read: list[int] = []
        sizes = ChunkSizes(lines_bytes=2_000)
        manifest, _ = prepare(job, num_workers=num_workers, progress=read.append, sizes=sizes)
        assert len(read) > 10, "there were many chunks"
        results.append(manifest)
        states.append({name: content for name, (_, _, content) in folder_state(folder).items()})
    assert states[0] == states[1]
    assert results[0] == results[1]
    assert results[0].ledger.dropped == {"duplicate_id": 10, "no_messages": 1}
    assert (results[0].ledger.read, results[0].ledger.kept) == (450, 439)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_error_in_a_chunk_stops_every_process_and_leaves_nothing(
    num_workers: int, tmp_path: Path, small_tokenizer_dir: Path
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [*conversations(50), {"messages": 5}, *conversations(10)])
    job = make_job(tmp_path / "prepared", [source(path)], small_tokenizer_dir)
    with pytest.raises(UserError, match=r"rows\.jsonl:51: messages: expected a list"):
        prepare(job, num_workers=num_workers, sizes=ChunkSizes(lines_bytes=500))
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_progress_adds_up_to_the_rows_read(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    """Kept, dropped for any reason, and duplicates: each is reported once."""
    rows: list[Any] = [{"id": number, **row} for number, row in enumerate(conversations(20))]
    rows[5] = {"messages": []}
    rows[9]["id"] = 3
    rows[12]["messages"][0]["content"] = "why " * 500
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    job = make_job(tmp_path / "prepared", [source(path)], small_tokenizer_dir, bad_rows="drop")
    read: list[int] = []
    manifest, _ = prepare(job, num_workers=1, progress=read.append, sizes=ChunkSizes(lines_bytes=200))
    assert manifest.ledger.dropped == {"duplicate_id": 1, "no_messages": 1, "no_supervised_token": 1}
    assert manifest.ledger.read == 20
    assert sum(read) == 20


# ---- validation ----


def short_rows(count: int, num_prompts: int) -> list[dict[str, Any]]:
    """Rows whose first prompts repeat; the id is `PROMPT/ROW`."""
    return [
        {
            "id": f"{number % num_prompts}/{number}",
            "messages": [
                {"role": "user", "content": f"Prompt {number % num_prompts}"},
                {"role": "assistant", "content": f"A{number}"},
            ],
        }
        for number in range(count)
    ]


def split_ids(prepared_dir: Path) -> tuple[list[str], list[str]]:
    return [row.id for row in rows_of(prepared_dir)], [row.id for row in rows_of(prepared_dir, "validation")]


def prompts_of(ids: Iterable[str]) -> set[str]:
    return {identifier.split("/")[0] for identifier in ids}


def test_validation_split_holds_out_whole_prompts_in_about_the_ratio(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", short_rows(2_000, num_prompts=1_000))
    job = make_job(tmp_path / "prepared", [source(path)], small_tokenizer_dir, validation_ratio=0.1)
    manifest, _ = prepare(job, num_workers=1)
    train, validation = split_ids(tmp_path / "prepared")
    assert len(train) + len(validation) == 2_000
    assert 140 <= len(validation) <= 260, "200 expected; the standard deviation is 19"
    assert len(validation) % 2 == 0
    assert not prompts_of(train) & prompts_of(validation)
    for ids, split in ((train, "train"), (validation, "validation")):
        data = PreparedSplit(tmp_path / "prepared", "train" if split == "train" else "validation")
        assert manifest.splits[split] == SplitCounts(
            conversations=len(ids),
            tokens=int(data.num_tokens.sum()),
            supervised_tokens=int(data.num_supervised_tokens.sum()),
        )


def test_system_text_and_first_prompt_together_decide_the_side(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    """`validation_ratio`: conversations with the same system text and first prompt stay together, whatever comes
    after.
    """
    rows = short_rows(600, num_prompts=200)
    for number, row in enumerate(rows):
        row["system"] = ("", "Be brief.", "")[number // 200]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    job = make_job(tmp_path / "prepared", [source(path)], small_tokenizer_dir, validation_ratio=0.2)
    prepare(job, num_workers=1)
    train, validation = split_ids(tmp_path / "prepared")
    brief = {row["id"] for row in rows if row["system"]}
    for ids in (brief, {row["id"] for row in rows} - brief):
        here, there = ids & set(train), ids & set(validation)
        assert len(there) > 0
        assert not prompts_of(here) & prompts_of(there)


def test_validation_split_depends_on_the_prompt_and_the_seed_alone(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    """Other rows, their order, the file and the class do not move a prompt to the other side; the seed does."""
    rows = short_rows(400, num_prompts=400)

    def held_out(name: str, rows: list[Any], seed: int, **more: Any) -> set[str]:
        path = write_jsonl(tmp_path / f"{name}.jsonl", rows)
        job = make_job(
            tmp_path / name,
            [source(path)],
            small_tokenizer_dir,
            validation_ratio=0.2,
            seed=seed,
            max_length_tokens=100,
            **more,
        )
        prepare(job, num_workers=1)
        return set(split_ids(tmp_path / name)[1])

    whole = held_out("whole", rows, 0)
    assert held_out("again", rows, 0) == whole
    assert held_out("backwards", rows[::-1], 0, classes={"expert": {"condition": "GPT3", "weight": 0.1}}) == whole
    assert held_out("half", rows[::2], 0) == whole & {row["id"] for row in rows[::2]}
    other = held_out("other_seed", rows, 1)
    assert 0 < len(other & whole) < len(whole), "other prompts, with some overlap as chance has it"


def test_no_validation_ratio_means_an_empty_validation_split(job: JobFactory, tmp_path: Path) -> None:
    manifest, _ = prepare(job(), num_workers=1)
    assert manifest.splits["validation"] == SplitCounts(conversations=0, tokens=0, supervised_tokens=0)
    assert rows_of(tmp_path / "prepared", "validation") == []


def test_ratio_that_holds_out_nothing_is_an_error(job: JobFactory, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.validation_ratio: 1e-06 of 30 conversations selects none"):
        prepare(job(validation_ratio=1e-6), num_workers=1)
    assert not (tmp_path / "prepared").exists()


# ---- what is on disk ----


def test_datasets_library_reads_the_same_rows(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", conversations(40))
    job = make_job(tmp_path / "prepared", [source(path)], small_tokenizer_dir, validation_ratio=0.3)
    sizes = ChunkSizes(lines_bytes=500)  # so that the file has many record batches
    manifest, _ = prepare(job, num_workers=1, sizes=sizes)
    loaded = datasets.load_from_disk(str(tmp_path / "prepared"))
    assert sorted(loaded) == ["conditions", "train", "validation"]
    assert len(loaded["conditions"]) == 0, "one class, so no other condition"
    for split in ("train", "validation"):
        data = PreparedSplit(tmp_path / "prepared", "train" if split == "train" else "validation")
        assert len(loaded[split]) == len(data) == manifest.splits[split].conversations > 0
        assert loaded[split].column_names == SCHEMA.names
        for number, row in enumerate(loaded[split]):
            assert row["input_ids"] == data[number].input_ids.tolist()
            assert row["loss_weights"] == data[number].loss_weights.tolist()
            assert row["num_tokens"] == len(row["input_ids"]) == len(row["loss_weights"]) == data.num_tokens[number]
            assert row["num_supervised_tokens"] == sum(weight > 0 for weight in row["loss_weights"])
            assert row["weight_sum"] == data.weight_sum[number]
            assert row["class_id"] == data.class_id[number] == 0
            assert row["id"] == data.conversation_id(number)


def test_prepared_rows_are_views_into_the_mapped_file(job: JobFactory, tmp_path: Path) -> None:
    prepare(job(), num_workers=1)
    data = PreparedSplit(tmp_path / "prepared", "train")
    assert not data[0].input_ids.flags.owndata
    assert not data[0].input_ids.flags.writeable


def test_parent_folders_are_made(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", conversations(3))
    prepare(make_job(tmp_path / "a" / "b" / "prepared", [source(path)], small_tokenizer_dir), num_workers=1)
    assert len(rows_of(tmp_path / "a" / "b" / "prepared")) == 3


# ---- folders that are not ours, and work that breaks off ----


def test_empty_folder_is_taken(job: JobFactory, tmp_path: Path) -> None:
    (tmp_path / "prepared").mkdir()
    prepare(job(), num_workers=1)
    assert len(rows_of(tmp_path / "prepared")) == 30


FOREIGN_FILES = {
    "notes": {"notes.txt": "keep me"},
    "deeper": {"photos/one.jpg": "keep me"},
    "hidden": {".keep": ""},
    "a_run": {"run/metrics.jsonl": "{}"},
    "a_manifest_of_something_else": {"manifest.json": '{"name": "My web app"}', "notes.txt": "keep me"},
    "data_of_another_program": {
        "manifest.json": '{"images": 1}',
        "train/one.jpg": "keep me",
        "validation/two.jpg": "keep me",
    },
}


@pytest.mark.parametrize("name", FOREIGN_FILES)
@pytest.mark.parametrize("prepared", [False, True], ids=["alone", "in_a_prepared_folder"])
def test_foreign_files_are_never_replaced(prepared: bool, name: str, job: JobFactory, tmp_path: Path) -> None:
    if prepared:
        prepare(job(), num_workers=1)
    for file, content in FOREIGN_FILES[name].items():
        path = tmp_path / "prepared" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    before = folder_state(tmp_path / "prepared")
    with pytest.raises(UserError, match=r"prepared: already exists and was not made by this command"):
        prepare(job(seed=1), num_workers=1)
    assert folder_state(tmp_path / "prepared") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prepared", "rows.jsonl"]


def test_file_in_place_of_the_folder_is_refused_and_left_as_it_is(job: JobFactory, tmp_path: Path) -> None:
    (tmp_path / "prepared").write_text("keep me")
    with pytest.raises(UserError, match="already exists"):
        prepare(job(), num_workers=1)
    assert (tmp_path / "prepared").read_text() == "keep me"


def test_folder_of_another_format_version_is_prepared_anew(job: JobFactory, tmp_path: Path) -> None:
    prepare(job(), num_workers=1)
    path = tmp_path / "prepared" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 0}))
    with pytest.raises(UserError, match="another version"):
        Manifest.load(tmp_path / "prepared")
    assert not prepare(job(), num_workers=1)[1]
    assert prepare(job(), num_workers=1)[1]


def test_manifest_without_a_count_that_came_later_is_read_and_its_folder_reused(
    job: JobFactory, tmp_path: Path
) -> None:
    manifest, _ = prepare(job(), num_workers=1)
    edit_manifest(tmp_path / "prepared", lambda content: content["ledger"].pop("text_not_recovered"))
    found, reused = prepare(job(), num_workers=1)
    assert (replace(found, digest=manifest.digest), reused) == (manifest, True)


def test_a_folder_whose_rows_were_read_by_older_rules_is_made_again_once(job: JobFactory, tmp_path: Path) -> None:
    manifest, _ = prepare(job(), num_workers=1)
    edit_manifest(tmp_path / "prepared", lambda content: content.pop("reader_version"))
    old = Manifest.load(tmp_path / "prepared")
    assert old is not None, "an older manifest still loads, so it can be trained on"
    said: list[str] = []
    again, reused = prepare(job(), num_workers=1, say=said.append)
    assert (reused, again.fingerprint) == (False, manifest.fingerprint)
    assert rows_digest(again.files) == rows_digest(manifest.files)
    assert any("read rows by other rules" in line for line in said)
    assert prepare(job(), num_workers=1)[1]


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "null", '{"format_version": 1}'),
        '{"format_version": 2, "classes": [], "splits": [], "ledger": {}}',
        '{"format_version": 2, "classes": [], "splits": {}, "ledger": []}',
    ],
)
def test_prepared_folder_with_a_broken_manifest_is_refused_or_made_anew(
    content: str, job: JobFactory, tmp_path: Path
) -> None:
    """Either is right; a traceback is not."""
    prepare(job(), num_workers=1)
    (tmp_path / "prepared" / "manifest.json").write_text(content)
    try:
        _, reused = prepare(job(), num_workers=1)
    except UserError as error:
        assert str(tmp_path / "prepared") in str(error)  # noqa: PT017 (both outcomes are right)
    else:
        assert not reused
        assert len(rows_of(tmp_path / "prepared")) == 30


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("older", [True, False], ids=["older_folder", "no_folder"])
def test_break_in_the_middle_of_writing_leaves_the_older_folder(
    older: bool, error: type[BaseException], job: JobFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if older:
        prepare(job(), num_workers=1)
    before = folder_state(tmp_path)
    written = []
    write = PreparedWriter.write

    def write_twice(self: PreparedWriter, split: Any, batch: Any) -> None:
        written.append(batch.num_rows)
        if len(written) == 2:
            raise error("no room left")
        write(self, split, batch)

    with monkeypatch.context() as patch:
        patch.setattr(PreparedWriter, "write", write_twice)
        with pytest.raises(error):
            prepare(job(seed=1), num_workers=1, sizes=ChunkSizes(lines_bytes=500))
    assert len(written) == 2
    assert folder_state(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == (["prepared", "rows.jsonl"] if older else ["rows.jsonl"])
    assert prepare(job(), num_workers=1)[1] == older
    assert not prepare(job(seed=1), num_workers=1)[1], "and the work can be done again"


def test_link_to_a_folder_on_another_disk_leaves_no_remains(job: JobFactory, tmp_path: Path) -> None:
    (tmp_path / "large_disk").mkdir()
    (tmp_path / "prepared").symlink_to(tmp_path / "large_disk")
    for seed in (0, 1):
        prepare(job(seed=seed), num_workers=1)
        assert len(rows_of(tmp_path / "prepared")) == 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large_disk", "prepared", "rows.jsonl"]


def test_remains_of_a_killed_preparation_are_removed(job: JobFactory, tmp_path: Path) -> None:
    """A process of the same id was killed while it wrote; also where the dataset is up to date. What another host may
    still write stays, and is said.
    """
    of_host = tmp_path / ".prepared.tmp-node-7-12"
    of_host.mkdir()
    for is_there in (False, True):
        remains = tmp_path / f".prepared.tmp-{os.getpid()}" / "train"
        remains.mkdir(parents=True)
        (remains / "data-00000-of-00001.arrow").write_bytes(b"half")
        said: list[str] = []
        assert prepare(job(), num_workers=1, say=said.append)[1] == is_there
        assert len(rows_of(tmp_path / "prepared")) == 30
        assert sorted(path.name for path in tmp_path.iterdir()) == [of_host.name, "prepared", "rows.jsonl"]
        text = f"{of_host}: process 12 of host node-7 writes it, or was killed; remove it if that process has ended"
        assert is_there or f"warning: {text}" in said


# ---- torch stays out ----

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
import data_pipeline
names = sorted(module.name for module in pkgutil.walk_packages(data_pipeline.__path__, "data_pipeline."))
assert len(names) >= 30, names
heavy = {"torch", "transformers", "deepspeed", "ochat_train"}
for name in names:
    importlib.import_module(name)
    assert not heavy & set(sys.modules), f"{name} imports {sorted(heavy & set(sys.modules))}"
print(len(names))
"""

PREPARE_AND_READ = """
import sys
from pathlib import Path
from tests.support.data import make_job, prepare_rows, source
folder = Path(sys.argv[1])
if __name__ == "__main__":
    prepare_rows(make_job(folder / "prepared", [source(folder / "rows.jsonl")], Path(sys.argv[2])))
    assert "torch" not in sys.modules
"""


def run_python(code: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120, check=False
    )


def test_no_module_of_the_data_pipeline_imports_torch_or_the_trainer() -> None:
    done = run_python(IMPORT_EVERYTHING)
    assert done.returncode == 0, done.stderr


def test_preparing_and_reading_a_dataset_never_loads_torch(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", conversations(3))
    done = run_python(PREPARE_AND_READ, tmp_path, small_tokenizer_dir)
    assert done.returncode == 0, done.stderr


def test_parts_are_prepared_with_their_weights_or_refused(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    """Reasoning with its own weight; a template without a place for it names each row, and writes nothing."""
    answer = {"role": "assistant", "content": "Yes.", "reasoning_content": "2 = 2 * 1 <|im_end|>"}
    rows = [{"messages": [{"role": "user", "content": "Is 2 even?"}, answer]} for _ in range(3)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    factors = {"reasoning": 0.5, "answer": 2.0}
    job = make_job(tmp_path / "prepared", [source(path)], small_tokenizer_dir, template="qwen3", part_weights=factors)
    manifest, _ = prepare(job, num_workers=1)
    prepared = rows_of(tmp_path / "prepared")
    assert {0.0, 0.5, 2.0} == set(prepared[0].loss_weights)
    assert manifest.ledger.control_text_kept_plain == 3
    other = make_job(tmp_path / "other", [source(path)], small_tokenizer_dir)
    with pytest.raises(UserError, match="unshown_part: 3"):
        prepare(other, num_workers=1)
    assert not (tmp_path / "other").exists()
