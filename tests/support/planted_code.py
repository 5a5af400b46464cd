"""Model folders that bring Python code, and `ochat` on a terminal where somebody answers `y` to every question.

    python -m tests.support.planted_code '[["check", "a.yaml"], ["plan", "a.yaml"]]'

Prints `exit code N` for each command, after what it wrote to the terminal.
"""

from __future__ import annotations

import json
import os
import pty
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

MODULES = ("configuration_planted", "modeling_planted", "tokenization_planted")
CODE = """
from pathlib import Path
Path({mark!r}).write_text("ran", encoding="utf-8")
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast


class PlantedConfig(MistralConfig):
    model_type = "planted"


class PlantedForCausalLM(MistralForCausalLM):
    config_class = PlantedConfig


class PlantedTokenizer(PreTrainedTokenizerFast):
    pass
"""


def plant_code(folder: Path, marks: Path, *, model_type: str | None = None) -> None:
    """Add code to a model or tokenizer folder; each of its files writes a file into `marks` when it is run.

    model_type: what the configuration is to say, None for what it says now.
    """
    marks.mkdir(exist_ok=True)
    for module in MODULES:
        text = CODE.format(mark=str(marks / f"{folder.name}-{module}"))
        (folder / f"{module}.py").write_text(text, encoding="utf-8")
    classes = {
        "AutoConfig": "configuration_planted.PlantedConfig",
        "AutoModelForCausalLM": "modeling_planted.PlantedForCausalLM",
        "AutoTokenizer": [None, "tokenization_planted.PlantedTokenizer"],
    }
    for name, changes in (
        ("config.json", {} if model_type is None else {"model_type": model_type}),
        ("tokenizer_config.json", {"tokenizer_class": "PlantedTokenizer"}),
    ):
        path = folder / name
        if path.is_file():
            values = json.loads(path.read_text(encoding="utf-8"))
            path.write_text(json.dumps({**values, **changes, "auto_map": classes}), encoding="utf-8")


def answer_yes(terminal: int, said: list[bytes]) -> None:
    """Answer `y` to whatever ends in a question mark or bracket, until the terminal is closed."""
    while True:
        try:
            block = os.read(terminal, 4096)
        except OSError:
            return
        said.append(block)
        if block.rstrip().endswith((b"?", b"]", b":")):
            os.write(terminal, b"y\n")


def run_on_terminal(commands: list[list[str]], control: str | None) -> None:
    """Run commands with a terminal for stdin, stdout and stderr, and print what they said afterwards."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    terminal, slave = pty.openpty()
    said: list[bytes] = []
    threading.Thread(target=answer_yes, args=(terminal, said), daemon=True).start()
    for number in (0, 1, 2):
        os.dup2(slave, number)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    assert sys.stdin.isatty()
    assert sys.stdout.isatty()
    codes: list[Any] = []
    try:
        if control is not None:
            import transformers

            transformers.AutoConfig.from_pretrained(control)  # says nothing of trust_remote_code, so it asks
        from ochat_train.cli.main import main

        for command in commands:
            codes.append(main(command))
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        time.sleep(0.1)  # for the thread that reads the terminal
        out.write(b"".join(said).decode(errors="replace"))
        out.write("".join(f"\nexit code {code}" for code in codes) + "\n")
        out.flush()


if __name__ == "__main__":
    run_on_terminal(json.loads(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
