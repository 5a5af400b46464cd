"""Code that a model repository brings never runs: no verb runs it, whatever somebody answers on a terminal."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data_pipeline.errors import UserError
from ochat_train.model.config import load_base_config
from ochat_train.quickstart.make import write_base
from ochat_train.system.pretrained import config_of_values, load_config, load_tokenizer, without_code
from tests.support.planted_code import MODULES, plant_code
from tests.support.processes import ROOT, finish, start_ranks
from tests.support.small_recipe import write_small_recipe

# What loads a configuration, a tokenizer or a model, and may run its repository's code. Others build from values.
LOADING = ("from_pretrained", "from_config", "generate", "get_class_from_dynamic_module", "pipeline")
# The same names where no code can come along.
HARMLESS = (
    "transformers.GenerationConfig.from_pretrained",  # reads values
    "PeftModel.from_pretrained",  # puts PEFT's own modules on a model that is loaded already
    "self._template.generate",  # Jinja, in its sandbox
)


def calls_without_the_word(tree: ast.AST) -> Iterator[str]:
    """Calls of loading functions that do not pass `trust_remote_code=False`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name not in LOADING or ast.unparse(node.func) in HARMLESS:
            continue
        said = [word.value for word in node.keywords if word.arg == "trust_remote_code"]
        if not (len(said) == 1 and isinstance(said[0], ast.Constant) and said[0].value is False):
            yield f"{node.lineno}: {ast.unparse(node.func)}"


def test_every_call_that_could_run_foreign_code_forbids_it() -> None:
    found = []
    for top in ("ochat_train", "data_pipeline"):
        for path in sorted((ROOT / top).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found += [f"{path.relative_to(ROOT)}:{call}" for call in calls_without_the_word(tree)]
    assert found == []
    for text in ("A.from_pretrained(x)", "f.from_config(c, trust_remote_code=True)", "m.generate(**kw)"):
        assert list(calls_without_the_word(ast.parse(text))), "the control"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, small_tokenizer_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("base") / "base"
    write_base(folder, small_tokenizer_dir)
    return folder


def on_a_terminal(commands: list[list[str]], *control: str) -> str:
    """What commands said on a terminal where everything is answered with `y`, and their exit codes."""
    [output], codes = finish(start_ranks("tests.support.planted_code", json.dumps(commands), *control, num_ranks=1))
    assert codes == [0], output
    return output


def test_no_verb_runs_the_code_of_a_base_that_transformers_knows(base: Path, tmp_path: Path) -> None:
    """From the base to an answer of the export, with code planted into each folder before a verb reads it."""
    marks, planted = tmp_path / "marks", tmp_path / "base"
    shutil.copytree(base, planted)
    plant_code(planted, marks)
    changes: dict[str, Any] = {"model__path": str(planted), "train__max_steps": 1, "model__max_length_tokens": 128}
    recipe = str(write_small_recipe(tmp_path, planted, **changes, train__pack_length_tokens=256))
    text = Path(recipe).read_text().replace(f"  tokenizer: {planted}\n", "")
    Path(recipe).write_text("\n".join(_without_config(text)) + "\n")
    run, export = str(tmp_path / "run"), tmp_path / "export"
    said = on_a_terminal([["check", recipe], ["plan", recipe], ["prepare", recipe, "--workers", "1"]])
    assert said.endswith("exit code 0\nexit code 0\nexit code 0\n"), said
    assert "configuration_planted.PlantedConfig" in said
    assert "which is never run" in " ".join(said.split()), "lines are as long as the terminal"
    ask = ["generate", str(export), "--prompt", "Hello", "--max-new-tokens", "2"]
    said = on_a_terminal([["train", recipe], ["export", run, "--out", str(export)], ask])
    assert said.endswith("exit code 0\nexit code 0\nexit code 0\n"), said
    assert "auto_map" not in (export / "config.json").read_text(encoding="utf-8")
    for folder in (tmp_path / "prepared" / "tokenizer", tmp_path / "run" / "tokenizer", export):
        plant_code(folder, marks)
    again = ["export", run, "--out", str(export), "--overwrite"]
    said = on_a_terminal([again, ask, ["train", recipe, "--resume", "never"]])
    assert said.endswith("exit code 2\nexit code 2\nexit code 2\n"), said
    assert said.count("names code of its own") == 1, said  # the export; the others are no longer what was written
    for folder in (tmp_path / "prepared" / "tokenizer", tmp_path / "run" / "tokenizer"):
        with pytest.raises(UserError, match="names code of its own"):
            load_tokenizer(folder)
    assert list(marks.iterdir()) == []


def _without_config(recipe: str) -> Iterator[str]:
    """The lines of a small recipe without `model.config`, in whose place `path` is."""
    inside = False
    for line in recipe.splitlines():
        inside = line == "  config:" or (inside and line.startswith("    "))
        if not inside:
            yield line


def test_no_verb_runs_the_code_of_a_model_type_that_only_the_code_knows(base: Path, tmp_path: Path) -> None:
    marks, planted = tmp_path / "marks", tmp_path / "base"
    shutil.copytree(base, planted)
    plant_code(planted, marks, model_type="planted")
    recipe = write_small_recipe(tmp_path, base, model__path=str(planted))
    recipe.write_text("\n".join(_without_config(recipe.read_text())) + "\n")
    prepare = ["prepare", str(recipe), "--workers", "1"]
    verbs = [["check", str(recipe)], ["plan", str(recipe)], prepare, ["train", str(recipe)]]
    said = on_a_terminal([*verbs, ["generate", str(planted), "--prompt", "Hello"]])
    assert said.endswith("exit code 2\nexit code 2\nexit code 0\nexit code 2\nexit code 2\n"), said
    assert " ".join(said.split()).count("exists only as Python code of that repository") >= 4
    assert list(marks.iterdir()) == []
    on_a_terminal([], str(planted))
    assert [mark.name for mark in marks.iterdir()] == [f"base-{MODULES[0]}"], "the control: `y` runs it"


def test_a_configuration_names_no_code_after_loading(base: Path, tmp_path: Path) -> None:
    """Neither classes of a repository nor kernels of one, so that no export asks for them."""
    values = json.loads((base / "config.json").read_text())
    planted = {"auto_map": {"AutoConfig": "a.B"}, "attn_implementation": "org/kernel", "_experts_implementation": "o/k"}
    (tmp_path / "config.json").write_text(json.dumps({**values, **planted}))
    for config in (
        load_config(tmp_path, revision=None, place="here"),
        config_of_values({**values, **planted}, place="here"),
        load_base_config(SimpleNamespace(config=None, path=str(tmp_path), revision=None), 0),  # type: ignore[arg-type]
    ):
        assert not hasattr(config, "auto_map")
        assert config._attn_implementation is None
        assert config._experts_implementation is None
    import transformers

    config = transformers.AutoConfig.for_model(**{**values, **planted})
    assert (config.auto_map, config._attn_implementation) == ({"AutoConfig": "a.B"}, "org/kernel"), "the control"
    assert without_code(config) is config


def test_a_dataset_script_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from data_pipeline.read.sources import chunks
    from data_pipeline.settings.sources import SourceSettings

    mark, folder = tmp_path / "ran", tmp_path / "org" / "scripted"
    folder.mkdir(parents=True)
    (folder / "scripted.py").write_text(f"open({str(mark)!r}, 'w').close()")
    monkeypatch.chdir(tmp_path)
    source = SourceSettings.model_validate(
        {"path": "hf://org/scripted", "format": "messages", "split": "train", "class": "a"}
    )
    with pytest.raises(UserError, match="`datasets` would read that instead"):
        list(chunks(source, where="data.sources.0"))
    assert not mark.exists()
