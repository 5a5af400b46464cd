"""`ochat generate`: one prompt, and a file of them with one load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from ochat_train.cli.main import main
from ochat_train.inference import load
from ochat_train.inference.prompts_file import load_prompts
from tests.support.tiny_export import write_tiny_export


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, small_tokenizer_dir: Path) -> Path:
    return write_tiny_export(tmp_path_factory.mktemp("export"), small_tokenizer_dir)


def generated(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["generate", *arguments, "--max-new-tokens", "8"]) == 0
    return capsys.readouterr().out


def test_a_file_gets_the_answers_of_its_prompts_one_by_one(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the file, with the condition and system text of each line, and the model loaded once."""
    rows = [
        "hello",
        {"prompt": "hello", "condition": "GPT3"},
        {"prompt": "a longer one\nof two lines", "system": "Be brief."},
        {"prompt": "hello", "condition": None},
        {"prompt": "again", "condition": "GPT3", "system": ""},
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    loads, real = [], load.load_exported
    monkeypatch.setattr(load, "load_exported", lambda one: loads.append(one) or real(one))
    lines = [json.loads(line) for line in generated(capsys, str(folder), "--prompts", str(path)).splitlines()]
    assert len(loads) == 1
    expected = []
    for row in rows:
        fields = {"prompt": row} if isinstance(row, str) else row
        condition = ["--condition", str(fields["condition"])] if fields.get("condition") else []
        arguments = [
            str(folder),
            "--prompt",
            str(fields["prompt"]),
            "--system",
            str(fields.get("system", "")),
            "--json",
        ]
        expected.append(json.loads(generated(capsys, *arguments, *condition)))
    assert lines == expected
    assert len({line["answer"] for line in lines}) >= 4, "the control: conditions and system texts matter"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hello", ":1: is not JSON"),
        ('"a"\n{"promt": "b"}', ":2: has no `prompt`"),
        ('{"prompt": "b", "conditon": "GPT3"}', "unknown field `conditon`"),
        ('{"prompt": "b", "condition": 3}', "`condition` is not a text"),
        ("[]", "has no `prompt`"),
        ("\n", "holds no prompts"),
    ],
)
def test_a_line_that_is_no_prompt_is_named(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=words):
        load_prompts(path, condition=None, system="")
    with pytest.raises(UserError, match="cannot be read"):
        load_prompts(tmp_path / "none.jsonl", condition=None, system="")


def test_a_folder_without_a_chat_template_is_explained(
    tmp_path: Path, small_tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_tiny_export(tmp_path, small_tokenizer_dir)
    (folder / "chat_template.jinja").unlink()
    assert main(["generate", str(folder), "--prompt", "x"]) == 2
    said = capsys.readouterr().err
    assert "has no chat template" in said
    assert "Traceback" not in said
