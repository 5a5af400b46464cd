"""Dockerfile, compose.yaml and docs/serving.md agree with the versions, options and time limits of the code."""

from __future__ import annotations

import re
import shlex
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from ochat_train.cli.main import VERBS
from ochat_train.cli.parser import parse
from ochat_train.serving.settings import Limits
from tests.support.doc_pages import blocks
from tests.support.processes import ROOT

PAGE = ROOT / "docs" / "serving.md"
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = (ROOT / "compose.yaml").read_text(encoding="utf-8")


def dockerfile_problems(text: str, ignored: str) -> list[str]:
    """What must not be in a Dockerfile of this project. ignored: the text of .dockerignore."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    found = []
    for command in re.findall(r"pip install ([^&\n]*)", "\n".join(lines)):
        pins = [word for word in shlex.split(command) if not word.startswith("-")]
        if "--constraint constraints.txt" not in command and not all("==" in word for word in pins):
            found.append(f"not pinned: pip install {command.strip()}")
    if re.search(r"^ARG PYTHON_IMAGE=python:3\.1[123]\.\d+-slim-\w+$", text, re.MULTILINE) is None:
        found.append("the image of Python is not pinned, or of another version than `launch.sh` takes")
    stages = re.split(r"^FROM .*$", "\n".join(lines), flags=re.MULTILINE)[1:]
    users = [re.findall(r"^USER (\S+)$", stage, re.MULTILINE) for stage in stages]
    if any(stage and stage[-1] in ("0", "root") for stage in users) or not users[0]:
        found.append("a stage ends as root")
    if re.search(r"^(ADD|ENV .*(KEY|TOKEN|SECRET))", text, re.MULTILINE):
        found.append("ADD, or a secret in the environment")
    kept = [line.removeprefix("!") for line in ignored.splitlines() if line.startswith("!")]
    for words in re.findall(r"^COPY (.*)$", "\n".join(lines), re.MULTILINE):
        for source in words.split()[:-1]:
            if not (ROOT / source).exists() or not any(fnmatch(source, name) for name in kept):
                found.append(f"COPY {source}: does not exist, or .dockerignore hides it")
    return found


def test_the_image_is_pinned_and_not_root() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    assert dockerfile_problems(DOCKERFILE, ignored) == []
    assert "*" in ignored.splitlines()
    for name in ("data_pipeline", "ochat_train", "pyproject.toml", "constraints.txt"):  # what setuptools needs
        assert name in re.sub(r"\\\n", "", DOCKERFILE).split()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--constraint constraints.txt ", ""),
        ("vllm==0.26.0", "vllm"),
        ("python:3.12.11-slim-bookworm", "python:latest"),
        ("python:3.12.11-slim-bookworm", "python:3.14.1-slim-bookworm"),
        ("USER 10001\n# `ochat", "# `ochat"),
        ("COPY ochat_train ochat_train", "COPY runs runs"),
        ("ENV PATH", "ENV API_KEY=x PATH"),
    ],
)
def test_a_worse_image_is_found(old: str, new: str) -> None:
    assert old in DOCKERFILE
    changed = DOCKERFILE.replace(old, new)
    assert dockerfile_problems(changed, (ROOT / ".dockerignore").read_text(encoding="utf-8"))


def test_one_version_of_vllm_everywhere() -> None:
    page = PAGE.read_text(encoding="utf-8")
    found = [
        *re.findall(r"vllm==([\d.]+\d)", DOCKERFILE),
        *re.findall(r"vllm-openai:v([\d.]+\d)", COMPOSE),
        *re.findall(r"vllm==([\d.]+\d)", page),
    ]
    assert len(found) == 3
    assert len(set(found)) == 1


def test_the_compose_file_starts_what_exists() -> None:
    services = yaml.safe_load(COMPOSE)["services"]
    options = parse(VERBS, services["server"]["command"])
    assert (options.host, options.backend) == ("0.0.0.0", "http://vllm:8000")
    assert options.api_keys_file == Path("/run/secrets/api_keys")  # other machines need keys
    assert services["server"]["ports"] == [f"127.0.0.1:{options.port}:{options.port}"]
    assert "ports" not in services["vllm"]
    assert seconds(services["server"]["stop_grace_period"]) > Limits().drain_seconds
    [exports] = {str(one["volumes"]) for one in services.values()}  # both have the same model
    assert exports.endswith(":ro']")


def test_the_unit_waits_for_running_answers() -> None:
    unit = example("ini")
    assert f"TimeoutStopSec={60}" in unit
    assert Limits().drain_seconds < 60
    assert "KillMode=mixed" in unit  # otherwise vLLM gets the signal also, and cuts answers off
    found = re.search(r"^ExecStart=\S+/ochat (.*)$", unit, re.MULTILINE)
    assert found is not None
    assert parse(VERBS, shlex.split(found[1])).api_keys_file == Path("/etc/ochat/keys")
    assert "RestartPreventExitStatus=2" in unit


def test_the_proxy_is_more_patient_than_the_server() -> None:
    site = example("nginx")
    assert seconds(value_of(site, "proxy_read_timeout")) > Limits().request_seconds
    assert int(value_of(site, "client_max_body_size").removesuffix("m")) * 2**20 > Limits().max_body_bytes
    assert value_of(site, "proxy_buffering") == "off"
    assert value_of(site, "proxy_pass").endswith(f":{parse(VERBS, ['serve', 'export']).port}")


def test_the_page_names_every_metric_and_field_of_the_log() -> None:
    from dataclasses import fields

    from ochat_train.serving.metrics import ServerMetrics
    from ochat_train.serving.request_log import RequestRecord

    page = PAGE.read_text(encoding="utf-8")
    for name in re.findall(r"^# TYPE (ochat_\w+) (?!.*created)", ServerMetrics().text().decode(), re.MULTILINE):
        if not name.endswith("_created"):
            assert f"`{name}`" in page, name
    optional = {"error", "texts"}
    line = yaml.safe_load(example("json"))
    assert line.keys() == {field.name for field in fields(RequestRecord)} - optional


def example(language: str) -> str:
    [text] = [block.text for block in blocks(PAGE) if block.language == language]
    return text


def value_of(text: str, name: str) -> str:
    found = re.search(rf"^\s*{name}\s+([^;]+);", text, re.MULTILINE)
    assert found is not None
    return found[1]


def seconds(text: Any) -> float:
    return float(str(text).removesuffix("s"))
