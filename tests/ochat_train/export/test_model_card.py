"""README.md of an export: it has the run's figures, and nothing from data becomes metadata or markup."""

from __future__ import annotations

import ast
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from ochat_train.cli.main import main
from ochat_train.evaluation.condition_matrix import ConditionMatrix
from ochat_train.evaluation.results import ClassScores, Evaluation, Validation
from ochat_train.evaluation.verdict import Learnt
from ochat_train.export.card import CardFacts, json_code, last_until, model_card, python_literal
from ochat_train.export.provenance import BaseModel, find_base_model
from ochat_train.export.public_recipe import public_recipe
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import prepare_recipe
from ochat_train.recipe.recipe import Recipe
from ochat_train.recipe.sections.model import ModelSettings
from ochat_train.runs.base_origin import BaseOrigin, base_origin
from ochat_train.runs.folder import BASE_FILE, RunFolder, read_run_folder, write_run_folder
from ochat_train.system import exits
from tests.support.hub import client_of
from tests.support.results import step_metrics
from tests.support.small_recipe import RecipeFactory

NASTY = (
    "a|b `c` \\| **d** <script>alert(1)</script> [e](http://f) ```\n# g\n---\nlicense: mit\n"
    '\u2028\u202e\U000e0041 {{h}} "i"\''
)
CLASSES = {NASTY: {"condition": "GPT4 Correct", "weight": 1.0}, "suboptimal": {"condition": NASTY, "weight": 0.1}}
KNOWN = BaseModel(name="org/base", hub_id="org/base", license="apache-2.0")
SCORES = ClassScores(loss=1.2, nll=1.2111, accuracy=0.6123, conversations=29, supervised_tokens=290)
LEARNT = Learnt(
    condition="GPT4 Correct",
    nearest=NASTY,
    margin=0.1111,
    low=0.0999,
    high=0.1222,
    smallest=0.01,
    verdict="yes",
    conversations=19,
)
VALIDATION = Validation(
    step=30,
    seconds=1.0,
    evaluation=Evaluation(
        loss=1.5,
        classes=dict.fromkeys(CLASSES, SCORES),
        matrix=ConditionMatrix(
            conditions=["GPT4 Correct", NASTY],
            nll={NASTY: [1.2345, 1.3456], "suboptimal": [1.4567, None]},
            learnt={NASTY: LEARNT},
        ),
    ),
)


class NoModel:
    """The model of a run folder whose weights do not matter."""

    class config:
        @staticmethod
        def save_pretrained(folder: Path) -> None:
            folder.mkdir()

    generation_config = None


@pytest.fixture
def run(tmp_path: Path, make_recipe: RecipeFactory) -> RunFolder:
    raw = str(tmp_path / "expert.jsonl")
    sources = [{"path": raw, "format": "messages", "class": name} for name in CLASSES]
    recipe = load_recipe(make_recipe(data__classes=CLASSES, data__sources=sources, data__beta=None))
    manifest, _ = prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
    (tmp_path / "run").mkdir()
    write_run_folder(tmp_path / "run", recipe, NoModel)
    return RunFolder(path=tmp_path / "run", recipe=recipe, prepared=manifest)


def card_of(run: RunFolder, *, base: BaseModel = KNOWN, **changes: Any) -> str:
    recipe = run.recipe.model_dump(mode="json", by_alias=True)
    for source in recipe["data"]["sources"]:
        source["path"] = NASTY
    facts: dict[str, Any] = {
        "step": 30,
        "metrics": step_metrics(30, loss=2.3456, accuracy=0.4321),
        "validation": VALIDATION,
        "versions": {"torch": "2"},
    }
    return model_card(CardFacts(run=run, base=base, recipe=recipe, **{**facts, **changes}))


def tokens_of(card: str) -> list[Token]:
    """The card's text as a Markdown parser reads it, inline parts included."""
    body = card.split("---\n", 2)[2]
    return [
        part
        for token in MarkdownIt("commonmark").enable("table").parse(body)
        for part in (token, *(token.children or []))
    ]


def tables_of(card: str) -> dict[str, list[list[str]]]:
    """Heading -> rows of the table under it, as the contents of the cells."""
    tables: dict[str, list[list[str]]] = {}
    heading = ""
    tokens = MarkdownIt("commonmark").enable("table").parse(card.split("---\n", 2)[2])
    for before, token in pairwise(tokens):
        if before.type == "heading_open":
            heading = token.content
        elif before.type == "tr_open":
            tables.setdefault(heading, []).append([])
        elif before.type in ("td_open", "th_open"):
            tables[heading][-1].append("".join(part.content for part in token.children or []))
    return tables


def test_nothing_from_data_becomes_markup(run: RunFolder) -> None:
    card = card_of(run)
    tokens = tokens_of(card)
    assert {token.type for token in tokens} & {"html_block", "html_inline", "image", "hr"} == set()
    headings = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    assert headings == [
        "small",
        "How to prompt it",
        "Classes",
        "Results",
        "Training data",
        "Settings",
        "Versions",
    ]
    links = {token.attrs["href"] for token in tokens if token.type == "link_open"}
    assert links == {"https://huggingface.co/org/base", "https://arxiv.org/abs/2309.11235"}
    assert len([token for token in tokens if token.type == "fence"]) == 1
    assert all(character.isprintable() or character == "\n" for character in card)
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "apache-2.0"


def test_names_and_conditions_can_be_read_back(run: RunFolder) -> None:
    """Each code span is a JSON string of the text."""
    head, *rows = tables_of(card_of(run))["Classes"]
    assert head[:2] == ["class", "condition"]
    assert [[json.loads(cell) for cell in row[:2]] for row in rows] == [[NASTY, "GPT4 Correct"], ["suboptimal", NASTY]]


@pytest.mark.parametrize(
    "text", ["", " ", "`", "``", "|", "\\", "\\|", "a\n\nb", "\x00", "\ud800", "🙂", "é|`", "&amp;", '"']
)
def test_a_code_span_gives_the_text_back(text: str) -> None:
    table = f"| a | b |\n| --- | --- |\n| {json_code(text)} | end |\n"
    tokens = MarkdownIt("commonmark").enable("table").parse(table)
    cells = [token for token in tokens if token.type == "inline"][2:]
    [code] = cells[0].children or []
    assert code.type == "code_inline"
    assert json.loads(code.content) == text
    assert cells[1].content == "end"


@pytest.mark.parametrize(
    "text", ["", "`", "\\", "a\n\nb\t", "\x00\x1f\x7f", "\ud800", "🙂é", "\"'", "\U000e0041\U0010ffff", "\u2028"]
)
def test_python_reads_a_literal_as_the_text(text: str) -> None:
    literal = python_literal(text)
    assert ast.literal_eval(literal) == text
    assert literal.isprintable()
    assert "`" not in literal


def test_the_example_runs_with_every_condition(run: RunFolder) -> None:
    [code] = [token.content for token in tokens_of(card_of(run)) if token.type == "fence"]
    [condition] = [
        statement.value.value
        for statement in ast.parse(code).body
        if isinstance(statement, ast.Assign)
        and isinstance(statement.targets[0], ast.Name)
        and statement.targets[0].id == "condition"
        and isinstance(statement.value, ast.Constant)
    ]
    [comment] = re.findall(r"# or (.*)", code)
    assert {condition, ast.literal_eval(comment)} == {"GPT4 Correct", NASTY}


def test_figures(run: RunFolder) -> None:
    tables = tables_of(card_of(run))
    classes = {json.loads(row[0]): row for row in tables["Classes"][1:]}
    for row in run.prepared.classes:
        numbers = (row.conversations, round(row.effective_conversations), row.tokens, row.supervised_tokens)
        assert classes[row.name][3:7] == [f"{number:,}" for number in numbers]
    assert [row[1:5] for row in tables["Results"][1:]] == [
        ["1.2111", "61.2%", "1.2345", "1.3456"],
        ["1.2111", "61.2%", "1.4567", "-"],
    ]
    assert tables["Results"][1][5].startswith("yes: 0.1111 [0.0999, 0.1222] nats/token over ")
    assert "its nll is of 29 held-out conversations, its row of the matrix of 19 of them" in card_of(run)
    assert tables["Results"][2][5] == "not measured"
    data = dict(tables["Training data"][1:])
    ledger = run.prepared.ledger
    assert (data["read"], data["kept"]) == (f"{ledger.read:,}", f"{ledger.kept:,}")
    assert dict(tables["Versions"][1:]) == {"torch": "2"}
    assert dict(tables["Settings"][1:])["optimizer.betas"] == "[0.9, 0.95]"


def test_without_figures(run: RunFolder) -> None:
    card = card_of(run, metrics=None, validation=None)
    assert "nothing was validated" in card
    assert "after step 30." in card


def test_the_last_rows_up_to_the_exported_step() -> None:
    logged = [step_metrics(step) for step in (1, 3, 5)]
    assert [last_until(step, logged) for step in (0, 3, 4, 9)] == [None, logged[1], logged[1], logged[2]]


# ---- base model and licence ----


def metadata_of(card: str) -> dict[str, Any]:
    metadata: dict[str, Any] = huggingface_hub.ModelCard(card).data.to_dict()
    return metadata


def test_metadata(run: RunFolder) -> None:
    assert metadata_of(card_of(run)) == {
        "base_model": "org/base",
        "base_model_relation": "finetune",
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["ochat-train", "c-rlft", "conversational"],
    }


def test_an_unknown_licence_is_said_and_none_is_invented(run: RunFolder) -> None:
    card = card_of(run, base=BaseModel(name=NASTY, why_unknown="it is lost"))
    assert metadata_of(card)["license"] == "other"
    assert "base_model" not in metadata_of(card)
    assert "> **Licence: unknown**, because it is lost. " in card


def base(path: str | None, **settings: Any) -> BaseModel:
    given = {"path": path} if path else {"config": {"model_type": "mistral"}, "tokenizer": "t"}
    model = ModelSettings(template="openchat_3.5", max_length_tokens=8, **given, **settings)
    return find_base_model(model, base_origin(model))


def test_the_licence_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    assert base(str(folder)) == BaseModel(name="base", why_unknown="the base model's card in its folder names none")
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: l2\nlicense_link: LICENSE\n---\n")
    assert base(str(folder)) == BaseModel(name="base", license="other", license_name="l2", license_link="LICENSE")
    for unreadable in ("---\n: [\n---\n", "---\nlicense: [mit]\n---\n", "---\nlicense: 7\n---\n", "no metadata"):
        (folder / "README.md").write_text(unreadable)
        assert base(str(folder)).license is None
        assert base(str(folder)).why_unknown is not None


def test_the_licence_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with client_of(tmp_path / "hub", monkeypatch) as hub:
        hub.make_repo("lab/base", private=False)
        assert base("lab/base").why_unknown == "the base model's card on the Hub names none"
        hub.put("lab/base", {"README.md": b"---\nlicense: llama3\n---\n"})
        assert base("lab/base") == BaseModel(name="lab/base", hub_id="lab/base", license="llama3")
        assert base("lab/none").hub_id is None
        assert base("lab/none").why_unknown is not None


def test_the_licence_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--lab--base" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "models--lab--base" / "refs").mkdir()
    (tmp_path / "models--lab--base" / "refs" / "main").write_text("a" * 40)
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert base("lab/base").hub_id == "lab/base"
    assert base("lab/base").license is None
    (snapshot / "README.md").write_text("---\nlicense: mit\n---\n")
    assert base("lab/base").license == "mit"


def test_a_model_from_random_weights_and_a_folder_that_is_gone() -> None:
    assert base(None).name is None
    gone = ModelSettings(path="/gone/for/good", template="openchat_3.5", max_length_tokens=8)
    for origin in (None, BaseOrigin(folder="/gone/for/good")):
        lost = find_base_model(gone, origin)
        assert (lost.name, lost.hub_id, lost.why_unknown) == (
            "good",
            None,
            "the folder of the base model no longer exists",
        )


def run_on_base(tmp_path: Path, make_recipe: RecipeFactory, path: str, **model: Any) -> RunFolder:
    """A run folder whose recipe names a base; the prepared data are those of a model from scratch."""
    recipe = load_recipe(make_recipe())
    prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
    named = ModelSettings(path=path, template=recipe.model.template, max_length_tokens=8, **model)
    (tmp_path / "run").mkdir(exist_ok=True)
    write_run_folder(tmp_path / "run", recipe.model_copy(update={"model": named}), NoModel)
    return read_run_folder(tmp_path / "run")


def test_a_base_from_a_folder_is_never_looked_up_on_the_hub(
    tmp_path: Path, make_recipe: RecipeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "mistral").mkdir(parents=True)
    (tmp_path / "models" / "mistral" / "README.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.chdir(tmp_path)
    run = run_on_base(tmp_path, make_recipe, "models/mistral")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with client_of(tmp_path / "hub", monkeypatch) as hub:
        hub.make_repo("models/mistral", private=False)
        hub.put("models/mistral", {"README.md": b"---\nlicense: llama3\n---\n"})
        assert find_base_model(run.recipe.model, run.base_origin) == BaseModel(name="mistral", license="mit")
        (tmp_path / "models").rename(tmp_path / "gone")
        lost = find_base_model(run.recipe.model, run.base_origin)
        assert (lost.name, lost.hub_id, lost.license) == ("mistral", None, None)

        (run.path / BASE_FILE).unlink()  # as an earlier version left it
        run = read_run_folder(run.path)
        lost = find_base_model(run.recipe.model, run.base_origin)
        assert (lost.hub_id, lost.license) == (None, None)
        assert "did not record" in str(lost.why_unknown)


def test_a_base_from_the_hub_stays_one_although_such_a_folder_is_here_now(
    tmp_path: Path, make_recipe: RecipeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = run_on_base(tmp_path, make_recipe, "lab/base", revision="v2")
    assert run.base_origin == BaseOrigin(hub_id="lab/base", revision="v2")
    (tmp_path / "lab" / "base").mkdir(parents=True)
    with client_of(tmp_path / "hub", monkeypatch) as hub:
        hub.make_repo("lab/base", private=False)
        hub.put("lab/base", {"README.md": b"---\nlicense: llama3\n---\n"})
        expected = BaseModel(name="lab/base", hub_id="lab/base", license="llama3")
        assert find_base_model(run.recipe.model, BaseOrigin(hub_id="lab/base")) == expected


@pytest.mark.parametrize("below", ["", "below"])
def test_an_export_never_goes_into_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], below: str) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    assert main(["export", str(tmp_path), "--out", str(file / below), "--overwrite"]) == exits.USER_ERROR
    assert f"{file} is a file" in capsys.readouterr().err
    assert file.read_text() == "mine"


# ---- the recipe in ochat.json ----


@pytest.mark.parametrize("folder", ["/private/deep", "~/private", "../private", "private", "./private/deep"])
def test_folders_are_not_published_and_nothing_else_is_changed(folder: str, make_recipe: RecipeFactory) -> None:
    other = folder.replace("~", "/home/me")  # only keys that hold a path may begin with `~`
    sources = [
        {"path": f"{folder}/x*.jsonl", "format": "messages", "class": "expert"},
        {"path": "hf://org/set", "format": "messages", "class": "suboptimal"},
    ]
    raw = {"flops_profiler": {"enabled": False, "output_file": f"{other}/profile.txt"}, "wandb": {"team": "private"}}
    recipe = load_recipe(
        make_recipe(
            output_dir=f"{folder}/run",
            data__prepared_dir=f"{folder}/prepared",
            data__sources=sources,
            deepspeed__config=raw,
            model__tokenizer=f"{folder}/gone/tokenizer",
            validation__questions=f"{folder}/questions.jsonl",
            model__config={"model_type": "mistral", "_name_or_path": f"{other}/gone/base"},
            validation__prompts=["/start: and/or?"],
            tracking__wandb_entity="private",
        )
    )
    public = public_recipe(recipe)
    assert "private" not in json.dumps(public).replace("hub_private", "")
    assert [source["path"] for source in public["data"]["sources"]] == ["x*.jsonl", "hf://org/set"]
    assert public["deepspeed"]["config"] == {"flops_profiler": {"enabled": False, "output_file": "profile.txt"}}
    assert (public["model"]["tokenizer"], public["validation"]["questions"]) == ("tokenizer", "questions.jsonl")
    assert public["validation"]["prompts"] == ["/start: and/or?"]
    assert public["train"] == recipe.train.model_dump(mode="json")


def test_hub_ids_are_published_whole(make_recipe: RecipeFactory) -> None:
    recipe = load_recipe(make_recipe(model__path="org/base", model__config=None, model__tokenizer="org/tokenizer"))
    model = public_recipe(recipe)["model"]
    assert (model["path"], model["tokenizer"]) == ("org/base", "org/tokenizer")


def test_every_section_is_public_or_known_not_to_be(make_recipe: RecipeFactory) -> None:
    assert Recipe.model_fields.keys() - public_recipe(load_recipe(make_recipe())).keys() == {"output_dir", "tracking"}
