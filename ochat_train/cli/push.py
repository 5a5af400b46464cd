"""`ochat push`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ochat_train.cli.arguments import Verb
from ochat_train.system import exits


def add_push(verb: Verb) -> None:
    """Add the verb and its arguments."""
    push = verb(
        "push",
        _push,
        "Upload an exported folder to the Hugging Face Hub, and compare what arrived.",
        "HF_TOKEN=... ochat push runs/quickstart/export --repo ORG/NAME",
    )
    push.add_argument("dir", type=Path, help="folder that `ochat export` wrote")
    push.add_argument(
        "--repo", required=True, metavar="ORG/NAME", help="model repository; made if it is not there, private"
    )
    push.add_argument("--public", action="store_true", help="make a public repository, or push to one")
    push.add_argument("--revision", help="branch to push to, made if it is not there; default: main")
    push.add_argument("--message", help="message of the commit")
    push.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a model card that was edited on the Hub, and all files of a repository that `ochat push` did not "
        "make",
    )
    push.add_argument("--json", action="store_true", help="print one JSON document")


def _push(options: argparse.Namespace) -> None:
    from ochat_train.hub.push import push

    try:
        pushed = push(
            options.dir,
            options.repo,
            private=not options.public,
            revision=options.revision,
            message=options.message,
            overwrite=options.overwrite,
            progress=sys.stderr.isatty(),
        )
    except KeyboardInterrupt:
        raise exits.StoppedBySignalError("stopped by SIGINT; the same command goes on with what is missing") from None
    if options.json:
        print(json.dumps(pushed.as_json()))
    else:
        print(f"pushed and verified: {pushed.url}\ncommit {pushed.commit}\n{pushed.what_changed}")
