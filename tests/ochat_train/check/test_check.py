"""`ochat check` finds what would stop a run, runs every check even if one fails, and changes nothing."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from data_pipeline.errors import Problem, UserError, UserErrors
from ochat_train.check.check import AREAS, Area, check
from ochat_train.check.findings import Finding, from_error, ok, problem, run_checks, warning
from ochat_train.check.recipe_facts import RecipeFacts
from ochat_train.check.text import check_text
from ochat_train.check.versions import check_versions
from ochat_train.checkpoint.room import checkpoint_bytes, num_checkpoints
from ochat_train.cli.main import main
from ochat_train.hub.models import find_model
from ochat_train.model.proof.base import prove_base
from ochat_train.planning.steps import peak_learning_rate
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import prepare_recipe
from ochat_train.system.sizes import GIB
from tests.support.data import folder_state, without_hashes
from tests.support.doc_pages import first_column, section
from tests.support.prepared_faults import PREPARED_FAULTS
from tests.support.processes import ROOT
from tests.support.recipe_texts import changed, write
from tests.support.rows import conversations, write_jsonl
from tests.support.small_recipe import TINY_MODEL, RecipeFactory


def findings_of(path: Path, *overrides: str, gpus: int = 1, gpu_memory: float = 79.0) -> list[Finding]:
    return check(path, overrides, num_gpus=gpus, gpu_memory_gib=gpu_memory)


def area(findings: list[Finding], name: str) -> list[Finding]:
    return [finding for finding in findings if finding.area == name]


def problems(findings: list[Finding]) -> list[str]:
    return [f"{finding.area}: {finding.finding}" for finding in findings if finding.level == "problem"]


def only(findings: list[Finding], name: str, level: str) -> Finding:
    [finding] = [finding for finding in area(findings, name) if finding.level == level]
    return finding


# ---- the runner ----


def test_every_check_runs_even_if_an_earlier_one_fails() -> None:
    def missing() -> Iterator[Finding]:
        yield ok("a", "base", "seen before the error")
        raise UserError("base", "not there", "name another")

    def broken() -> Iterator[Finding]:
        yield from ()
        raise ZeroDivisionError("a defect")

    findings = run_checks([("a", missing), ("b", missing), ("c", broken), ("d", lambda: [warning("d", "x", "y")])])
    assert findings == [
        ok("a", "base", "seen before the error"),
        problem("a", "base", "not there", "name another"),
        ok("a", "base", "seen before the error"),
        warning("b", "", "not checked: see the problem of a"),
        problem("c", "", "the check itself failed: ZeroDivisionError: a defect", findings[4].remedy),
        warning("d", "x", "y"),
    ]


def test_every_problem_of_an_error_is_a_finding_with_its_own_remedy() -> None:
    found = [Problem(place="a:1", problem="wrong; very", remedy="fix; it"), Problem(place="b:2", problem="missing")]
    error = UserErrors("recipe.yaml", "2 problems", found)
    assert from_error("recipe", error, remedy="see the docs") == [
        problem("recipe", "a:1", "wrong; very", "fix; it"),
        problem("recipe", "b:2", "missing", "see the docs"),
    ]
    assert from_error("base", UserError("base", "is missing")) == [problem("base", "base", "is missing")]


@pytest.mark.parametrize("name", ["base", "sources"])
def test_a_check_that_crashes_is_a_problem_and_the_others_run(name: str, make_recipe: RecipeFactory) -> None:
    def crash(facts: RecipeFacts) -> list[Finding]:
        raise RuntimeError("boom")

    path = make_recipe()
    areas = [Area(name=name, check=crash) if area.name == name else area for area in AREAS]
    findings = check(path, (), num_gpus=1, gpu_memory_gib=79.0, areas=areas)
    assert problems(findings) == [f"{name}: the check itself failed: RuntimeError: boom"]
    assert [f for f in findings if f.area != name] == [f for f in findings_of(path) if f.area != name]


# ---- the command ----


def test_the_command_prints_lines_or_json_and_its_exit_code_says_whether_there_is_a_problem(
    make_recipe: RecipeFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_recipe()
    before = folder_state(path.parent)
    assert main(["check", str(path), "--gpus", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert folder_state(path.parent) == before
    assert (report["problems"], report["recipe"]) == (0, str(path))
    for finding in report["findings"]:
        assert list(finding) == ["level", "area", "finding", "remedy", "place", "problem", "seconds"]
        assert ("packs" in finding["seconds"]) == (finding["area"] == "base" and "packs are" in finding["problem"])
        assert finding["finding"] == ": ".join(filter(None, (finding["place"], finding["problem"])))
    text = section((ROOT / "docs" / "json-outputs.md").read_text(encoding="utf-8"), "`ochat check --json`")
    of_report, of_finding = text.split("Each finding:")
    assert first_column(of_report) == list(report)
    assert first_column(of_finding) == list(report["findings"][0])
    areas = {finding["area"] for finding in report["findings"]}
    assert {
        "recipe",
        "versions",
        "template",
        "base",
        "sources",
        "classes",
        "prepared",
        "memory",
        "disk",
        "gpu",
    } <= areas

    for memory in ("-5", "nan", "0", "inf"):
        with pytest.raises(SystemExit, match="2"):
            main(["check", str(path), "--gpu-memory", memory])
        assert "is not a number above 0" in capsys.readouterr().err
    assert main(["check", str(path), "--gpu-memory", "0.5"]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"ochat check: {path}: 1 problem\n"
    lines = captured.out.splitlines()
    assert any(line.startswith("problem  memory") for line in lines)
    heads = [line for line in lines if line and not line.startswith(" ")]
    assert all(line.split()[0] in ("ok", "warning", "problem", "->") for line in heads)


def test_the_page_lists_every_area() -> None:
    page = (ROOT / "docs" / "init-and-check.md").read_text(encoding="utf-8")
    areas = ["recipe", *(area.name for area in AREAS)]
    assert re.findall(r"^\| `([^`]+)` \|", page, flags=re.MULTILINE) == areas


def test_every_wrong_key_is_a_finding_and_the_machine_is_still_checked(tmp_path: Path) -> None:
    path = write(tmp_path, changed(("epochs: 5", "epoch: 5"), ("template: openchat_3.5", "template: openchat_35")))
    findings = findings_of(path)
    wrong = [finding for finding in area(findings, "recipe") if finding.level == "problem"]
    assert len(wrong) == 3
    by_key = {finding.place.partition(" ")[2]: finding for finding in wrong}
    assert all(finding.place.startswith(f"{path}:") for finding in wrong)
    assert by_key["train.epochs"].problem == "missing"
    assert by_key["train.epoch"].problem == "unknown key"
    assert by_key["train.epoch"].remedy == "did you mean `epochs`?"
    assert "did you mean `openchat_3.5`?" in by_key["model.template"].problem
    assert by_key["model.template"].remedy == "docs/recipe.md explains each key"
    assert area(findings, "versions")
    assert area(findings, "gpu")


def test_a_recipe_that_does_not_exist(tmp_path: Path) -> None:
    path = tmp_path / "no.yaml"
    assert problems(findings_of(path)) == [f"recipe: {path}: cannot be read: No such file or directory"]


# ---- data ----


def test_bad_rows_are_a_problem_or_a_warning_as_the_recipe_treats_them(make_recipe: RecipeFactory) -> None:
    path = make_recipe()
    with (path.parent / "expert.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"messages": []}\n')
    finding = only(findings_of(path), "sources", "problem")
    assert "25 of 25 rows looked at, 1 cannot be read (no_messages 1)" in finding.finding
    assert "expert.jsonl:25: messages: the list is empty" in finding.finding
    assert not problems(findings_of(path, "data.bad_rows=drop"))


def test_files_that_are_left_out_or_read_twice_are_warnings(make_recipe: RecipeFactory) -> None:
    path = make_recipe()
    raw = path.parent / "raw"
    raw.mkdir()
    (path.parent / "expert.jsonl").rename(raw / "expert.jsonl")
    sources = [f"data.sources.0.path={raw}"]
    assert [finding.level for finding in area(findings_of(path, *sources), "sources")] == ["ok"] * 2, "the control"
    (raw / "notes.txt").write_text("x")
    (raw / "more.jsonl").write_bytes((raw / "expert.jsonl").read_bytes())
    found = [finding for finding in area(findings_of(path, *sources), "sources") if finding.level == "warning"]
    assert [finding.place for finding in found] == ["data.sources.0", "data.sources.0"]
    assert found[0].problem == f"{raw}: left out notes.txt (not data)"
    assert found[1].problem == f"{raw}/more.jsonl holds the same as {raw}/expert.jsonl: its rows are read twice"


@pytest.mark.parametrize("template", ["openchat_3.5", "chatml"])
def test_long_conversations_are_counted_as_preparation_counts_them(template: str, make_recipe: RecipeFactory) -> None:
    path, changes = make_recipe(model__template=template), ("model.max_length_tokens=80", "data.overlong=drop")
    manifest, _ = prepare_recipe(load_recipe(path, changes), num_workers=1, progress=lambda rows: None)
    counted = [
        re.search(r", (\d+) \(.*\) are longer than", f.finding) for f in area(findings_of(path, *changes), "lengths")
    ]
    assert sum(int(found[1]) for found in counted if found) == manifest.ledger.dropped["overlong"] > 0


@pytest.mark.parametrize(
    ("limit", "overlong", "level", "text"),
    [
        (256, "error", "ok", "tokens, all fit into model.max_length_tokens 256"),
        (40, "truncate", "warning", "they keep their beginning (data.overlong: truncate)"),
        (40, "error", "problem", "data.overlong: error does not allow that"),
    ],
)
def test_a_finding_says_what_happens_to_long_conversations(
    limit: int, overlong: str, level: str, text: str, make_recipe: RecipeFactory
) -> None:
    findings = findings_of(make_recipe(), f"model.max_length_tokens={limit}", f"data.overlong={overlong}")
    assert [(finding.level, text in finding.finding) for finding in area(findings, "lengths")] == [(level, True)] * 2


def test_benchmarks_are_read(make_recipe: RecipeFactory) -> None:
    path = make_recipe()
    file = path.parent / "held_out.jsonl"
    write_jsonl(file, [{"question": f"{number}+1?", "answer": str(number + 1)} for number in range(3)])

    def sources(**values: object) -> list[str]:
        entry = json.dumps([{"suite": "held-out", "data": str(file), **values}])
        findings = area(findings_of(path, f"validation.benchmarks={entry}"), "sources")
        return [f"{f.level}: {f.finding}" for f in findings if f.place.startswith("validation.benchmarks")]

    [found] = sources(limit=2)
    assert found.startswith("ok: validation.benchmarks.0: held-out: 2 of 3 questions, under ")
    for wrong, said in ({"suite": "held-uot"}, "held-uot"), ({"conditions": ["GPT5"]}, "GPT5"), ({"data": "no"}, "no"):
        [found] = sources(**wrong)
        assert found.startswith("problem: validation.benchmarks.0")
        assert said in found


def test_questions_are_for_the_ablation_alone(make_recipe: RecipeFactory) -> None:
    path = make_recipe()
    questions = path.parent / "questions.jsonl"
    findings = findings_of(path, f"validation.questions={questions}")
    assert not problems(findings)
    assert "cannot be read" in only(findings, "sources", "warning").finding
    questions.write_text('{"question": "1+1?", "answer": "2"}\n', encoding="utf-8")
    assert f"{questions}: 1 questions" in [f.finding for f in findings_of(path, f"validation.questions={questions}")]


def test_duplicate_ids_in_a_source_are_bad_rows(make_recipe: RecipeFactory) -> None:
    path = make_recipe()
    write_jsonl(
        path.parent / "expert.jsonl", [{**row, "id": number // 2} for number, row in enumerate(conversations(6))]
    )
    assert "duplicate_id 3" in only(findings_of(path), "sources", "problem").finding


@pytest.mark.parametrize(
    ("content", "rule"),
    [(None, "no such file"), (b"", "holds no rows"), (b'{"text": "x"}\n', "cannot be read (missing_key 1)")],
)
def test_files_that_cannot_be_used(content: bytes | None, rule: str, make_recipe: RecipeFactory) -> None:
    path = make_recipe()
    file = path.parent / "expert.jsonl"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    [text] = problems(findings_of(path))
    assert rule in text
    assert "expert.jsonl" in text


def test_raw_files_are_not_needed_once_the_dataset_is_prepared(make_recipe: RecipeFactory) -> None:
    path = make_recipe()
    assert only(findings_of(path), "prepared", "warning").finding.endswith("not prepared yet")
    prepare_recipe(load_recipe(path), num_workers=1, progress=lambda rows: None)
    found = only(findings_of(path), "prepared", "ok").finding
    assert "train 60" in found
    assert re.search(r"\d+ files of 0\.\d\d GiB read in \d+\.\d s, all are as they were written", found)
    assert "from other settings" in only(findings_of(path, "data.overlong=drop"), "prepared", "warning").finding
    (path.parent / "expert.jsonl").unlink()
    findings = findings_of(path)
    assert not problems(findings)
    finding = only(findings, "sources", "warning")
    assert "no such file" in finding.problem
    assert finding.problem.endswith("; not needed, as the dataset is prepared already")


def test_prepared_data_that_has_changed_is_a_problem(make_recipe: RecipeFactory) -> None:
    """Also if a start would not read it, because its hash is remembered."""
    path = make_recipe()
    prepare_recipe(load_recipe(path), num_workers=1, progress=lambda rows: None)
    for name, (fault, file) in PREPARED_FAULTS.items():
        if name in ("flipped bit in the rows", "truncated rows", "edited condition"):
            copy = shutil.copytree(path.parent / "prepared", path.parent / name)
            fault(copy)
            finding = only(findings_of(path, f"data.prepared_dir={copy}"), "prepared", "problem")
            assert (finding.place, finding.remedy) == (str(copy / file), "run `ochat prepare` again")
    copy = shutil.copytree(path.parent / "prepared", path.parent / "old")
    without_hashes(copy)
    assert "not verified" in only(findings_of(path, f"data.prepared_dir={copy}"), "prepared", "warning").finding


def test_unused_classes_and_unknown_classes(make_recipe: RecipeFactory) -> None:
    path = make_recipe()
    findings = findings_of(path, "data.classes.third={condition: GPT3, reward: 0.5}")
    texts = [finding.finding for finding in area(findings, "classes") if finding.level == "warning"]
    assert texts[0].startswith("data.classes: suboptimal and third share the condition 'GPT3'")
    assert texts[1] == "data.classes.third: no source has this class"
    rows = [{**row, "kind": ["expert", "other"][number % 2]} for number, row in enumerate(conversations(10))]
    write_jsonl(path.parent / "expert.jsonl", rows)
    source = f"data.sources=[{{path: {path.parent / 'expert.jsonl'}, format: messages, class_field: kind}}]"
    findings = findings_of(path, source)
    assert "unknown_class 5" in only(findings, "sources", "problem").finding
    texts = [finding.finding for finding in area(findings, "classes") if finding.level == "warning"]
    assert texts[0] == "data.classes.suboptimal: no conversation in the rows looked at"


# ---- tokenizer and base ----


def test_control_tokens_and_beginning_of_sequence_are_named(make_recipe: RecipeFactory) -> None:
    path = make_recipe()
    text = only(findings_of(path), "template", "ok").finding
    assert "<|end_of_turn|> will be added" in text
    assert "begin with <s>" in text
    prepare_recipe(load_recipe(path), num_workers=1, progress=lambda rows: None)
    text = only(
        findings_of(path, f"model.tokenizer={path.parent / 'prepared' / 'tokenizer'}"), "template", "ok"
    ).finding
    assert "the tokenizer has the control tokens <|end_of_turn|>" in text


def test_a_missing_tokenizer_hides_nothing_else(make_recipe: RecipeFactory, tmp_path: Path) -> None:
    findings = findings_of(make_recipe(model__tokenizer=str(tmp_path / "nowhere")))
    assert [text.partition(":")[0] for text in problems(findings)] == ["template"]
    assert only(findings, "prepared", "warning").finding == "not checked: see the problem of template"
    assert all(finding.level == "ok" for finding in area(findings, "sources"))


def base_folder(folder: Path, tokenizer_dir: Path, **config: Any) -> Path:
    """A base with random weights and the small tokenizer."""
    model_config = transformers.AutoConfig.for_model(**{**TINY_MODEL, "vocab_size": 400, **config})
    transformers.AutoModelForCausalLM.from_config(model_config).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_dir / file, folder / file)
    return folder


def test_a_base_in_a_folder_needs_safetensors(
    make_recipe: RecipeFactory, tmp_path: Path, small_tokenizer_dir: Path
) -> None:
    num_tokens = len(transformers.AutoTokenizer.from_pretrained(small_tokenizer_dir))
    base = base_folder(tmp_path / "base", small_tokenizer_dir, vocab_size=num_tokens)
    path = make_recipe(model={"path": str(base), "template": "openchat_3.5", "max_length_tokens": 256})
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    count = (
        sum(parameter.numel() for parameter in model.parameters()) + 2 * TINY_MODEL["hidden_size"]
    )  # <|end_of_turn|>
    assert f"MistralForCausalLM, 2 layers, {count:,} parameters" in only(findings_of(path), "base", "ok").finding
    (base / "model.safetensors").unlink()
    assert problems(findings_of(path)) == [f"weights: {base}: has no safetensors files, the only kind that is loaded"]


@pytest.mark.parametrize(
    ("config", "rule"),
    [
        ({**TINY_MODEL, "model_type": "gemma2"}, "Gemma2Model of `transformers` cannot run on a pack"),  # no window
        ({"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4}, "takes no `position_ids`"),
        ({**TINY_MODEL, "model_type": "nemotron"}, "does not pass `cu_seqlens`"),
        (
            {"model_type": "falcon", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
            "packs would mix",
        ),
        ({**TINY_MODEL, "max_position_embeddings": 128}, "max_position_embeddings 128"),
        ({"model_type": "no-such-model"}, "model.config"),
    ],
)
def test_bases_that_would_be_computed_wrongly(config: dict[str, Any], rule: str, make_recipe: RecipeFactory) -> None:
    findings = findings_of(make_recipe(model__config=config))
    assert rule in only(findings, "base", "problem").finding
    assert all(finding.level == "ok" for finding in area(findings, "sources"))


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({**TINY_MODEL, "model_type": "gemma2", "sliding_window": 8}, "Gemma2ForCausalLM"),  # soft caps
        ({**TINY_MODEL, "model_type": "phi"}, "PhiForCausalLM"),  # a head with a bias
        ({"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}, "GPT2LMHeadModel"),
        ({**TINY_MODEL, "model_type": "gpt_oss", "num_local_experts": 4, "sliding_window": 8}, "GptOssForCausalLM"),
    ],
)
def test_bases_of_other_kinds(config: dict[str, Any], name: str, make_recipe: RecipeFactory) -> None:
    assert f"{name}, 2 layers" in only(findings_of(make_recipe(model__config=config)), "base", "ok").finding


def test_it_is_said_which_rule_gives_the_learning_rate(make_recipe: RecipeFactory) -> None:
    path = make_recipe(optimizer={})
    assert only(findings_of(path), "learning rate", "ok").problem == (
        "auto, 4.472e-06 (OpenChat's rule for Mistral: 3e-4 / 6; steps of at most 1,024 tokens count as 32,000, where "
        "the rule ends)"
    )
    path = make_recipe(optimizer={}, train__tokens_per_step=64_000)
    assert only(findings_of(path), "learning rate", "ok").problem == (
        "auto, 4.47e-06 to 6.32e-06: `ochat prepare` counts the supervised tokens, which decide; OpenChat's rule for "
        "Mistral: 3e-4 / 6 * sqrt(supervised tokens per step / 4e6)"
    )
    path = make_recipe(optimizer={}, train__tokens_per_step=2**26)
    assert "to 7.24e-05: `ochat prepare` counts" in only(findings_of(path), "learning rate", "ok").problem
    qwen = {**{k: v for k, v in TINY_MODEL.items() if k != "sliding_window"}, "model_type": "qwen2"}
    path = make_recipe(model__config=qwen, optimizer={})
    width = f"rule by width for Qwen2, Qwen2.5 and Qwen3: 5e-5 * 4096 / {TINY_MODEL['hidden_size']}; steps"
    assert width in only(findings_of(path), "learning rate", "ok").finding


def test_a_prepared_dataset_decides_the_learning_rate_as_in_a_run(make_recipe: RecipeFactory) -> None:
    """Its supervised tokens are counted, and not all tokens of a step."""
    recipe = load_recipe(path := make_recipe(optimizer={}, train__tokens_per_step=2**18))
    manifest, _ = prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
    counts = manifest.splits["train"]
    expected = 3e-4 / 6 * math.sqrt(2**18 * counts.supervised_tokens / counts.tokens / 4e6)
    areas = [area for area in AREAS if area.name == "learning rate"]
    [_, found] = check(path, (), num_gpus=1, gpu_memory_gib=79.0, areas=areas)
    assert found.problem == f"auto, {expected:.4g} (OpenChat's rule for Mistral: 3e-4 / 6)"
    assert f"{expected:.4g}" == f"{peak_learning_rate(recipe, manifest).value:.4g}"
    assert counts.supervised_tokens < 0.9 * counts.tokens, "the control: all tokens would give another rate"


# ---- memory and disk ----


def test_packs_that_the_gpus_cannot_share_evenly(make_recipe: RecipeFactory) -> None:
    path = make_recipe()  # 4 packs of 256 a step
    finding = only(findings_of(path, gpus=3), "memory", "warning")
    assert "4 packs a step on 3 GPU(s): 2 packs of every step stay empty" in finding.finding
    assert finding.remedy == "for example train.tokens_per_step: 1536"
    assert not [f for f in area(findings_of(path, gpus=4), "memory") if f.level != "ok"]
    findings = findings_of(path, "train.packs_per_micro_batch=3")
    assert "3 does not divide the 4 packs" in only(findings, "memory", "problem").finding


def test_a_file_in_the_place_of_the_run_folder(make_recipe: RecipeFactory) -> None:
    path = make_recipe()
    assert f"disk: {path}: {path} is a file" in problems(findings_of(path, f"output_dir={path}"))


def test_disk_counts_checkpoints_and_the_export(make_recipe: RecipeFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_recipe(checkpoint={"save_every_steps": 2, "keep_last": 3}, deepspeed={"zero_stage": 2})
    parameters = RecipeFacts(recipe=load_recipe(path), num_gpus=2, gpu_memory_gib=79.0).num_parameters
    margin = 2 * 2**20
    needed = 4 * (parameters * 14 + margin) + 2 * parameters
    prepared = 2 * sum((path.parent / name).stat().st_size for name in ("expert.jsonl", "suboptimal.jsonl"))

    def disk(free: float) -> Callable[[Path], Any]:
        return lambda folder: type("Usage", (), {"free": free})

    monkeypatch.setattr(shutil, "disk_usage", disk(needed + prepared))
    assert only(findings_of(path, gpus=2), "disk", "ok")
    monkeypatch.setattr(shutil, "disk_usage", disk(needed + prepared - 1))
    finding = only(findings_of(path, gpus=2), "disk", "problem")
    assert "4 checkpoint(s)" in finding.finding


def test_existing_checkpoints_need_no_more_space(make_recipe: RecipeFactory) -> None:
    path = make_recipe(checkpoint={"save_every_steps": 2, "keep_last": 3})
    before = only(findings_of(path), "disk", "ok").finding
    parameters = RecipeFacts(recipe=load_recipe(path), num_gpus=1, gpu_memory_gib=79.0).num_parameters
    size = checkpoint_bytes(parameters, zero_stage=2, bfloat16=True, num_ranks=1)
    folder = path.parent / "run" / "checkpoints" / "step-2"
    folder.mkdir(parents=True)
    (folder / "state").write_bytes(bytes(size))
    left = path.parent / ".prepared.tmp-99999999"  # more than an id of a process can be
    left.mkdir()
    (left.parent / f".prepared.tmp-{os.getppid()}").mkdir()  # the control: it runs
    after = only(findings_of(path), "disk", "ok").finding
    assert only(findings_of(path), "disk", "warning") == warning(
        "disk", left, "0.0 MiB: process 99999999 was killed while it wrote prepared", "remove it"
    )
    assert f"4 checkpoint(s) {4 * size / 2**20:.1f} MiB" in before
    assert f"4 checkpoint(s) {3 * size / 2**20:.1f} MiB" in after


def test_a_run_has_no_more_checkpoints_than_it_saves(make_recipe: RecipeFactory) -> None:
    recipe = load_recipe(make_recipe(checkpoint={"save_every_steps": 10, "keep_last": 2}, data__validation_ratio=0.1))
    assert [num_checkpoints(recipe, num_steps=steps) for steps in (None, 5, 11, 35, 1000)] == [4, 1, 2, 4, 4]
    at_end = load_recipe(make_recipe())
    assert num_checkpoints(at_end, num_steps=None) == 1


def test_a_checkpoint_holds_moments_masters_and_weights() -> None:
    sizes = {
        (stage, bfloat16): checkpoint_bytes(10, zero_stage=stage, bfloat16=bfloat16, num_ranks=0)
        for stage in (0, 2, 3)
        for bfloat16 in (True, False)
    }
    moments, masters = 80, 40  # of ten parameters: two float32 AdamW moments each, and a float32 copy
    assert sizes == {
        (0, True): moments + masters + 20,
        (0, False): moments + 40,
        (2, True): moments + masters + 20,
        (2, False): moments + masters + 40,
        (3, True): moments + masters,
        (3, False): moments + masters,
    }


# ---- versions and GPUs ----


def test_floors_come_from_the_packages_own_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {finding.level for finding in check_versions()} == {"ok"}
    needs = ["torch>=99", "no-such-package>=1", "numpy>=1", 'torchao>=99; extra == "gpu"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: needs)
    found = [(f.finding, f.remedy) for f in check_versions()]
    torch_version = importlib.metadata.version("torch")
    assert found == [
        (f"torch: {torch_version}, but >=99 is needed", 'pip install "torch>=99"'),
        ("no-such-package: not installed, but >=1 is needed", 'pip install "no-such-package>=1"'),
    ]


def test_without_a_gpu_it_says_what_the_gpu_host_decides(
    make_recipe: RecipeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = make_recipe()
    finding = only(findings_of(path), "gpu", "warning")
    assert "no GPU on this machine" in finding.finding
    assert "varlen" in finding.finding
    wanted = findings_of(path, "model.attention=flash_attention_3")
    assert any("flash_attn_3 is not installed" in f.finding for f in area(wanted, "gpu"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    findings = findings_of(path, "model.float8=true", "model.compile=false", "model.config.intermediate_size=40")
    found = [f for f in area(findings, "gpu") if f.level == "problem"]
    assert {f.place for f in found} == {"model.float8"}
    rules = [f.problem.removeprefix("true cannot be used: ") for f in found]
    assert [rule.partition(" is ")[0].partition(":")[0] for rule in rules] == [
        "the package torchao",
        "it needs model.compile",
        "weights must be multiples of 16; one of the model's",
    ]


# ---- the Hub ----


class FakeHub(BaseHTTPRequestHandler):
    """Answers as the Hub does: one open model, a gated one, and errors with the Hub's own codes."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/org/open"):
            files = ["config.json", "tokenizer.json", *([] if "open-bin" in path else ["model.safetensors"])]
            return self._answer(
                200, {"id": "org/open", "gated": False, "siblings": [{"rfilename": name} for name in files]}
            )
        if path == "/api/whoami-v2":
            role = {"Bearer hf_read": "read", "Bearer hf_write": "write"}.get(self.headers.get("Authorization", ""))
            user = {"name": "somebody", "auth": {"accessToken": {"role": role}}}
            return self._answer(200, user) if role else self._answer(401, {"error": "Invalid token"})
        if path.endswith("/auth-check"):
            return self._answer(403, {"error": "gated"}, code="GatedRepo")
        if path.startswith("/api/models/org/gated"):
            return self._answer(
                200, {"id": "org/gated", "gated": "manual", "siblings": [{"rfilename": "model.safetensors"}]}
            )
        return self._answer(404, {"error": "not found"}, code="RepoNotFound")

    def _answer(self, status: int, document: dict[str, Any], code: str = "") -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def cache_model(folder: Path, name: str, *files: str) -> None:
    snapshot = folder / f"models--{name.replace('/', '--')}" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in files:
        (snapshot / file).write_text("{}", encoding="utf-8")
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc", encoding="utf-8")


def test_what_the_hub_answers_about_a_base(fake_hub: None) -> None:
    found = find_model("org/open", None, with_weights=True)
    assert (found.is_reachable, found.is_cached) == (True, False)
    for name, rule in (
        ("org/gated", "accept its licence"),
        ("org/none", "not on the Hub"),
        ("org/open-bin", "no safetensors"),
    ):
        with pytest.raises(UserError, match=rule):
            find_model(name, None, with_weights=True)


def test_without_the_hub_the_cache_must_hold_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        find_model("org/whole", None, with_weights=True)
    cache_model(tmp_path, "org/whole", "config.json", "model.safetensors")
    assert find_model("org/whole", None, with_weights=True).is_cached
    cache_model(tmp_path, "org/half", "config.json", "model-1.safetensors")
    index = tmp_path / "models--org--half/snapshots/abc/model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}), encoding="utf-8"
    )
    with pytest.raises(UserError, match="does not have all of its files"):
        find_model("org/half", None, with_weights=True)
    (index.parent / "model-2.safetensors").touch()
    assert not find_model("org/half", None, with_weights=True).is_reachable


def test_a_hub_that_does_not_answer_is_one_problem(
    make_recipe: RecipeFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # the discard port: refused at once
    path = make_recipe(model={"path": "org/base", "template": "openchat_3.5", "max_length_tokens": 256})
    findings = findings_of(path)
    assert [text.partition(" (")[0] for text in problems(findings)] == ["hub: org/base: the Hub cannot be reached"]
    hidden = {f.area for f in findings if f.finding == "not checked: see the problem of hub"}
    assert hidden == {"template", "base", "weights", "rows", "lengths", "prepared", "memory", "disk"}
    assert all(finding.level == "ok" for finding in area(findings, "sources"))


def test_a_gpu_of_this_machine_is_the_default(make_recipe: RecipeFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    properties = type("Properties", (), {"name": "GPU", "total_memory": 40 * GIB, "major": 8, "minor": 0})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    path = make_recipe()
    config = transformers.AutoConfig.for_model(**TINY_MODEL)
    proven = prove_base(config, load_recipe(path).model, device=torch.device("cpu"))
    monkeypatch.setattr(
        "ochat_train.check.recipe_facts.prove_base", lambda *_, device: replace(proven, kernel=f"of {device}")
    )
    findings = check(path, (), num_gpus=None, gpu_memory_gib=None)
    assert "2 GPU(s) of 40 GiB" in only(findings, "memory", "ok").finding
    assert [f.finding for f in area(findings, "gpu")][:2] == [
        f"GPU {n}: GPU, 40 GiB, compute capability 8.0" for n in (0, 1)
    ]
    assert "attention: of cuda:0" in area(findings, "gpu")[2].finding


def test_three_rows_are_shown_as_they_will_be_trained_on(make_recipe: RecipeFactory, tmp_path: Path) -> None:
    """With the conditions of their classes, and what a mark leaves out."""
    turns = [("user", "Hi there"), ("assistant", "Wrong."), ("user", "Again"), ("assistant", "Right.")]
    messages = [{"role": role, "content": text, "train": text == "Right."} for role, text in turns]
    path = make_recipe()
    (tmp_path / "expert.jsonl").write_text(json.dumps({"talk": messages}) + "\n", encoding="utf-8")
    named = ["data.sources.0.format=messages", "data.sources.0.fields={messages: talk}"]
    [shown, *_] = [finding.finding for finding in findings_of(path, *named) if finding.area == "rows"]
    assert "{GPT4 Correct User:} Hi there«<|end_of_turn|>»{GPT4 Correct Assistant:} Wrong.«<|end_of_turn|>»" in shown
    assert "{GPT4 Correct Assistant:}[1| Right.«<|end_of_turn|>»]" in shown
    assert shown.count("[1|") == 1
    [auto, *_] = [f for f in findings_of(path, "data.sources.0.format=messages") if f.area == "sources"]
    assert (auto.level, "`messages` is missing" in auto.finding) == ("problem", True)  # the control


def test_fields_that_nothing_reads_are_a_problem(make_recipe: RecipeFactory, tmp_path: Path) -> None:
    path = make_recipe()
    file = tmp_path / "expert.jsonl"
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    file.write_text("".join(json.dumps({**row, "note": "Said on a sunny day."}) + "\n" for row in rows), "utf-8")
    [found, *_] = [finding for finding in findings_of(path) if finding.area == "sources"]
    assert (found.level, "the field `note` holds text" in found.finding) == ("problem", True)
    ignored = findings_of(path, "data.ignore_fields=[note, nota]")
    [found, *_] = [finding for finding in ignored if finding.area == "sources"]
    assert found.level == "ok"
    assert [f.finding for f in ignored if "has `nota`" in f.finding and f.level == "warning"] != []


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_gets_short_lines_and_rows_as_they_are(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal)
    monkeypatch.setenv("COLUMNS", "80")
    said, row = " ".join(["word"] * 40), "two  spaces " * 20
    lines = check_text([warning("disk", "/x", said, said), ok("rows", "r.jsonl", row)]).split("\n")
    assert (max(map(len, lines[:-1])) <= 80) == is_terminal
    assert " ".join(" ".join(lines[:-1]).split()) == f"warning disk /x: {said} -> {said}"
    assert lines[-1].endswith(row)
