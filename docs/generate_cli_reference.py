"""Prints docs/command-line.md, the reference of the `ochat` command, from the record of each verb.

python docs/generate_cli_reference.py > docs/command-line.md
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from ochat_train.cli.main import VERBS
from ochat_train.cli.parser import add_arguments
from ochat_train.cli.verb import Group, Verb
from ochat_train.system import exits

_INTRODUCTION = """\
# Command line

<!-- Printed by docs/generate_cli_reference.py from ochat_train/cli/: change those files. -->

One command, `ochat`, with a verb for each thing to do. `ochat VERB --help` says the same as this page.

- Results go to standard output, messages to standard error. A problem that you can fix is one message; `--debug` adds
  a traceback. `--quiet` leaves out progress, but not warnings and errors. `--log-file FILE` also adds all that is
  printed to a file, with times.
- `--json` prints one JSON document or JSON lines, for other programs: see [JSON outputs](json-outputs.md).
- Exit code {done} is success, {user_error} something you can fix. `ochat train` also ends with {stopped}, {lost} or
  {not_pushed}, and `ochat eval` with {unanswered}: see [How a run ends](reliability.md#how-a-run-ends).
- Relative paths start at the folder in which the command runs.
- `ochat completion bash` (or `zsh`, `fish`) prints what lets your shell complete verbs, flags and recipe keys.

| to | verbs |
| --- | --- |
{groups}
"""

_OF_EVERY_VERB = ("help", "debug", "quiet", "log_file")  # the introduction names them

_LAUNCHERS = """
## Launchers

`ochat train RECIPE` trains in one process. On several GPUs a launcher starts one process per GPU; what follows the
module's name are the arguments of `ochat train`:

```bash
deepspeed --num_gpus 8 --module ochat_train recipes/openchat_3_5.yaml --set train.epochs=3
torchrun --nproc-per-node 8 -m ochat_train recipes/openchat_3_5.yaml
```

`./launch.sh` creates an environment, prepares and trains. Arguments after `--` go to the `deepspeed` launcher:

```bash
./launch.sh recipes/openchat_3_5.yaml --set train.epochs=3 -- --num_gpus 4
```
"""


def reference() -> str:
    """The whole page as Markdown."""
    introduction = _INTRODUCTION.format(
        done=exits.DONE,
        user_error=exits.USER_ERROR,
        stopped=exits.STOPPED,
        lost=exits.LOST_RANKS,
        not_pushed=exits.NOT_PUSHED,
        unanswered=exits.UNANSWERED,
        groups="\n".join(map(_group_row, Group)),
    )
    return "".join([introduction, *map(_section, VERBS), _LAUNCHERS])


def _group_row(group: Group) -> str:
    links = ", ".join(f"[`{verb.name}`](#ochat-{verb.name})" for verb in VERBS if verb.group is group)
    return f"| {group.value} | {links} |"


def _section(verb: Verb) -> str:
    parser = argparse.ArgumentParser()
    add_arguments(parser, verb)
    head = f"\n## `ochat {verb.name}`\n\n{verb.summary}\n\n```bash\n{verb.example}\n```\n\n"
    return head + "".join(_arguments(parser))


def _arguments(parser: argparse.ArgumentParser) -> Iterator[str]:
    """A list entry for each argument that a person may give."""
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or action.dest in _OF_EVERY_VERB:
            continue
        value = str(action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper()))
        value = {0: "", "+": f"{value} ...", "*": f"[{value} ...]", "?": f"[{value}]"}.get(action.nargs, value)
        shown = " ".join(filter(None, (", ".join(action.option_strings), value)))
        yield f"- `{shown}`: {_meaning(action)}\n"


def _meaning(action: argparse.Action) -> str:
    said = (action.help or "") % vars(action)
    given = action.default not in (None, False, argparse.SUPPRESS, [], "")
    default = f"default {action.default}" if given and isinstance(action.default, str | int | float) else ""
    rule = "**required**" if action.required and action.option_strings else "" if "default" in said else default
    return "; ".join(filter(None, (said, rule)))


if __name__ == "__main__":
    print(reference(), end="")
