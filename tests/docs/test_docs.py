"""The documentation says what the code does: generated pages are up to date, and rows, reports and names in it are
real.
"""

from __future__ import annotations

import ast
import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from pydantic import BaseModel

from data_pipeline.conversation import Message
from data_pipeline.formats.known_keys import HARMLESS_KEYS
from data_pipeline.formats.marks import MARKS, ROW_MARKS
from data_pipeline.formats.table import FORMATS, TEXT_FORMATS
from data_pipeline.prompt.template import AnswerTurn, Template
from data_pipeline.prompt.templates import TEMPLATES
from data_pipeline.read.rows import RowReader, parse_row
from data_pipeline.settings.sources import SourceSettings
from ochat_train.cli.main import main
from ochat_train.planning.learning_rate import auto_adapter_rate
from ochat_train.planning.published_rates import PUBLISHED_ADAPTER_RATES
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.recipe import Recipe
from ochat_train.recipe.schema import schema_file
from ochat_train.recipe.sections.train import TrainSettings
from ochat_train.recipe.strict_yaml import parse
from ochat_train.recipe.template_file import load_template
from ochat_train.system import exits
from tests.support.doc_pages import first_column, section
from tests.support.processes import ROOT
from tests.support.small_recipe import RecipeFactory

DOCS = ROOT / "docs"
RECIPE_PAGE = (DOCS / "recipe.md").read_text(encoding="utf-8")
FORMATS_PAGE = (DOCS / "data_formats.md").read_text(encoding="utf-8")
PREPARED_PAGE = (DOCS / "prepared-data.md").read_text(encoding="utf-8")
REWARDS_PAGE = (DOCS / "rewards.md").read_text(encoding="utf-8")
JSON_PAGE = (DOCS / "json-outputs.md").read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The fenced examples of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


# ---- docs/recipe.md and docs/recipe.schema.json ----


def test_the_recipe_reference_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(DOCS / "generate_recipe_reference.py"), run_name="__main__")
    remedy = "run `python docs/generate_recipe_reference.py > docs/recipe.md`"
    assert capsys.readouterr().out == RECIPE_PAGE, remedy


def test_the_schema_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    remedy = "run `ochat schema > docs/recipe.schema.json; cp docs/recipe.schema.json ochat_train/recipe`"
    printed = capsys.readouterr().out
    assert printed == (DOCS / "recipe.schema.json").read_text(encoding="utf-8"), remedy
    assert printed == schema_file("recipe").read_text(encoding="utf-8"), remedy
    assert main(["schema", "--template"]) == 0
    remedy = "run `ochat schema --template > ochat_train/recipe/template.schema.json`"
    assert capsys.readouterr().out == schema_file("template").read_text(encoding="utf-8"), remedy


def sections_of(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, list[str]]]:
    """(heading, keys) of a section and of the sections inside it, read from the JSON schema."""
    schema = model.model_json_schema(by_alias=True)

    def walk(node: dict[str, Any], path: str) -> Iterator[tuple[str, list[str]]]:
        yield path, list(node["properties"])
        for key, inner in node["properties"].items():
            for place, suffix in (
                (inner, ""),
                (inner.get("items"), ".N"),
                (inner.get("additionalProperties"), ".NAME"),
            ):
                if isinstance(place, dict) and "anyOf" in place:  # a section that may be left out
                    place = place["anyOf"][0]
                if isinstance(place, dict) and "$ref" in place:
                    target = schema["$defs"][place["$ref"].split("/")[-1]]
                    yield from walk(target, f"{path}.{key}{suffix}".lstrip("."))

    yield from walk(schema, path)


def test_the_reference_has_every_key_of_the_schema() -> None:
    sections = dict(sections_of(Recipe))
    assert {"", "data", "data.classes.NAME", "data.sources.N", "data.classes_from", "tracking"} <= set(sections)
    for path, keys in sections.items():
        assert first_column(section(RECIPE_PAGE, f"`{path}`" if path else "Top level")) == keys
        if path:
            assert re.search(rf"^#+ `{re.escape(path)}`$", RECIPE_PAGE, flags=re.MULTILINE)


def test_the_command_line_reference_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(DOCS / "generate_cli_reference.py"), run_name="__main__")
    remedy = "run `python docs/generate_cli_reference.py > docs/command-line.md`"
    assert capsys.readouterr().out == (DOCS / "command-line.md").read_text(encoding="utf-8"), remedy


def test_the_page_on_bases_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(DOCS / "generate_bases.py"), run_name="__main__")
    remedy = "run `python docs/generate_bases.py > docs/bases.md`"
    assert capsys.readouterr().out == (DOCS / "bases.md").read_text(encoding="utf-8"), remedy


def test_the_page_on_adapters_says_what_the_memory_plan_says() -> None:
    generator = runpy.run_path(str(DOCS / "generate_gpu_choices.py"))
    page = (DOCS / "adapters.md").read_text(encoding="utf-8")
    remedy = "run `python docs/generate_gpu_choices.py --write`"
    assert generator["page_with"](generator["tables"]()) == page, remedy
    assert generator["page_with"]("another table") != page, "the control"
    [values] = [base.values for base in generator["BASES"] if base.title == "7B (Mistral-7B)"]
    [qlora] = [way for way in generator["WAYS"] if way.short == "QLoRA"]
    model = generator["model_without_weights"](transformers.AutoConfig.for_model(**values))
    planned = generator["cell"](model, qlora, generator["Gpus"](title="12 GB", number=1, memory_gib=11.6))
    assert f"on 12 GB: {planned}." in (ROOT / "recipes" / "mistral_7b_qlora.yaml").read_text(encoding="utf-8")


def test_the_first_real_run_says_what_is_planned() -> None:
    """Its numbers are those of docs/adapters.md, which the memory plan makes."""
    rows = section((DOCS / "adapters.md").read_text(encoding="utf-8"), "7B (Mistral-7B), 7.24 billion parameters")
    ways = {"LoRA": "{type: lora}", "all weights, 8-bit states": "`optimizer.states: 8bit`"}
    columns = {"24 GB": 1, "48 GB": 2, "80 GB": 3}
    page = (DOCS / "first-real-run.md").read_text(encoding="utf-8")
    said = re.findall(r"^\| (\d+ GB) \| (.+?) \| (.+?) \|", page, flags=re.MULTILINE)
    assert [memory for memory, *_ in said] == ["24 GB", "48 GB", "80 GB", "80 GB"]
    for memory, way, planned in said:
        [row] = [line for line in rows.splitlines() if ways[way.partition(", which")[0]] in line]
        assert row.split("|")[columns[memory] + 1].strip() == planned, f"{memory}, {way}"


def test_recipes_of_adapters_say_what_is_planned() -> None:
    page = (DOCS / "adapters.md").read_text(encoding="utf-8")
    rows = section(page, "7B (Mistral-7B), 7.24 billion parameters")
    for name, memory, column in (("lora", "24 GB", 1), ("lora", "80 GB", 3), ("qlora", "24 GB", 1)):
        [row] = [line for line in rows.splitlines() if line.startswith(f"| `adapter: {{type: {name}}}` |")]
        planned = row.split("|")[column + 1].strip()
        recipe = (ROOT / "recipes" / f"mistral_7b_{name}.yaml").read_text(encoding="utf-8")
        assert f"on {memory}: {planned}" in recipe


def test_the_page_on_adapters_shows_published_rates() -> None:
    page = (DOCS / "adapters.md").read_text(encoding="utf-8")
    for row in PUBLISHED_ADAPTER_RATES:
        rule = auto_adapter_rate(model_type="", hidden_size=row.hidden_size).value
        numbers = f"{row.conversations} | {row.rate:.3g} | {rule:.2g} | {row.rate / rule:.2g}"
        assert f"| {row.base} | {row.hidden_size:,} | {numbers} | {row.source} |" in page


def test_the_page_on_bases_shows_every_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    versions = {"torch": "2.13.0", "transformers": "5.23.0"}
    right = {"base": "llama", "verdict": "right", "error": 2.9e-7, "control": 1.5e-2, "why": None, "versions": versions}
    refused = {**right, "base": "mpt", "verdict": "refused", "error": None, "control": None, "why": "a | b"}
    results = tmp_path / "bases.json"
    generator = runpy.run_path(str(DOCS / "generate_bases.py"))
    monkeypatch.setitem(generator["page"].__globals__, "RESULTS", results)
    assert "No results are committed" in generator["page"]()
    results.write_text(json.dumps([right, refused]), encoding="utf-8")
    text = generator["page"]()
    assert "2 configurations: 1 right, 1 refused. With torch 2.13.0, transformers 5.23.0." in text
    assert "| `llama` | `sdpa` | right | 2.9e-07 | 1.5e-02 | |" in text
    assert "| `mpt` | `sdpa` | refused | | | a \\| b |" in text


def test_the_command_line_reference_names_every_exit_code() -> None:
    codes = {value for name, value in vars(exits).items() if name.isupper()} - {exits.BUG}
    [sentence] = re.findall(
        r"^- Exit code .*?\(", (DOCS / "command-line.md").read_text(encoding="utf-8"), flags=re.M | re.S
    )
    assert set(map(int, re.findall(r"\d+", sentence))) == codes


def test_the_recipe_in_the_reference_loads(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(blocks(RECIPE_PAGE, "yaml")[0], encoding="utf-8")
    assert load_recipe(path).name == "my_run"


def test_the_set_examples_work(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(blocks(RECIPE_PAGE, "yaml")[0], encoding="utf-8")
    overrides = [
        quoted or plain for quoted, plain in re.findall(r"--set (?:'([^']+)'|(\S+))", blocks(RECIPE_PAGE, "bash")[0])
    ]
    assert len(overrides) == 4
    recipe = load_recipe(path, overrides)
    assert (recipe.train.epochs, recipe.optimizer.learning_rate, recipe.optimizer.betas) == (1, 2e-5, [0.9, 0.98])


# ---- docs/data_formats.md, prepared-data.md, rewards.md ----

USER = Message(role="user", content="What is 6 times 7?")
ANSWER = Message(role="assistant", content="42.")


# format -> system text, messages, condition of the example on the page
def said(prompt: str, answer: str) -> tuple[Message, Message]:
    return Message(role="user", content=prompt), Message(role="assistant", content=answer)


SEVERAL: dict[str, tuple[dict[str, Any], list[str]]] = {
    "preference": ({"answer_classes": {"chosen": "expert", "rejected": "expert"}}, ["42.", "41."]),
    "ranked": ({"class": "expert"}, ["42.", "41."]),
}
EXAMPLES: dict[str, tuple[str, tuple[Message, ...], str | None]] = {
    "sharegpt": ("Answer briefly.", (USER, ANSWER), None),
    "messages": ("Answer briefly.", (USER, ANSWER), None),
    "alpaca": (
        "",
        (
            Message(role="user", content="Hello"),
            Message(role="assistant", content="Hi. What can I do for you?"),
            Message(role="user", content="Add the numbers.\n\n6 and 7"),
            Message(role="assistant", content="13"),
        ),
        None,
    ),
    "turns": ("", (USER, ANSWER, *said("And 6 times 8?", "48.")), None),
    "prompt_answer": ("", (USER, ANSWER), None),
    "openchat": (
        "",
        (Message(role="user", content=USER.content, weight=0.0), Message(role="assistant", content="42.", weight=1.0)),
        "GPT4",
    ),
}


def source(layout: str, **changes: Any) -> SourceSettings:
    return SourceSettings.model_validate({"path": "a.jsonl", "format": layout, **changes})


def example_row(heading: str, page: str = FORMATS_PAGE) -> Any:
    [block] = blocks(section(page, heading), "json")
    return json.loads(block)


def test_every_format_has_a_section_and_every_text_format_its_example() -> None:
    assert all(re.search(rf"^### `{name}`$", FORMATS_PAGE, flags=re.MULTILINE) for name in FORMATS)
    assert {*EXAMPLES, *SEVERAL} == set(TEXT_FORMATS)
    for name in TEXT_FORMATS:
        assert example_row(f"`{name}`") == FORMATS[name].example


@pytest.mark.parametrize("layout", SEVERAL)
def test_the_example_rows_with_several_answers_are_read_as_the_page_says(layout: str) -> None:
    more, answers = SEVERAL[layout]
    found = RowReader(source(layout, **more))(example_row(f"`{layout}`"), "a.jsonl:1")
    assert [conversation.messages for conversation in found] == [said(USER.content, answer) for answer in answers]


@pytest.mark.parametrize("layout", EXAMPLES)
def test_the_example_rows_are_read_as_the_page_says(layout: str) -> None:
    system, messages, condition = EXAMPLES[layout]
    classes = {} if condition else {"class": "expert"}
    conversation = parse_row(example_row(f"`{layout}`"), place="a.jsonl:1", source=source(layout, **classes))
    assert (conversation.system, conversation.messages, conversation.condition) == (system, messages, condition)
    assert conversation.id == ("abc_0" if layout == "sharegpt" else "a.jsonl:1")


def test_an_openchat_row_with_a_class_keeps_only_masks() -> None:
    row = example_row("`openchat`")
    conversation = parse_row(row, place="a.jsonl:1", source=source("openchat", **{"class": "expert"}))
    assert conversation.condition is None
    assert [message.weight for message in conversation.messages] == [0.0, None]


def test_the_example_with_weights() -> None:
    row = example_row("Weights of single messages")
    conversation = parse_row(row, place="a.jsonl:1", source=source("messages", **{"class": "expert"}))
    assert [message.weight for message in conversation.messages] == [None, 0.0, None, None]


def test_the_examples_with_parts() -> None:
    described = source("messages", **{"class": "expert"})
    stretches = parse_row(example_row("Weights of stretches of a text"), place="a.jsonl:1", source=described)
    assert [(span.text, span.weight) for span in stretches.messages[1].spans] == [
        ("6 times 7 is ", 1.0),
        ("41, no, ", 0.0),
        ("42.", 2.0),
    ]
    parts = parse_row(example_row("Reasoning and tools"), place="a.jsonl:1", source=described)
    assert parts.tools
    assert [message.role for message in parts.messages] == ["user", "assistant", "tool", "assistant"]
    assert (parts.messages[1].reasoning, parts.messages[1].tool_calls[0].name) == ("I can multiply.", "times")
    assert parts.messages[2].tool_call_id == "1"


def test_the_page_lists_the_roles_of_sharegpt() -> None:
    table = section(FORMATS_PAGE, "`sharegpt`")
    rows = dict(re.findall(r"^\| (`.+`) \| (user|assistant|system)", table, flags=re.MULTILINE))
    for names, role in rows.items():
        for name in re.findall(r"`(\w+)`", names):
            turns = [{"from": name, "value": "x"}, {"from": "gpt", "value": "y"}]
            conversation = parse_row(
                {"conversations": turns}, place="p", source=source("sharegpt", **{"class": "expert"})
            )
            assert conversation.system == ("x" if role == "system" else "")
            assert [message.role for message in conversation.messages] == [
                *([role] if role != "system" else []),
                "assistant",
            ]


def test_the_page_lists_the_keys_that_need_not_be_read_and_the_marks() -> None:
    table = section(PREPARED_PAGE, "Fields that are not read")
    rows = dict(re.findall(r"^\| ([a-z][^|`]*) \| (`.+`) \|$", table, flags=re.MULTILINE))
    assert {kind: re.findall(r"`([^`]+)`", keys) for kind, keys in rows.items()} == {
        kind: keys.split() for kind, keys in HARMLESS_KEYS.items()
    }
    marks = section(FORMATS_PAGE, "Weights of single messages")
    cells = re.findall(r"^\| (`.+?`) \| (?:message|row)", marks, flags=re.MULTILINE)
    assert {*MARKS, *ROW_MARKS} == {name for cell in cells for name in re.findall(r"[a-z_]+", cell)}


def reasons_in(code: str) -> Iterator[str]:
    """The texts that calls of `RowError` and of a ledger's `drop` may be given first."""
    for call in ast.walk(ast.parse(code)):
        if isinstance(call, ast.Call) and ast.unparse(call.func).split(".")[-1] in ("RowError", "drop") and call.args:
            yield from (
                n.value for n in ast.walk(call.args[0]) if isinstance(n, ast.Constant) and isinstance(n.value, str)
            )


def test_the_page_lists_every_reason_for_a_bad_row() -> None:
    reasons = {
        reason for path in (ROOT / "data_pipeline").rglob("*.py") for reason in reasons_in(path.read_text("utf-8"))
    }
    dropped_by_rule = {"overlong", "no_supervised_token", "other_class"}
    assert dropped_by_rule < reasons
    assert set(first_column(section(PREPARED_PAGE, "Bad rows"))) == reasons - dropped_by_rule
    for reason in dropped_by_rule:
        page, heading = (REWARDS_PAGE, "Classes") if reason == "other_class" else (PREPARED_PAGE, "Long conversations")
        assert f"`{reason}`" in section(page, heading)


def test_the_yaml_on_the_pages_is_part_of_a_recipe(tmp_path: Path) -> None:
    sources, fields, pairs, part_weights, ignored, classes, rewards, quantiles = (
        parse(block, name="page").value["data"]
        for page in (FORMATS_PAGE, PREPARED_PAGE, REWARDS_PAGE)
        for block in blocks(page, "yaml")
    )
    recipe = parse(blocks(RECIPE_PAGE, "yaml")[0], name="page").value
    for replaced in (rewards, quantiles):
        path = tmp_path / "scored.yaml"
        path.write_text(json.dumps({**recipe, "data": {"prepared_dir": "data/scored", **replaced}}), encoding="utf-8")
        load_recipe(path)
    path = tmp_path / "recipe.yaml"
    for described in (sources, fields, pairs):
        data = {**recipe["data"], **described, **classes, **part_weights, **ignored}
        path.write_text(json.dumps({**recipe, "data": data}), encoding="utf-8")
        assert len(load_recipe(path).data.sources) == len(described["sources"])
    chat = example_row("Other keys: `fields`")
    named = SourceSettings.model_validate({"class": "expert", **fields["sources"][0]})
    conversation = parse_row(chat, place="a.jsonl:1", source=named)
    assert (conversation.messages, conversation.id) == ((USER, ANSWER), "5")


def test_the_prepared_folder_and_its_report_look_as_the_page_says(
    make_recipe: RecipeFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe(data__validation_ratio=0.2, model__max_length_tokens=100, train__pack_length_tokens=256)
    with (tmp_path / "expert.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"messages": []}\n')
    assert main(["prepare", str(recipe), "--workers", "1", "--set", "data.bad_rows=drop", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    example = example_row("`ochat prepare --json`", JSON_PAGE)

    assert list(report) == list(example) == first_column(section(JSON_PAGE, "`ochat prepare --json`"))
    for key in ("conversations", "splits"):
        assert list(report[key]) == list(example[key])
    assert list(report["splits"]["train"]) == list(example["splits"]["train"])
    assert list(report["classes"][0]) == list(example["classes"][0])
    for account in (report["conversations"], example["conversations"]):
        assert account["read"] == account["kept"] + sum(account["dropped"].values())
    assert report["conversations"]["dropped"] == {"no_messages": 1}

    prepared = tmp_path / "prepared"
    tree = section(PREPARED_PAGE, "The prepared folder")
    assert {entry.name for entry in prepared.iterdir()} == set(re.findall(r"^    ([\w.]+)", tree, flags=re.MULTILINE))
    info = json.loads((prepared / "train" / "dataset_info.json").read_text(encoding="utf-8"))
    assert list(info["features"]) == first_column(tree)


# ---- docs/own-template.md ----


def test_the_page_lists_every_template_with_its_condition() -> None:
    page = (DOCS / "own-template.md").read_text(encoding="utf-8")
    first, vendors = (part for part in re.split(r"^\| `model.template` ", page, flags=re.MULTILINE)[1:3])
    rows = re.findall(r"^\| `([^`]+)` \| [^|]+ \| (.+) \|$", first, flags=re.MULTILINE)
    shown = re.findall(r"^\| `([^`]+)` \| (\w+) \| (\w+) \| (\w+) \|", vendors, flags=re.MULTILINE)
    says = {True: "yes", False: "no"}
    assert dict(rows) == {
        name: f"`{TEMPLATES[name].inference_condition}`" if TEMPLATES[name].inference_condition else "none"
        for name, _ in rows
    }
    assert {name: parts for name, *parts in shown} == {
        name: [says[template.shows_system], says[template.reasoning is not None], says[template.tools is not None]]
        for name, template in TEMPLATES.items()
        if name not in dict(rows)
    }
    assert not any(TEMPLATES[name].inference_condition for name, *_ in shown)


def test_the_template_of_the_page_is_one(tmp_path: Path) -> None:
    block = blocks(section((DOCS / "own-template.md").read_text(encoding="utf-8"), "A template file"), "yaml")[1]
    path = tmp_path / "mine.yaml"
    path.write_text(block, encoding="utf-8")
    template = load_template(path)
    assert (template.name, template.end_of_turn, template.after_turn) == ("mine", "<|end|>", "\n")
    page = section((DOCS / "own-template.md").read_text(encoding="utf-8"), "A template file")
    for key in (*Template.model_fields, *AnswerTurn.model_fields):
        assert f"`{key}" in page, key


# ---- docs/correctness.md and docs/reliability.md ----


def test_every_test_that_the_page_on_correctness_names_exists() -> None:
    page = (DOCS / "correctness.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+\.py)`(?:: `(\w+)`)?", page)
    assert len(named) > 20
    for file, part in named:
        [path] = ROOT.glob(f"tests/**/{file}")
        tests = re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert [test for test in tests if part in test], (file, part)


def test_the_page_on_reliability_knows_every_exit_code_and_limit() -> None:
    page = (DOCS / "reliability.md").read_text(encoding="utf-8")
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", page, flags=re.MULTILINE)}
    assert codes == {value for name, value in vars(exits).items() if name.isupper()}
    defaults = TrainSettings(epochs=1, pack_length_tokens=1, tokens_per_step=1)
    assert f"`train.hang_timeout_seconds` ({defaults.hang_timeout_seconds:,.0f} unless" in page
    assert f"`train.max_nonfinite_steps` ({defaults.max_nonfinite_steps})" in page
