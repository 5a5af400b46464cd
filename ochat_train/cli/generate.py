"""`ochat generate`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ochat_train.cli.arguments import add_json, number_from_zero, positive
from ochat_train.cli.engine_arguments import EXPORT_HELP
from ochat_train.cli.verb import Group, Verb
from ochat_train.system.messages import print_message, print_result, reader_may_leave


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="EXPORT|RUN", help=EXPORT_HELP)
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--prompt", help="what the user says")
    asked.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help='many prompts, one a line: a JSON text, or {"prompt": "...", "condition": "...", "system": "..."} of '
        "which only `prompt` is needed; the model is loaded once, and each answer is printed as a line of JSON",
    )
    parser.add_argument("--condition", help="condition to answer under; default: the export's own")
    parser.add_argument("--any-condition", action="store_true", help="allow conditions that were not trained")
    parser.add_argument("--system", default="", help="system text")
    parser.add_argument("--max-new-tokens", type=positive, default=256, help="longest answer, in tokens")
    parser.add_argument("--temperature", type=number_from_zero, default=0.0, help="0 (the default) is greedy")
    parser.add_argument("--base", metavar="HUB_ID|FOLDER", help="base of an adapter; default: the one that it names")
    add_json(parser)


@reader_may_leave()
def _run(options: argparse.Namespace) -> None:
    from ochat_train.export.layout import read_mark
    from ochat_train.inference.generate import check_conditions, load_generator
    from ochat_train.inference.prompts_file import (
        Prompt,
        answers_in_order,
        check_texts,
        load_prompts,
        notes_of_empty_answers,
    )
    from ochat_train.inference.served_model import export_folder

    check_texts("ochat generate", {name: getattr(options, name) for name in ("prompt", "condition", "system")})
    if options.prompts is None:
        prompts = [Prompt(prompt=options.prompt, condition=options.condition, system=options.system)]
    else:
        prompts = load_prompts(options.prompts, condition=options.condition, system=options.system)
    folder = export_folder(options.model)
    if not options.any_condition:
        check_conditions(folder, [prompt.condition for prompt in prompts])
    answers = answers_in_order(
        load_generator(folder, base=options.base),
        prompts,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
    )
    given = []
    for prompt, answer in zip(prompts, answers, strict=True):
        document = {"condition": prompt.condition, "prompt": prompt.prompt, "answer": answer}
        print_result(json.dumps(document) if options.json or options.prompts else answer)
        given.append(answer)
    for note in notes_of_empty_answers(prompts, given, default=read_mark(folder).get("inference_condition")):
        print_message(note)


GENERATE = Verb(
    name="generate",
    group=Group.USE,
    summary="Ask an exported model one question, or a file of them.",
    example='ochat generate runs/quickstart/export --condition "GPT4 Correct" --prompt "Which day follows Friday?"',
    add_arguments=_add_arguments,
    run=_run,
)
