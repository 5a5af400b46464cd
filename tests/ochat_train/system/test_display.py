"""Nothing of users' data, file names or tokenizers reaches a terminal, page, picture or card as more than text."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_pipeline.path_keys import written_path
from data_pipeline.text_rules import markdown_text, visible
from ochat_train.report.page import Cell, Section, render_page
from ochat_train.report.pictures import Series, bar_chart, line_chart
from tests.support.planted_text import (
    END,
    IN_A_LINE,
    PLANTED,
    hidden_characters,
    problems_of_markdown,
    problems_of_page,
    problems_of_text,
)
from tests.support.processes import ROOT, ochat
from tests.support.small_recipe import TINY_MODEL
from tests.support.tokenizers import write_small_tokenizer

# Who may call `print`: the one file that makes text visible first, and those whose text is visible already, or holds
# no data (the watchdog's threads print while the process may be broken).
PRINTERS = {
    "ochat_train/system/messages.py",
    "ochat_train/distributed/watchdog.py",
    "ochat_train/quickstart/make.py",
    "ochat_train/quickstart/score.py",
}


def prints(path: Path) -> bool:
    """Whether a file calls `print`, or hands it over, or writes to a standard stream itself."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name) and node.id == "print":
            return True
        if (
            isinstance(node, ast.Attribute)
            and node.attr == "write"
            and ast.unparse(node.value)
            in (
                "sys.stdout",
                "sys.stderr",
                "tqdm",
            )
        ):
            return True
    return False


def test_only_one_file_prints_text_of_users() -> None:
    found = {
        str(path.relative_to(ROOT))
        for top in ("ochat_train", "data_pipeline")
        for path in (ROOT / top).rglob("*.py")
        if prints(path)
    }
    assert found == PRINTERS


def raw_row(number: int, **changes: Any) -> dict[str, Any]:
    messages = [
        {"role": "user", "content": f"{PLANTED} question {number}"},
        {"role": "assistant", "content": f"answer {PLANTED} {number}"},
    ]
    return {"id": f"{number} {PLANTED}", "quality": f"a {PLANTED}", "messages": messages, **changes}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with the planted text in every field that takes it, prepared, trained, exported."""
    folder = tmp_path_factory.mktemp("display") / f"f {IN_A_LINE.replace('/', '.').replace(':', '.')}"[:200]
    folder.mkdir()
    tokenizer = write_small_tokenizer(folder / "tok")
    description = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    number = max(description["model"]["vocab"].values()) + 1
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    description["added_tokens"].append({"id": number, "content": f"<{PLANTED}>", "special": True, **flags})
    (tokenizer / "tokenizer.json").write_text(json.dumps(description), encoding="utf-8")
    rows = [raw_row(n) for n in range(24)] + [raw_row(24, messages=[{"role": f"r{PLANTED}", "content": "x"}])]
    raw = folder / f"raw{visible(IN_A_LINE)[:20]}\u202e\x1b[6m.jsonl"
    raw.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = {
        "name": "planted",
        "output_dir": written_path(str(folder / "run\u202e\x1b[6m")),
        "model": {
            "config": {**TINY_MODEL, "max_position_embeddings": 1024},
            "tokenizer": written_path(str(tokenizer)),
            "template": "openchat_3.5",
            "max_length_tokens": 1024,
        },
        "data": {
            "prepared_dir": written_path(str(folder / "prepared\u202e\x1b[6m")),
            "classes": {
                f"a {PLANTED}": {"condition": f"A {PLANTED}", "reward": 1.0},
                "_b": {"condition": "B", "reward": 0.0},
            },
            "beta": 0.5,
            "bad_rows": "drop",
            "validation_ratio": 0.3,
            "sources": [
                {"path": written_path(str(raw)), "format": "messages", "class_field": "quality"},
                {"path": written_path(str(_other(folder))), "format": "messages", "class": "_b"},
            ],
        },
        "train": {"epochs": 1, "max_steps": 1, "pack_length_tokens": 1024, "tokens_per_step": 1024},
        "validation": {"prompts": [f"prompt {PLANTED}"], "sample_tokens": 2},
        "tracking": {"tensorboard": True},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return folder


def _other(folder: Path) -> Path:
    path = folder / "other.jsonl"
    path.write_text("".join(json.dumps(raw_row(n)) + "\n" for n in range(100, 112)), encoding="utf-8")
    return path


def said(*arguments: str | Path, code: int = 0) -> str:
    """What a command printed, on both streams; nothing planted may be in it. Rows and answers keep their line ends."""
    done = ochat(*map(str, arguments))
    assert done.returncode == code, done.stdout + done.stderr
    text = done.stdout + done.stderr
    problems = problems_of_text(text)
    if arguments[0] in ("inspect", "generate"):
        problems = [problem for problem in problems if not problem.startswith("begins a line")]
    assert problems == [], arguments[0]
    return text


def test_no_verb_shows_planted_text_as_more_than_text(world: Path) -> None:
    recipe, run = world / "recipe.yaml", world / "run\u202e\x1b[6m"
    prepared, page, export = world / "prepared\u202e\x1b[6m", world / "page.html", world / "export"
    assert END in said("prepare", recipe, "--workers", "1")
    assert END in said("check", recipe)
    said("plan", recipe)
    for more in ([], ["--tokens"], ["--color", "always"], ["--json"]):
        assert END in said("inspect", prepared, *more)
    row = json.loads(said("inspect", prepared, "--json", "--rows", "0:1").splitlines()[0])
    assert PLANTED in row["id"] or row["class"] == "_b", "JSON keeps the data"
    said("inspect", prepared, "--html", page, "--tokens")
    said("train", recipe)
    said("report", run)
    said("export", run, "--out", export)
    asked = ("generate", export, "--prompt", PLANTED, "--condition", PLANTED, "--max-new-tokens", "2")
    said(*asked, code=2)  # not trained
    said(*asked, "--any-condition")
    said("report", world / "nothing\x1b[6m\u202e", code=2)
    for written in (page, run / "report.html"):
        text = written.read_text(encoding="utf-8")
        assert problems_of_page(text) == []
        assert END in text
        assert ">_b<" in text, "a name that begins with an underscore is shown"
    card = (export / "README.md").read_text(encoding="utf-8")
    assert problems_of_markdown(card) == []
    assert END in card


def test_init_shows_planted_text_as_text(world: Path) -> None:
    files = [path for path in world.iterdir() if path.suffix == ".jsonl"]
    out = world / "new.yaml"
    text = said("init", *files, "--base", "org/base", "--out", out, code=2)
    assert "planted.example" in text or END in text
    assert not hidden_characters(text)


def test_pages_and_pictures_take_text_from_anywhere() -> None:
    """Every place of a section at once; the control is the same page without the function."""
    cells = [[Cell(text=PLANTED), Cell(text="x")]]
    section = Section(heading=PLANTED, paragraphs=[PLANTED], head=[PLANTED, "x"], rows=cells, preformatted=PLANTED)
    assert problems_of_page(render_page(PLANTED, PLANTED, [section])) == []
    series = [Series(label=f"{name}{PLANTED}", x=[1, 2], y=[1.0, 2.0]) for name in ("_", "b")]
    for picture in (line_chart(series, unit=PLANTED), bar_chart([PLANTED], [1.0], [None], unit=PLANTED)):
        for drawing in (picture.wide, picture.narrow):
            assert problems_of_page(drawing) == []
            assert END in drawing
    assert ">_" in line_chart(series, unit="u").wide, "matplotlib hides names that begin with an underscore"
    assert problems_of_markdown(f"a {markdown_text(PLANTED)} b") == []
    for check in (problems_of_text, problems_of_page, problems_of_markdown):
        assert check(PLANTED), "the control"
