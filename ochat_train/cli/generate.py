"""`ochat generate`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ochat_train.cli.arguments import Verb, positive


def add_generate(verb: Verb) -> None:
    """Add the verb and its arguments."""
    generate = verb(
        "generate",
        _generate,
        "Ask an exported model one thing.",
        'ochat generate runs/quickstart/export --condition "GPT4 Correct" --prompt "Is 47 even or odd?"',
    )
    generate.add_argument("model", type=Path, help="exported folder")
    generate.add_argument("--prompt", required=True, help="what the user says")
    generate.add_argument("--condition", help="condition to answer under; default: the export's own")
    generate.add_argument("--system", default="", help="system text")
    generate.add_argument("--max-new-tokens", type=positive, default=256)
    generate.add_argument("--temperature", type=float, default=0.0, help="0 (the default) is greedy")
    generate.add_argument("--json", action="store_true", help="print one JSON document")


def _generate(options: argparse.Namespace) -> None:
    from ochat_train.inference.generate import load_generator, unknown_condition_text

    if options.condition is not None and (text := unknown_condition_text(options.model, options.condition)) is not None:
        print(f"warning: {text}", file=sys.stderr)
    system = [{"role": "system", "content": options.system}] if options.system else []
    messages = [*system, {"role": "user", "content": options.prompt}]
    answer = load_generator(options.model).answers(
        [messages], condition=options.condition, max_new_tokens=options.max_new_tokens, temperature=options.temperature
    )[0]
    print(
        json.dumps({"condition": options.condition, "prompt": options.prompt, "answer": answer})
        if options.json
        else answer
    )
