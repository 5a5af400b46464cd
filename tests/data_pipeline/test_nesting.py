"""How deeply a text is nested is counted: whether it is read does not depend on how deep the caller's own stack is."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_pipeline import nesting
from data_pipeline.errors import RowError, UserError
from data_pipeline.json_files import read_json, typed
from data_pipeline.prompt.base_template.sandbox import TemplateFault, compiled
from data_pipeline.read.file_kinds import _json_kind
from data_pipeline.read.json_documents import document_rows, parse_line
from data_pipeline.read.splits import card_subsets

NUM_CALLS = 600  # of 1,000 that Python allows


@pytest.fixture(autouse=True)
def usual_limit() -> Iterator[None]:
    """Hypothesis raises the limit of the process that it runs in."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(before)


def outcome(read: Callable[[], Any]) -> str:
    try:
        return f"read: {str(read())[:80]}"
    except (UserError, ValueError, TemplateFault, yaml.YAMLError, RecursionError) as error:
        return f"{type(error).__name__}: {str(error)[:200]}"


def outcome_below(num_calls: int, read: Callable[[], Any]) -> str:
    return outcome(read) if num_calls == 0 else outcome_below(num_calls - 1, read)


def lists(levels: int) -> str:
    return "[" * levels + "]" * levels


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def test_the_control_depends_on_the_stack() -> None:
    """Plain PyYAML, which reads 250 levels from a shallow stack and not from a deep one."""
    text = lists(250)
    assert outcome(lambda: yaml.safe_load(text)).startswith("read")
    assert outcome_below(NUM_CALLS, lambda: yaml.safe_load(text)).startswith("RecursionError")


READERS: dict[str, Callable[[Path, str], Any]] = {
    "loads": lambda folder, text: nesting.loads(text),
    "load_yaml": lambda folder, text: nesting.load_yaml(text),
    "read_json": lambda folder, text: read_json(folder / "file"),
    "typed": lambda folder, text: typed(list, nested(text.count("["))),
    "line": lambda folder, text: parse_line(text.encode()),
    "document": lambda folder, text: list(document_rows(f"[{text}]", folder, split=None)),
    "kind": lambda folder, text: _json_kind(text + "\n" + text, is_whole=True),
    "card": lambda folder, text: card_subsets(folder),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("levels", [90, 150, 400])
@pytest.mark.parametrize("end", ["", "}"], ids=["valid", "damaged"])
def test_the_outcome_does_not_depend_on_the_stack(name: str, levels: int, end: str, tmp_path: Path) -> None:
    if name == "typed" and end:
        return
    text = lists(levels)[: -1 if end else None] + end
    (tmp_path / "file").write_text(text)
    (tmp_path / "README.md").write_text(f"---\nconfigs: {text}\n---\n")

    def read() -> Any:
        return READERS[name](tmp_path, text)

    shallow = outcome(read)
    num_calls = NUM_CALLS if levels != 90 else 200  # 90 levels of YAML are read, so they need room
    assert outcome_below(num_calls, read) == shallow
    assert "RecursionError" not in shallow


@pytest.mark.parametrize(("levels", "is_read"), [(100, True), (101, False)])
def test_100_levels_are_read_and_not_one_more(levels: int, is_read: bool) -> None:
    text = '{"a": "[[[", "b": ' * (levels - 1) + "[]" + "}" * (levels - 1)
    for load in (nesting.loads, nesting.load_yaml):
        assert outcome(lambda load=load: load(text)).startswith(
            "read" if is_read else "ValueError: nested more than 100"
        )  # type: ignore[misc]
    assert nesting.is_text_too_deep(text) is not is_read
    assert nesting.end_of_value(text + "] [", 0) == len(text)
    assert nesting.end_of_value(text[:-1], 0) is None


def test_brackets_in_texts_are_no_levels() -> None:
    row = {"text": "[" * 5000, "more": '\\"' + "{" * 5000}
    assert nesting.loads(json.dumps(row)) == row
    assert not nesting.is_text_too_deep(json.dumps(row))
    assert not isinstance(parse_line(json.dumps(row).encode()), RowError)


TEMPLATES = {
    "parentheses": ("{{" + "(" * 20 + "a" + ")" * 20 + "}}", "{{" + "(" * 250 + "a" + ")" * 250 + "}}"),
    "conditions": ("{% if a %}" * 15 + "{% endif %}" * 15, "{% if a %}" * 99 + "{% endif %}" * 99),
    "loops": ("{% for b in a %}" * 15 + "{% endfor %}" * 15, "{% for b in a %}" * 21 + "{% endfor %}" * 21),
    "sums": ("{{" + "+".join("a" * 100) + "}}", "{{" + "+".join("a" * 300) + "}}"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_deeply_nested_chat_template_is_refused_at_every_stack(name: str) -> None:
    good, bad = TEMPLATES[name]
    for num_calls in (0, NUM_CALLS):
        compiled.cache_clear()
        assert outcome_below(num_calls, lambda: compiled(good)).startswith("read")
        assert outcome_below(num_calls, lambda: compiled(bad)) == "TemplateFault: it is nested too deeply"
