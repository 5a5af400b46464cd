"""`ochat generate`: one prompt, and a file of them with one load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UserError
from ochat_train.cli.main import main
from ochat_train.inference import load
from ochat_train.inference.generate import Generator, load_generator
from ochat_train.inference.prompts_file import Prompt, load_prompts, notes_of_empty_answers
from ochat_train.system.pretrained import prompt_ids
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


def test_an_empty_answer_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On standard error, with the condition; under another condition the model says something, the control."""
    real: Any = Generator.answers

    def answers(self: Generator, conversations: Any, *, condition: str | None, **options: Any) -> Any:
        found = real(self, conversations, condition=condition, **options)
        return found if condition == "GPT3" else [""] * len(found)

    monkeypatch.setattr(Generator, "answers", answers)
    said = "the model wrote no text under the condition 'GPT4 Correct', usually because it ended its turn at once"
    ask = ["generate", str(folder), "--max-new-tokens", "8"]
    assert main([*ask, "--prompt", "hello"]) == 0
    assert capsys.readouterr() == ("\n", f"the answer is empty: {said}\n")
    assert main([*ask, "--prompt", "hello", "--condition", "GPT3"]) == 0
    assert capsys.readouterr().err == ""
    path = tmp_path / "prompts.jsonl"
    path.write_text('"a"\n{"prompt": "a", "condition": "GPT3"}\n{"prompt": "a", "condition": "GPT4 Correct"}\n')
    assert main([*ask, "--prompts", str(path)]) == 0
    assert capsys.readouterr().err == f"2 of 3 answers are empty: {said}\n"
    [line] = notes_of_empty_answers([Prompt(prompt="a")], [""], default=None)
    assert line == "the answer is empty: the model wrote no text, usually because it ended its turn at once"


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


def test_an_answer_ends_with_the_context(folder: Path, tmp_path: Path) -> None:
    """A prompt without room is refused; one with little room gets a short answer, the same beside others as alone."""
    generator = load_generator(folder)
    conversations = [[{"role": "user", "content": "a b" * size}] for size in (1, 20)]
    lengths = [len(prompt_ids(generator.tokenizer, one, add_generation_prompt=True)) for one in conversations]
    alone = [generator.answers([one], condition=None, max_new_tokens=12, temperature=0.0)[0] for one in conversations]
    shortest = generator.answers(conversations[1:], condition=None, max_new_tokens=2, temperature=0.0)[0]
    generator._context_tokens = lengths[1] + 2
    found = generator.answers(conversations, condition=None, max_new_tokens=12, temperature=0.0)
    assert found == [alone[0], shortest]
    assert shortest != alone[1], "the control: the context cuts it"
    generator._context_tokens = lengths[1]
    with pytest.raises(UserError, match=f"has {lengths[1]} tokens"):
        generator.answers(conversations, condition=None, max_new_tokens=1, temperature=0.0)
    assert (
        load_generator(folder)._context_tokens
        == json.loads((folder / "config.json").read_text())["max_position_embeddings"]
    )


def test_settings_of_the_folder_change_no_answer(folder: Path, tmp_path: Path) -> None:
    """A base's repetition penalty stays out, as it does in `ochat serve`. The control is the penalty itself."""
    other = shutil.copytree(folder, tmp_path / "other")
    path = other / "generation_config.json"
    settings = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**settings, "repetition_penalty": 50.0, "no_repeat_ngram_size": 1}))
    conversation = [{"role": "user", "content": "hello hello hello"}]

    def answer(model: Any) -> list[str]:
        return model.answers([conversation], condition=None, max_new_tokens=12, temperature=0.0)

    assert answer(load_generator(other)) == answer(load_generator(folder))
    assert answer(Generator(*load.load_model(other))) != answer(load_generator(folder))


@pytest.mark.parametrize(
    "row", [{"prompt": "a\ufdd0b"}, {"prompt": "a", "system": "\ufdd0"}, {"prompt": "a", "condition": "\ufdd0"}]
)
def test_text_that_training_refuses_is_refused(folder: Path, tmp_path: Path, row: dict[str, str]) -> None:
    """The tokenizer would drop it silently."""
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(UserError, match="U\\+FDD0"):
        load_prompts(path, condition=None, system="")
    path.write_text(json.dumps({name: text.replace("\ufdd0", "x") for name, text in row.items()}))
    assert load_prompts(path, condition=None, system=""), "the control"
    arguments = [text for name, value in row.items() for text in (f"--{name}", value)]
    assert main(["generate", str(folder), *arguments]) == 2


@pytest.mark.parametrize("value", ["nan", "inf", "-1"])
def test_a_temperature_that_is_none_is_refused(folder: Path, value: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["generate", str(folder), "--prompt", "x", f"--temperature={value}"])


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    """JSON may hold other characters that end lines in Python. Editors of Windows write a mark first, and `\\r\\n`."""
    texts = ["a\u2028b\u2029c\x85d", "two"]
    file = tmp_path / "prompts.jsonl"
    rows = [json.dumps(text, ensure_ascii=False) for text in texts]
    assert len("\n".join(rows).splitlines()) == 5, "the control"
    for before, end in (("", "\n"), ("\ufeff", "\r\n")):
        file.write_text(before + end.join([*rows, ""]), encoding="utf-8", newline="")
        assert [prompt.prompt for prompt in load_prompts(file, condition=None, system="")] == texts
    file.write_text("\n".join([*rows, "\ufeff1"]), encoding="utf-8")
    with pytest.raises(UserError, match=f"{file}:3"):
        load_prompts(file, condition=None, system="")
