"""Which files a source names: folders, links, splits, subsets and cards, and what is said of the rest."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from data_pipeline.errors import RowError, UserError
from data_pipeline.prepare.prepare import prepare
from data_pipeline.read.found_files import find_files
from data_pipeline.read.saved_datasets import load_dataset
from data_pipeline.read.sources import check_sources, chunks, fingerprint, is_dataset, read_chunk
from data_pipeline.read.splits import split_names
from data_pipeline.settings.sources import SourceSettings
from tests.support.data import make_job, prepare_rows, source
from tests.support.rows import conversations, write_jsonl


def settings(path: Path | str, **more: Any) -> SourceSettings:
    return SourceSettings.model_validate({"path": str(path), "format": "messages", "class": "x", **more})


def put(root: Path, *names: str) -> None:
    """A file of one row for each name; the row names its file."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps({"file": name}) + "\n")


def read(path: Path | str, **more: Any) -> list[str]:
    """The files whose rows are read, in order."""
    parts = chunks(settings(path, **more), where="s")
    return [row["file"] for part in parts for _, row in read_chunk(part)]


def notes(*paths: Path | str, **more: Any) -> list[str]:
    return [str(note) for note in check_sources([settings(path, **more) for path in paths])]


def refused(path: Path | str, **more: Any) -> str:
    with pytest.raises(UserError) as caught:
        find_files(settings(path, **more), where="data.sources.0")
    return str(caught.value)


# ---- folders ----


def test_a_folder_gives_its_data_files_and_names_the_rest(tmp_path: Path) -> None:
    data = ("a.jsonl", "b.JSON", "c.ndjson", "d/e.jsonlines", "d/part-00000", "f.jsonl.gz")
    put(tmp_path, *data)
    rest = ("notes.txt", "d/paper.pdf", "script.py", "rows.txt")
    put(tmp_path, *rest)
    companions = (".hidden.jsonl", ".git/x.json", ".ipynb_checkpoints/a.jsonl", "__pycache__/x.json", "README.md")
    put(tmp_path, *companions, "dataset_info.json", "dataset_infos.json", "LICENSE", ".gitattributes", "d/readme.txt")
    assert read(tmp_path) == sorted(data)
    [note] = notes(tmp_path)
    assert note.startswith(
        f"data.sources.0: {tmp_path}: left out d/paper.pdf, notes.txt, rows.txt, script.py (not data)"
    )
    for name in companions:
        assert name not in note


def test_a_note_is_short_however_many_files_are_left_out(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl", *(f"{number:03}.png" for number in range(300)))
    [note] = notes(tmp_path)
    assert note.endswith("left out 000.png, 001.png, 002.png, 003.png, 004.png and 295 more (not data)")
    shutil.rmtree(tmp_path)
    put(tmp_path, "a.jsonl")
    assert notes(tmp_path) == [], "the control: nothing is left out"


def test_links_are_followed_once(tmp_path: Path) -> None:
    put(tmp_path / "store", "x.jsonl", "deep/y.jsonl")
    root = tmp_path / "root"
    root.mkdir()
    (root / "one").symlink_to(tmp_path / "store")
    (root / "same").symlink_to(tmp_path / "store")
    (root / "b.jsonl").symlink_to(tmp_path / "store" / "x.jsonl")
    (root / "circle").symlink_to(root)
    os.link(tmp_path / "store" / "deep" / "y.jsonl", root / "hard.jsonl")
    assert read(root) == ["x.jsonl", "deep/y.jsonl"], "by the first names: b.jsonl, hard.jsonl"
    [note] = notes(root)
    assert "circle, same (a link to a folder that is read already)" in note
    assert "one/x.jsonl (the same file as b.jsonl)" in note
    assert "hard.jsonl (the same file as" in note or "(the same file as hard.jsonl)" in note


def test_links_to_nothing(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nothing")
    assert read(tmp_path) == ["a.jsonl"]
    assert "gone.txt (a link to nothing)" in notes(tmp_path)[0]
    (tmp_path / "b.jsonl").symlink_to("../.git/annex/objects/aa/bb/SHA256E-s5--00.jsonl")
    says = f"{tmp_path / 'b.jsonl'}: is a git-annex link, and its data is not here; run `git annex get` in its folder"
    assert refused(tmp_path) == refused(tmp_path / "b.jsonl") == refused(tmp_path / "*.jsonl") == says
    (tmp_path / "b.jsonl").unlink()
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "nothing")
    assert refused(tmp_path).startswith(
        f"{tmp_path / 'b.jsonl'}: is a link to {tmp_path / 'nothing'} that is not there"
    )


def test_our_own_folders_are_left_out(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    write_jsonl(tmp_path / "raw" / "a.jsonl", conversations(4))
    prepare_rows(make_job(tmp_path / "raw" / "prepared", [source(tmp_path / "raw")], small_tokenizer_dir))
    put(tmp_path / "raw" / "runs" / "one", "recipe.json", "prepared.json", "metrics.jsonl")
    put(tmp_path / "raw" / "export", "config.json", "tokenizer_config.json", "tokenizer.json")
    found = find_files(settings(tmp_path / "raw"), where="s")
    assert [file.name for file in found.files] == ["a.jsonl"]
    assert found.note == "left out export (a model); prepared (a prepared dataset); runs/one (a run folder)"
    job = make_job(tmp_path / "other", [source(tmp_path / "raw" / "prepared")], small_tokenizer_dir)
    with pytest.raises(UserError, match=r"prepared: was written by `ochat prepare`; its rows are tokens"):
        prepare(job, num_workers=1)
    assert "is a run folder, not raw conversations" in refused(tmp_path / "raw" / "runs" / "one")


def test_an_empty_file_is_named_and_a_source_of_empty_files_refused(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl")
    (tmp_path / "b.jsonl").write_text("\n \n")
    (tmp_path / "c.parquet").touch()
    assert read(tmp_path) == ["a.jsonl"]
    assert notes(tmp_path) == [
        f"data.sources.0: {tmp_path / 'b.jsonl'} is empty",
        f"data.sources.0: {tmp_path / 'c.parquet'} is empty",
    ]
    with pytest.raises(UserError, match=r"b\.jsonl: is empty"):
        notes(tmp_path / "b.jsonl")
    with pytest.raises(UserError, match="every file is empty"):
        notes(tmp_path / "[bc].*")


def test_names_that_look_like_patterns(tmp_path: Path) -> None:
    put(tmp_path / "set[1]", "a b::c ü.jsonl", "[x].jsonl", "x.jsonl")
    put(tmp_path / "set1", "other.jsonl")
    assert read(tmp_path / "set[1]" / "a b::c ü.jsonl") == ["a b::c ü.jsonl"]
    assert read(tmp_path / "set[1]") == ["[x].jsonl", "a b::c ü.jsonl", "x.jsonl"]
    assert read(tmp_path / "set[1]" / "*.jsonl") == ["[x].jsonl", "a b::c ü.jsonl", "x.jsonl"]
    assert read(tmp_path / "set[1]" / "[x].jsonl") == ["[x].jsonl"], "it exists under this name"
    assert read(tmp_path / "set[1]" / "[xy].jsonl") == ["x.jsonl"]
    assert read(tmp_path / "set[0-9]" / "*") == ["other.jsonl"]


def test_a_pattern_names_the_folders_that_it_matches(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl", "deep/b.jsonl")
    assert read(tmp_path / "*") == ["a.jsonl"]
    assert "left out deep (a folder; `**` includes folders)" in notes(tmp_path / "*")[0]
    assert read(tmp_path / "**") == ["a.jsonl", "deep/b.jsonl"]
    assert notes(tmp_path / "**") == []


# ---- the same file twice ----


def test_a_file_that_is_read_twice_is_a_warning(tmp_path: Path) -> None:
    put(tmp_path, "one/a.jsonl", "two/b.jsonl", "two/c.jsonl")
    assert notes(tmp_path / "one", tmp_path / "two") == [], "files of one size with other content"
    shutil.copy(tmp_path / "one/a.jsonl", tmp_path / "two" / "copy.jsonl")
    [note] = notes(tmp_path / "one", tmp_path / "two")
    assert note == (
        f"data.sources.1: {tmp_path}/two/copy.jsonl holds the same as {tmp_path}/one/a.jsonl of data.sources.0: its "
        "rows are read twice; remove one, if that is not meant"
    )
    [note] = notes(tmp_path / "one", tmp_path / "one" / "a.jsonl")
    assert note.startswith(f"data.sources.1: {tmp_path}/one/a.jsonl holds the same as")


def test_a_copy_that_is_packed_or_of_another_kind_is_a_warning(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl", "b.jsonl", "more/a.jsonl", "a.b.jsonl")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "b.csv").write_text("a,b\n1,2\n")
    said = notes(tmp_path)
    names = [("a.jsonl.gz", "a.jsonl"), ("b.jsonl", "b.csv")]
    assert [
        f"{tmp_path / one} is called like {tmp_path / other}" in text
        for text, (one, other) in zip(said, names, strict=True)
    ] == [True] * 2


def test_other_things_that_a_path_may_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is neither a file nor a folder" in refused(tmp_path / "pipe")
    assert "is an address, not a file here" in refused("https://example.org/a.jsonl")
    put(tmp_path / "table", "_metadata", "_common_metadata", "part.jsonl")
    assert read(tmp_path / "table") == ["part.jsonl"]
    put(tmp_path / "table", "_delta_log/0.json")
    assert "is a Delta table" in refused(tmp_path / "table")


@pytest.mark.parametrize(
    ("name", "says"),
    [("datasets/ORG/NAME", "without `datasets/`"), ("ORG/NAME@main", "`revision`"), ("ORG/HERE", "is here as well")],
)
def test_what_is_no_dataset_of_the_hub(name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is asked of the network. `datasets` would read a folder of that name instead."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ORG" / "HERE").mkdir(parents=True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **more: pytest.fail("it was asked"))
    with pytest.raises(UserError) as caught:
        load_dataset(settings(f"hf://{name}", split="train"), where="s")
    assert says in str(caught.value)


def test_prepare_says_what_is_left_out_and_read_twice(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    write_jsonl(tmp_path / "raw" / "a.jsonl", conversations(4))
    (tmp_path / "raw" / "notes.txt").write_text("x")
    said: list[str] = []
    job = make_job(tmp_path / "prepared", [source(tmp_path / "raw")] * 2, small_tokenizer_dir)
    prepare(job, num_workers=1, say=said.append)
    assert [text.partition(" left out ")[2] for text in said[:2]] == ["notes.txt (not data)"] * 2
    assert "holds the same as" in said[2]
    assert len(said) == 3
    assert all(text.startswith("warning: data.sources.") for text in said)


# ---- splits ----


@pytest.mark.parametrize(
    ("name", "names", "group"),
    [
        ("train", {"train"}, "train"),
        ("train-00000-of-00012", {"train"}, "train"),
        ("train_sft-00000-of-00001-a1b2c3", {"train_sft"}, "train_sft"),
        ("my_data_test", {"my_data_test", "test"}, "test"),
        ("Validation.2024", {"Validation.2024", "validation"}, "validation"),
        ("test/part-00000-of-00002", {"part"}, "part"),
        ("test/rows", {"test"}, "test"),
        ("dev/x/rows", {"dev", "validation"}, "validation"),
        ("contest", {"contest"}, None),
        ("latest_attempts", {"latest_attempts"}, None),
        ("rows", {"rows"}, None),
    ],
)
def test_which_split_a_name_is_of(name: str, names: set[str], group: str | None) -> None:
    found = split_names(name.split("/"))
    assert (set(found.names), found.group) == (names, group)


SPLIT_FOLDERS = {
    "shards": ("data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/test-00000-of-00001.jsonl"),
    "files": ("train.jsonl", "train_more.jsonl", "test.jsonl"),
    "folders": ("train/a.jsonl", "train/b.jsonl", "test/a.jsonl"),
}


@pytest.mark.parametrize("kind", SPLIT_FOLDERS)
@pytest.mark.parametrize("ending", ["", "/**"])
def test_a_split_of_a_folder_is_honoured_or_refused(kind: str, ending: str, tmp_path: Path) -> None:
    first, second, test = SPLIT_FOLDERS[kind]
    put(tmp_path, first, second, test)
    path = f"{tmp_path}{ending}"
    assert read(path, split="train") == [first, second]
    assert read(path, split="test") == [test]
    assert f"{test} (not of split train)" in notes(path, split="train")[0]
    assert refused(path, split="dev").endswith("no file is of split `dev`; splits: test, train")
    if ending:
        assert read(path) == sorted((first, second, test))
        assert "reads the splits test and train together" in notes(path)[0]
    else:
        assert refused(path).endswith("holds several splits (test, train); name one as `split`")


def test_files_that_name_no_split_are_read_together_and_have_none(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl", "b.jsonl")
    assert read(tmp_path) == ["a.jsonl", "b.jsonl"]
    assert refused(tmp_path, split="train").endswith("no file is of split `train`; remove `split`, or name the files")
    put(tmp_path, "train.jsonl", "chats-00000-of-00001.jsonl")
    assert len(read(tmp_path)) == 4, "one split, and files that name none"
    assert read(tmp_path, split="train") == ["train.jsonl"]
    assert "a.jsonl, b.jsonl, chats-00000-of-00001.jsonl (not of split train)" in notes(tmp_path, split="train")[0]
    put(tmp_path / "train", "x.jsonl")
    assert read(tmp_path / "train", split="train") == ["x.jsonl"], "the folder itself is called like the split"


def test_a_file_has_a_split_only_by_its_name(tmp_path: Path) -> None:
    put(tmp_path, "train_sft-00000-of-00001.jsonl", "rows.jsonl")
    assert len(read(tmp_path / "train_sft-00000-of-00001.jsonl", split="train_sft")) == 1
    assert "a file has no split `train`; remove `split`" in refused(tmp_path / "rows.jsonl", split="train")
    assert "has no split `train`" in refused(tmp_path / "train_sft-00000-of-00001.jsonl", split="train")
    for split in ("train[:50%]", "train+test"):
        with pytest.raises(ValueError, match="parts and sums of splits are for datasets on the Hub"):
            settings(tmp_path, split=split)
        assert settings("hf://a/b", split=split).split == split


# ---- subsets and cards ----

CARD = """---
license: mit
configs:
- config_name: all
  data_files: all/*.jsonl
- config_name: short
  data_files:
  - split: train
    path: [short/a.jsonl, short/b.jsonl]
  - split: test
    path: short/held/*.jsonl
- config_name: empty
---
# A card
"""


def test_a_card_with_subsets(tmp_path: Path) -> None:
    put(tmp_path, "all/x.jsonl", "short/a.jsonl", "short/b.jsonl", "short/held/c.jsonl", "empty/y.jsonl")
    (tmp_path / "README.md").write_text(CARD)
    assert refused(tmp_path).endswith("its card names several subsets (all, short, empty); name one as `subset`")
    assert read(tmp_path, subset="all") == ["all/x.jsonl"]
    assert read(tmp_path, subset="empty") == ["empty/y.jsonl"], "the folder of that name"
    assert refused(tmp_path, subset="short").endswith("holds several splits (test, train); name one as `split`")
    assert read(tmp_path, subset="short", split="train") == ["short/a.jsonl", "short/b.jsonl"]
    assert read(tmp_path, subset="short", split="test") == ["short/held/c.jsonl"]
    assert refused(tmp_path, subset="none").endswith("has no subset `none`; subsets: all, empty, short")


def test_a_card_with_one_subset_says_what_its_files_are(tmp_path: Path) -> None:
    put(tmp_path, "x.jsonl", "y.jsonl", "old/z.jsonl")
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: x.jsonl}\n"
    (tmp_path / "README.md").write_text(f"{card}  - {{split: test, path: y.jsonl}}\n---\n")
    assert read(tmp_path, split="test") == ["y.jsonl"]
    assert "old/z.jsonl (of no subset that is read, by the card)" in notes(tmp_path, split="test")[0]
    assert "holds several splits (test, train)" in refused(tmp_path)


@pytest.mark.parametrize("card", ["", "# no header", "---\n: [\n---\n", "---\nconfigs: 5\n---\n", "---\n- a\n---\n"])
def test_other_cards_change_nothing(card: str, tmp_path: Path) -> None:
    put(tmp_path, "a/x.jsonl", "b/y.jsonl")
    (tmp_path / "README.md").write_text(card)
    assert read(tmp_path) == ["a/x.jsonl", "b/y.jsonl"]
    assert read(tmp_path, subset="b") == ["y.jsonl"] or read(tmp_path, subset="b") == ["b/y.jsonl"]
    assert refused(tmp_path, subset="../x").endswith("has no subset `../x`; subsets: a, b")
    assert "a file has no subset" in refused(tmp_path / "a" / "x.jsonl", subset="b")
    assert "`subset` needs a folder" in refused(tmp_path / "*" / "*.jsonl", subset="b")


def test_revision_is_for_the_hub(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`revision` is for datasets on the Hub"):
        settings(tmp_path, revision="main")


def test_what_is_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(*names: str, **options: Any) -> datasets.Dataset:
        asked.append((*names, options))
        return datasets.Dataset.from_list([{"file": "a"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read("hf://org/name", split="train") == ["a"]
    assert read("hf://org/name", split="train[:5]", subset="all", revision="v1") == ["a"]
    assert asked == [
        ("org/name", {"split": "train"}),
        ("org/name", {"split": "train[:5]", "name": "all", "revision": "v1"}),
    ]


def test_a_hub_dataset_with_several_subsets_asks_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*names: str, **options: Any) -> None:
        raise ValueError("Config name is missing. Please pick one among the available configs: ['all', 'short']")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UserError, match=r"\['all', 'short'\]; name it as `subset` of the source"):
        read("hf://org/name", split="train")


# ---- folders of `datasets` ----


def save(folder: Path, *names: str, **splits: list[str]) -> None:
    made = {split: datasets.Dataset.from_list([{"file": name} for name in rows]) for split, rows in splits.items()}
    if made:
        datasets.DatasetDict(made).save_to_disk(str(folder))
    else:
        datasets.Dataset.from_list([{"file": name} for name in names]).save_to_disk(str(folder))


def test_saved_datasets_and_their_splits(tmp_path: Path) -> None:
    save(tmp_path / "plain", "a")
    save(tmp_path / "one", only=["b"])
    save(tmp_path / "two", train=["c"], test=["d"])
    assert read(tmp_path / "plain") == ["a"]
    assert read(tmp_path / "one") == ["b"], "its only split need not be named"
    assert read(tmp_path / "two", split="test") == ["d"]
    for folder, split, says in (
        ("plain", "train", "has no splits, so no split `train`; remove `split`"),
        ("one", "train", "has no split `train`; name one as `split`: only"),
        ("two", None, "has several splits; name one as `split`: train, test"),
        ("two", "dev", "has no split `dev`; name one as `split`: train, test"),
    ):
        with pytest.raises(UserError, match=f"{folder}: {says}"):
            read(tmp_path / folder, split=split)


def test_a_folder_of_saved_datasets(tmp_path: Path) -> None:
    """Their notes about themselves are no rows, and a cache beside them is not read."""
    save(tmp_path / "all" / "part_1", "a")
    save(tmp_path / "all" / "part_2", "b")
    shutil.copy(tmp_path / "all/part_1/data-00000-of-00001.arrow", tmp_path / "all/part_1/cache-0123.arrow")
    assert read(tmp_path / "all") == ["a", "b"]
    assert "part_1/cache-0123.arrow (a cache of `datasets`)" in notes(tmp_path / "all")[0]
    assert read(tmp_path / "all", subset="part_2") == ["b"]
    assert is_dataset(settings(tmp_path / "all", subset="part_2"))
    with pytest.raises(UserError, match="part_1: has no subset `x`"):
        read(tmp_path / "all" / "part_1", subset="x")


@pytest.mark.parametrize("damage", ["state", "data", "colons"])
def test_a_saved_dataset_that_cannot_be_opened_is_a_user_error(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / ("a::b" if damage == "colons" else "saved")
    save(tmp_path / "made", "a")
    (tmp_path / "made").rename(folder)
    if damage == "state":
        (folder / "state.json").write_text("{")
    elif damage == "data":
        (folder / "data-00000-of-00001.arrow").write_bytes(b"x")
    with pytest.raises(UserError, match=r"rename it" if damage == "colons" else r"cannot be read \("):
        read(folder)


def test_the_fingerprint_of_a_source_follows_its_files(tmp_path: Path) -> None:
    put(tmp_path, "train.jsonl", "test.jsonl", "notes.txt")
    first = fingerprint(settings(tmp_path, split="train"), where="s")
    put(tmp_path, "other.txt")
    (tmp_path / "test.jsonl").write_text("{}")
    assert fingerprint(settings(tmp_path, split="train"), where="s") == first, "of what is read, and of nothing else"
    (tmp_path / "train.jsonl").write_text("{}")
    assert fingerprint(settings(tmp_path, split="train"), where="s") != first


def test_an_unused_value_out_of_range_does_not_matter_and_a_used_one_is_a_bad_row(
    tmp_path: Path, small_tokenizer_dir: Path
) -> None:
    far = pa.array([253402300800000000] * 3, pa.timestamp("us"))
    table = pa.Table.from_pylist(conversations(3)).append_column("expires", far)
    parquet.write_table(table, tmp_path / "rows.parquet")
    manifest, _ = prepare_rows(make_job(tmp_path / "a", [source(tmp_path / "rows.parquet")], small_tokenizer_dir))
    assert manifest.ledger.kept == 3
    described = source(tmp_path / "rows.parquet", class_field="expires")
    job = make_job(tmp_path / "b", [described], small_tokenizer_dir)
    with pytest.raises(UserError, match=r"expires: .*timestamp"):
        prepare(job, num_workers=1)
    rows = [row for part in chunks(settings(tmp_path / "rows.parquet"), where="s") for _, row in read_chunk(part)]
    assert isinstance(rows[0]["expires"], RowError)
