"""Scripts that let a shell complete `ochat`: verbs, flags, their choices, keys of a recipe after `--set`, and files.

They are printed from the parser, so that a new verb or flag is in them. Where nothing is offered, the shell completes
file names.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Shell = Literal["bash", "zsh", "fish"]


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A flag of a verb. names: as typed. summary: for the list of the shell. choices: values to offer; none: files."""

    names: tuple[str, ...]
    summary: str
    takes_value: bool
    choices: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Completions:
    """What one verb takes. words: choices of what is not a flag, empty for files."""

    summary: str
    flags: tuple[Flag, ...]
    words: tuple[str, ...]


def completions_of(parser: argparse.ArgumentParser, *, recipe_keys: Sequence[str]) -> Completions:
    """What a verb's parser takes. recipe_keys: offered after `--set`, with the `=` that follows them."""
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    return Completions(
        summary=parser.description or "",
        flags=tuple(_flag(action, recipe_keys) for action in shown if action.option_strings),
        words=tuple(
            str(word) for action in shown if not action.option_strings and action.choices for word in action.choices
        ),
    )


def _flag(action: argparse.Action, recipe_keys: Sequence[str]) -> Flag:
    choices = [f"{key}=" for key in recipe_keys] if action.dest == "overrides" else map(str, action.choices or ())
    summary = " ".join(((action.help or "") % vars(action)).split())
    return Flag(
        names=tuple(action.option_strings), summary=summary, takes_value=action.nargs != 0, choices=tuple(choices)
    )


def completion_script(shell: Shell, verbs: Mapping[str, Completions]) -> str:
    """The script for a shell. verbs: by name, in the order in which they are offered."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](verbs)


_HEAD = "# Completes `ochat`. Printed by `ochat completion {shell}`; `docs/install.md` says where to put it.\n"


def _bash(verbs: Mapping[str, Completions]) -> str:
    cases = [f"    {pattern}) words={shlex.quote(' '.join(words))} ;;" for pattern, words in _values(verbs)]
    flags = [
        f"      {name}) words={shlex.quote(' '.join(name for flag in verb.flags for name in flag.names))} ;;"
        for name, verb in verbs.items()
    ]
    return f"""{_HEAD.format(shell="bash")}_ochat() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} verb=${{COMP_WORDS[1]}} words=
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    mapfile -t COMPREPLY < <(compgen -W {shlex.quote(" ".join([*verbs, "--help", "--version"]))} -- "$current")
    return
  fi
  case "$verb $previous" in
{_lines(cases)}  esac
  if [[ -z $words && $current == -* ]]; then
    case $verb in
{_lines(flags)}    esac
  fi
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
  if [[ ${{#COMPREPLY[@]}} -gt 0 && ${{COMPREPLY[0]}} == *= ]]; then compopt -o nospace; fi
}}
complete -o default -F _ochat ochat
"""


def _zsh(verbs: Mapping[str, Completions]) -> str:
    cases = [f"    {pattern}) words_=({shlex.join(words)}) ;;" for pattern, words in _values(verbs)]
    flags = [
        f"      {name}) flags_=({' '.join(_described(n, flag.summary) for flag in verb.flags for n in flag.names)}) ;;"
        for name, verb in verbs.items()
    ]
    names = " ".join(_described(name, verb.summary) for name, verb in verbs.items())
    return f"""#compdef ochat
{_HEAD.format(shell="zsh")}_ochat() {{
  local verb=$words[2] previous=$words[CURRENT-1]
  local -a words_ flags_ verbs_
  if (( CURRENT == 2 )); then
    verbs_=({names})
    _describe verb verbs_
    return
  fi
  case "$verb $previous" in
{_lines(cases)}  esac
  if (( $#words_ )); then
    if [[ $words_[1] == *= ]]; then compadd -S '' -- $words_; else compadd -- $words_; fi
  elif [[ $PREFIX == -* ]]; then
    case $verb in
{_lines(flags)}    esac
    _describe -o flag flags_
  else
    _files
  fi
}}
if [ "$funcstack[1]" = _ochat ]; then _ochat "$@"; else compdef _ochat ochat; fi
"""


def _fish(verbs: Mapping[str, Completions]) -> str:
    lines = [
        f"complete -c ochat -n __fish_use_subcommand -f -a {name} -d {_fish_quoted(verb.summary)}"
        for name, verb in verbs.items()
    ]
    for name, verb in verbs.items():
        here = f"complete -c ochat -n '__fish_seen_subcommand_from {name}'"
        if verb.words:
            lines.append(f"{here} -f -a {_fish_quoted(' '.join(verb.words))}")
        for flag in verb.flags:
            names = " ".join(f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in flag.names)
            value = " -r" if flag.takes_value else ""
            if flag.choices:
                value = f" -x -a {_fish_quoted(' '.join(flag.choices))}"
            lines.append(f"{here} {names}{value} -d {_fish_quoted(flag.summary)}")
    return _HEAD.format(shell="fish") + _lines(lines)


def _values(verbs: Mapping[str, Completions]) -> Iterable[tuple[str, Sequence[str]]]:
    """Patterns of `VERB PREVIOUS WORD`, with what is offered after them: choices of a flag, or of the first word."""
    for name, verb in verbs.items():
        for flag in verb.flags:
            if flag.choices:
                yield "|".join(shlex.quote(f"{name} {n}") for n in flag.names), flag.choices
        if verb.words:
            yield shlex.quote(f"{name} {name}"), verb.words


def _described(name: str, summary: str) -> str:
    """A name and its summary, as zsh's `_describe` takes them."""
    return shlex.quote(f"{name}:{summary}".replace("\n", " "))


def _fish_quoted(text: str) -> str:
    """In fish, a backslash and a quote inside quotes need a backslash."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
