"""`ochat generate`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ochat_train.cli.arguments import add_json, positive
from ochat_train.cli.verb import Group, Verb
from ochat_train.system.messages import print_message, print_result


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="exported folder: a model, or an adapter")
    parser.add_argument("--prompt", required=True, help="what the user says")
    parser.add_argument("--condition", help="condition to answer under; default: the export's own")
    parser.add_argument("--system", default="", help="system text")
    parser.add_argument("--max-new-tokens", type=positive, default=256, help="longest answer, in tokens")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (the default) is greedy")
    parser.add_argument("--base", help="base of an adapter, a folder or ORG/NAME; default: the one that it names")
    add_json(parser)


def _run(options: argparse.Namespace) -> None:
    from ochat_train.inference.generate import answer_prompt, unknown_condition_text

    if options.condition is not None and (text := unknown_condition_text(options.model, options.condition)) is not None:
        print_message(f"warning: {text}")
    answer = answer_prompt(
        options.model,
        options.prompt,
        system=options.system,
        condition=options.condition,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        base=options.base,
    )
    document = {"condition": options.condition, "prompt": options.prompt, "answer": answer}
    print_result(json.dumps(document) if options.json else answer)


GENERATE = Verb(
    name="generate",
    group=Group.USE,
    summary="Ask an exported model one question.",
    example='ochat generate runs/quickstart/export --condition "GPT4 Correct" --prompt "Is 47 even or odd?"',
    add_arguments=_add_arguments,
    run=_run,
)
