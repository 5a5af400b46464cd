#!/usr/bin/env bash
# Sets everything up (in .venv) and trains.
#
#   ./launch.sh                                             quickstart: raw data to exported model, 2 CPU ranks or all GPUs
#   ./launch.sh test                                        lint, types and tests
#   ./launch.sh RECIPE [--set KEY=VALUE ...] [--resume auto|never|PATH] [--accept-changes] [--retries N]
#               [-- DEEPSPEED LAUNCHER FLAGS ...]           prepare and train a recipe, on all GPUs of this host; start it
#                                                           again after a crash, at most N times
#
# From another folder, a recipe is looked for there first; its paths are relative to the folder that it is started in.
#
# OCHAT_PYTHON: the python to make .venv with (3.11 from 3.11.4, 3.12 or 3.13). OCHAT_CPU_RANKS: processes without a GPU (default 2).
set -euo pipefail
caller=$PWD
cd "$(dirname "$0")"

say() { printf '\n+ %s\n' "$*" >&2; }
echo_and_run() { printf '\n+' >&2; printf ' %q' "$@" >&2; printf '\n' >&2; "$@"; }

check_program() { # check_program PYTHON: end with 2 unless it can be started
  command -v "$1" > /dev/null || {
    echo "launch.sh: $1: there is no such program; set OCHAT_PYTHON to Python 3.11 (from 3.11.4), 3.12 or 3.13" >&2
    exit 2
  }
}

check_python() { # check_python PYTHON REMEDY: end with 2 unless this version can be used; 3.11.0 to 3.11.3: see pyproject.toml
  check_program "$1"
  "$1" -c 'import sys; v = sys.version_info[:3]; sys.exit(not ((3, 11, 4) <= v and v[:2] <= (3, 13)))' || {
    echo "launch.sh: $("$1" --version) cannot be used; $2" >&2
    exit 2
  }
}

check_venv() { # end with 2 where .venv is of a Python that cannot be used, or of another than OCHAT_PYTHON
  local minor='import sys; print("Python %d.%d" % sys.version_info[:2])' has asked
  check_python .venv/bin/python "remove .venv, and set OCHAT_PYTHON to Python 3.11 (from 3.11.4), 3.12 or 3.13"
  [ -n "${OCHAT_PYTHON-}" ] || return 0
  check_program "$OCHAT_PYTHON"
  has=$(.venv/bin/python -c "$minor") asked=$("$OCHAT_PYTHON" -c "$minor")
  if [ "$has" != "$asked" ]; then
    echo "launch.sh: .venv has $has, OCHAT_PYTHON is $asked; remove .venv to make it again, or unset OCHAT_PYTHON" >&2
    exit 2
  fi
}

install() { # install EXTRAS: pip's words are shown, and the last ones are ours
  local log code=0 package
  log=$(mktemp)
  say python -m pip install --constraint constraints.txt --editable ".[$1]"
  python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$1]" 2>&1 |
    tee "$log" >&2 || code=$?
  if [ "$code" -ne 0 ]; then
    package=$(sed -nE 's/.*(No matching distribution found for|satisfies the requirement|Failed to build|Failed building wheel for|depends on) ([^ ,;()]+).*/\2/p' "$log" | tail -n 1)
    if grep -q 'No space left on device' "$log"; then
      echo "launch.sh: the installation failed: the disk is full; it needs about 10 GB in .venv, and room in TMPDIR" >&2
    elif grep -qE 'NewConnectionError|Temporary failure in name resolution|Connection(Reset|Refused|Timeout)|Read timed out' "$log"; then
      echo "launch.sh: the installation failed: no package index can be reached; check the network, then start again" >&2
    else
      echo "launch.sh: the installation failed${package:+ at $package}; pip says why, above. $(python --version) on $(uname -m)" \
        "may have no file of it: set OCHAT_PYTHON to another Python (3.11 to 3.13), remove .venv and start again" >&2
    fi
    rm -f "$log"
    exit 2
  fi
  rm -f "$log"
}

set_up() { # set_up EXTRAS: install the project with these extras, unless it was already done with the same files
  local python=${OCHAT_PYTHON:-python3} stamp=".venv/installed-${1//,/-}"
  if [ -x .venv/bin/python ]; then
    check_venv
  else
    check_python "$python" "set OCHAT_PYTHON to Python 3.11 (from 3.11.4), 3.12 or 3.13"
    echo_and_run "$python" -m venv .venv
  fi
  # shellcheck disable=SC1091
  source .venv/bin/activate
  if ! cat pyproject.toml constraints.txt | cmp -s - "$stamp"; then
    say "installing into .venv, some minutes"
    install "$1"
    cat pyproject.toml constraints.txt > "$stamp"
  fi
}

train() { # train RECIPE [recipe flags] [-- launcher flags]
  local recipe_flags=() prepare_flags=() launcher_flags=() retries=0 level=error
  while [ $# -gt 0 ]; do
    case $1 in
      --) shift; launcher_flags=("$@"); break ;;
      --resume) recipe_flags+=("$1" "${2:?--resume needs auto, never or a path}"); shift 2 ;;
      --retries) retries=${2:?--retries needs a number}; shift 2 ;;
      --accept-changes) recipe_flags+=("$1"); shift ;;
      --set) prepare_flags+=("$1" "${2:?--set needs KEY=VALUE}"); shift 2 ;;
      *) prepare_flags+=("$1"); shift ;;
    esac
  done
  if [ "${#launcher_flags[@]}" -gt 0 ]; then level=warning; fi # for example of a hostfile that is not there
  if [ "$gpus" -eq 0 ] && [[ " ${launcher_flags[*]-} " != *" --num_"* ]]; then
    launcher_flags+=(--num_gpus "${OCHAT_CPU_RANKS:-2}")
  fi
  echo_and_run ochat prepare "${prepare_flags[@]}"
  echo_and_run ochat launch --retries "$retries" -- deepspeed --log_level "$level" ${launcher_flags[@]+"${launcher_flags[@]}"} --module ochat_train \
    "${prepare_flags[@]}" ${recipe_flags[@]+"${recipe_flags[@]}"}
}

gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true)
extras=gpu,adapters,serve,tracking
if [ "$gpus" -eq 0 ]; then
  export DS_ACCELERATOR=cpu OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  extras=cpu,adapters,serve,tracking
fi

case ${1-} in
  -h | --help) sed -n '2,12p' "$0" ;;
  test)
    shift
    set_up "$extras,docs,test"
    echo_and_run ruff check .
    echo_and_run ruff format --check .
    echo_and_run mypy
    echo_and_run python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@"
    ;;
  "")
    set_up "$extras"
    echo_and_run python -m ochat_train.quickstart.make data/quickstart
    [ ! -e runs/quickstart ] || echo_and_run rm -rf runs/quickstart
    train recipes/quickstart.yaml
    echo_and_run ochat export runs/quickstart --out runs/quickstart/export --overwrite
    echo_and_run python -m ochat_train.quickstart.score runs/quickstart/export data/quickstart/held_out.jsonl
    say "next: source .venv/bin/activate; ochat report runs/quickstart; then docs/tutorial.md, or docs/first-real-run.md with your own files"
    ;;
  *)
    set_up "$extras"
    if [ -e "$caller/$1" ] || [ ! -e "$1" ]; then
      cd "$caller"
    elif [ "$caller" != "$PWD" ]; then
      say "$1 is not in $caller, but in $PWD: it is started there"
    fi
    train "$@"
    ;;
esac
