"""`ochat push`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ochat_train.cli.arguments import add_json
from ochat_train.cli.export import add_results_option
from ochat_train.cli.verb import Group, Verb
from ochat_train.system.exits import StoppedBySignalError
from ochat_train.system.messages import print_message, print_result, shows_progress


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", type=Path, help="folder that `ochat export` wrote")
    parser.add_argument(
        "--repo", required=True, metavar="ORG/NAME", help="model repository; created, private, if it does not exist"
    )
    parser.add_argument("--public", action="store_true", help="create a public repository, or push to one")
    parser.add_argument(
        "--revision", metavar="BRANCH", help="branch to push to, created if it does not exist; default: main"
    )
    parser.add_argument("--message", help="message of the commit")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a model card that was edited on the Hub, and all files of a repository that `ochat push` did not "
        "create",
    )
    add_results_option(parser)
    add_json(parser)


def _run(options: argparse.Namespace) -> None:
    from ochat_train.hub.push import push

    if options.results is not None:
        from ochat_train.export.benchmarks_card import add_results
        from ochat_train.suites.results_file import read_results

        add_results(options.dir, read_results(options.results))
    try:
        pushed = push(
            options.dir,
            options.repo,
            private=not options.public,
            revision=options.revision,
            message=options.message,
            overwrite=options.overwrite,
            progress=shows_progress(),
        )
    except KeyboardInterrupt:
        raise StoppedBySignalError("stopped by SIGINT; run the same command again to upload what is missing") from None
    if options.json:
        for note in pushed.notes:
            print_message(f"warning: {note}")
        print_result(json.dumps(pushed.as_json()))
    else:
        print_result(f"pushed and verified: {pushed.url}\ncommit {pushed.commit}\n{pushed.what_changed}")


PUSH = Verb(
    name="push",
    group=Group.USE,
    summary="Upload an exported folder to the Hugging Face Hub and verify what arrived.",
    example="HF_TOKEN=... ochat push runs/quickstart/export --repo ORG/NAME",
    add_arguments=_add_arguments,
    run=_run,
)
