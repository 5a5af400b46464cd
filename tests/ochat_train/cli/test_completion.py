"""`ochat completion`: the real shells are asked, with lines that end where the cursor would be."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ochat_train.cli.main import VERBS, main

ZSH_STUBS = """
compdef() { :; }
_describe() { local name=${@[-1]}; local entry; for entry in ${(P)name}; do
  entry=${entry%%:*}; [[ $entry == $PREFIX* ]] && print -r -- $entry; done; true }
compadd() { local found=; local word; for word in "$@"; do
  [[ -n $found && $word == $PREFIX* ]] && print -r -- $word; [[ $word == -- ]] && found=1; done; true }
_files() { print -r -- FILES; }
"""


def bash(script: Path, words: list[str]) -> str:
    return f"""source {script}
COMP_WORDS=({" ".join(f"'{word}'" for word in words)}) COMP_CWORD={len(words) - 1}
compopt() {{ :; }}
_ochat
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def zsh(script: Path, words: list[str]) -> str:
    quoted = " ".join(f"'{word}'" for word in words)
    return f"{ZSH_STUBS}\nsource {script}\nwords=({quoted}) CURRENT={len(words)} PREFIX='{words[-1]}'\n_ochat\n"


def fish(script: Path, words: list[str]) -> str:
    return f"source {script}; complete -C '{' '.join(words)}'"


SHELLS: dict[str, Callable[[Path, list[str]], str]] = {"bash": bash, "zsh": zsh, "fish": fish}


@pytest.fixture(params=SHELLS)
def offered(
    request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], list[str]]:
    """What a shell offers for a line."""
    name = request.param
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    assert main(["completion", name]) == 0
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out, encoding="utf-8")

    def ask(line: str) -> list[str]:
        flags = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[name]
        command = [name, *flags, "-c", SHELLS[name](script, line.split(" "))]
        process = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, timeout=120)
        assert process.stderr == ""
        return [word.partition("\t")[0] for word in process.stdout.split("\n") if word]

    return ask


def test_verbs_flags_choices_and_recipe_keys_are_offered(offered: Callable[[str], list[str]]) -> None:
    assert {verb.name for verb in VERBS} <= set(offered("ochat "))
    assert offered("ochat abl") == ["ablate"]
    assert sorted(offered("ochat train --res")) == ["--resume"]
    assert "--resume" not in offered("ochat report --"), "a flag is offered for its own verb alone"
    assert sorted(offered("ochat init --adapter ")) == ["lora", "none", "qlora"]
    assert offered("ochat train --set train.epo") == ["train.epochs="]
    assert sorted(offered("ochat completion ")) == ["bash", "fish", "zsh"]
