"""`ochat inspect` as a command, and its page: structure, content, and that data stay text."""

from __future__ import annotations

import io
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from data_pipeline.text_rules import visible
from ochat_train.cli.main import main
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import prepare_recipe
from tests.support.rows import write_jsonl
from tests.support.small_recipe import RecipeFactory

NASTY = "<script>alert(1)</script>&\"' \x1b[31m \u202e</mark></div> <|end_of_turn|>"
NASTY_CONDITION = '<b>&\x1b\u202e"'
VOID = {"meta"}


class Page(HTMLParser):
    """A page as a reader meets it: headings, cells, and for each passage its marked pieces (class, text)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str]]] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.headings: list[str] = []
        self.cells: list[str] = []
        self.passages: list[list[tuple[str, str]]] = []
        self.labels: list[str] = []
        self.notes: list[str] = []
        self.regions: list[dict[str, str]] = []
        self.feed(text)
        assert not self.open, "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.add(tag)
        self.links += [value for name, value in found.items() if name in ("src", "href", "onclick", "onload")]
        if tag in VOID:
            return
        self.open.append((tag, found))
        classes = found.get("class", "").split()
        if "passage" in classes:
            self.passages.append([])
            self.regions.append(found)
        elif {"control", "prefix", "content"} & set(classes):
            self.passages[-1].append((f"{tag} {classes[0]}", ""))
        elif tag == "td":
            self.cells.append("")
        elif tag in ("h2", "h3"):
            self.headings.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if not self.open:
            return
        tag, found = self.open[-1]
        classes = found.get("class", "").split()
        if "label" in classes:
            self.labels.append(data)
        elif "note" in classes:
            self.notes.append(data)
        elif {"control", "prefix", "content"} & set(classes):
            name, text = self.passages[-1][-1]
            self.passages[-1][-1] = (name, text + data)
        elif tag == "td":
            self.cells[-1] += data
        elif tag in ("h2", "h3"):
            self.headings[-1] += data


@pytest.fixture
def prepared_dir(tmp_path: Path, make_recipe: RecipeFactory) -> Path:
    """60 rows of two classes; the first says nasty things and is of a class with a nasty condition."""
    classes = {
        "expert": {"condition": NASTY_CONDITION, "weight": 1.0},
        "suboptimal": {"condition": "GPT3", "weight": 0.1},
    }
    recipe = load_recipe(make_recipe(data__classes=classes, data__beta=None))
    rows = [{"messages": [{"role": "user", "content": NASTY}, {"role": "assistant", "content": f"{NASTY}\nyes"}]}]
    rows += [{"messages": [{"role": "user", "content": "only a question"}]}]
    write_jsonl(tmp_path / "expert.jsonl", rows)
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"bad_rows": "drop"})})
    prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
    return tmp_path / "prepared"


def page_of(prepared_dir: Path, *options: str) -> Page:
    out = prepared_dir.parent / "page.html"
    assert main(["inspect", str(prepared_dir), "--html", str(out), *options]) == 0
    text = out.read_text(encoding="utf-8")
    assert all(character.isprintable() or character == "\n" for character in text)
    assert "http" not in text.replace("http-equiv", "")
    page = Page(text)
    assert "script" not in page.tags
    assert not [link for link in page.links if not link.startswith("#")]
    return page


def test_page_holds_everything_and_data_stay_text(prepared_dir: Path) -> None:
    page = page_of(prepared_dir, "--rows", "0:2")
    assert page.headings[:5] == ["Classes", "Lengths", "Lengths of each class", "Ledger", "Rows"]
    assert page.headings[5].startswith(f"Row 0: expert, under {visible(NASTY_CONDITION)}; ")
    first, second = page.passages
    assert first == [
        ("span control", "<s>"),
        ("span prefix", f"{visible(NASTY_CONDITION)} User:"),
        ("span content", f" {visible(NASTY)}"),
        ("span control", "<|end_of_turn|>"),
        ("span prefix", f"{visible(NASTY_CONDITION)} Assistant:"),
        ("mark content", f" {visible(NASTY)}\nyes"),
        ("mark control", "<|end_of_turn|>"),
    ]
    assert ("span prefix", "GPT3 User:") in second
    assert page.labels == ["1", *["0.1"] * (len(page.labels) - 1)], "weights can be read without colour"
    assert len(page.labels) > 1
    assert any("expert.jsonl:2: " in cell for cell in page.cells), "the dropped row is shown with its place"
    assert all(region["tabindex"] == "0" and region["aria-labelledby"] for region in page.regions)


def test_every_class_is_shown_if_no_rows_are_chosen(
    tmp_path: Path, make_recipe: RecipeFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows of a class come one after the other, so the first rows are all of the first one: the control."""
    recipe = load_recipe(make_recipe(data__validation_ratio=0.0))
    prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
    prepared_dir, names = Path(recipe.data.prepared_dir), list(recipe.data.classes or {})

    def shown(*options: str) -> list[int]:
        rows = [heading for heading in page_of(prepared_dir, *options).headings if heading.startswith("Row ")]
        return [sum(f": {name}, under " in heading for heading in rows) for name in names]

    assert shown() == [10, 10]
    assert shown("--rows", "0:20") == [20, 0]
    assert shown("--class", names[1]) == [0, 20]
    capsys.readouterr()
    assert main(["inspect", str(prepared_dir)]) == 0
    text = capsys.readouterr().out
    assert [text.count(f"  class {name}  condition") for name in names] == [2, 2]


def test_page_of_tokens_has_a_box_for_each(prepared_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = page_of(prepared_dir, "--class", "suboptimal", "--rows", "0:1", "--tokens")
    capsys.readouterr()
    assert main(["inspect", str(prepared_dir), "--json", "--class", "suboptimal", "--rows", "0:1"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert page.notes == [str(number) for number in row["input_ids"]]
    marks = [tag for tag, _ in page.passages[0] if tag.startswith("mark")]
    assert len(marks) == sum(weight > 0 for weight in row["loss_weights"])


def test_page_that_cannot_be_written(prepared_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for out in (prepared_dir, prepared_dir / "nowhere" / "page.html"):
        assert main(["inspect", str(prepared_dir), "--html", str(out)]) == 2
        assert f"--html {out}: is a folder, or its parent folder does not exist" in capsys.readouterr().err
    assert not list(prepared_dir.parent.glob(".*.tmp"))


def test_page_is_never_written_into_the_prepared_dataset(
    prepared_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By whatever name; `ochat prepare` replaces no folder that holds a foreign file."""
    (tmp_path / "link").symlink_to(prepared_dir, target_is_directory=True)
    (prepared_dir / "link.html").symlink_to(tmp_path / "page.html")
    monkeypatch.chdir(prepared_dir)
    before = sorted(prepared_dir.rglob("*"))
    for out in (
        prepared_dir / "x.html",
        prepared_dir / "train" / "x.html",
        tmp_path / "link" / "x.html",
        Path("link.html"),
    ):
        assert main(["inspect", str(prepared_dir), "--html", str(out)]) == 2
        assert f"--html {out}: is inside the prepared dataset" in capsys.readouterr().err
    assert sorted(prepared_dir.rglob("*")) == before
    assert main(["inspect", ".", "--html", "../page.html"]) == 0


def test_colors_are_for_terminals_and_can_be_turned_off(
    prepared_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def has_colors(*options: str) -> bool:
        assert main(["inspect", str(prepared_dir), *options]) == 0
        return "\033[" in capsys.readouterr().out

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert not has_colors()
    assert has_colors("--color", "always")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert has_colors()
    assert not has_colors("--color", "never")
    monkeypatch.setenv("NO_COLOR", "")  # as https://no-color.org says
    assert has_colors()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not has_colors()
    assert has_colors("--color", "always")
    monkeypatch.setenv("NO_COLOR", "")
    monkeypatch.setenv("TERM", "dumb")
    assert not has_colors()


def test_output_that_knows_few_characters(prepared_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    assert main(["inspect", str(prepared_dir), "--rows", "0:1"]) == 0
    stream.seek(0)
    assert "\\xab<|end_of_turn|>\\xbb" in stream.read()


@pytest.mark.parametrize("text", ["5:3", "3", "a:b", "-1:2"])
def test_wrong_row_range(prepared_dir: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["inspect", str(prepared_dir), f"--rows={text}"])
    assert caught.value.code == 2
    assert "--rows" in capsys.readouterr().err
