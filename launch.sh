#!/usr/bin/env bash
# Sets everything up (in .venv) and trains.
#
#   ./launch.sh                                             quickstart: raw data to exported model, 2 CPU ranks or all GPUs
#   ./launch.sh test                                        lint, types and tests
#   ./launch.sh RECIPE [--set KEY=VALUE ...] [--resume auto|never|PATH] [--accept-changes] [-- DEEPSPEED LAUNCHER FLAGS ...]
#                                                           prepare and train a recipe, on all GPUs of this host
#
# OCHAT_PYTHON: the python to make .venv with (3.10 to 3.12, but not 3.11.0 to 3.11.3). OCHAT_CPU_RANKS: processes without a GPU (default 2).
set -euo pipefail
cd "$(dirname "$0")"

say() { printf '\n+ %s\n' "$*" >&2; }
echo_and_run() { say "$@"; "$@"; }

check_python() { # check_python PYTHON: end with 2 unless this version can be used; 3.11.0 to 3.11.3: see pyproject.toml
  "$1" -c 'import sys; v = sys.version_info[:3]; sys.exit(not (3, 10) <= v[:2] <= (3, 12) or (3, 11, 0) <= v <= (3, 11, 3))' || {
    echo "launch.sh: $("$1" --version) cannot be used; set OCHAT_PYTHON to Python 3.10, 3.11 (from 3.11.4) or 3.12" >&2
    exit 2
  }
}

set_up() { # set_up EXTRAS: install the project with these extras, unless it was already done with the same files
  local python=${OCHAT_PYTHON:-python3} stamp=".venv/installed-${1//,/-}"
  if [ ! -x .venv/bin/python ]; then
    check_python "$python"
    echo_and_run "$python" -m venv .venv
  fi
  # shellcheck disable=SC1091
  source .venv/bin/activate
  if ! cat pyproject.toml constraints.txt | cmp -s - "$stamp"; then
    say "installing into .venv, a minute or more"
    echo_and_run python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$1]"
    cat pyproject.toml constraints.txt > "$stamp"
  fi
}

train() { # train RECIPE [recipe flags] [-- launcher flags]
  local recipe_flags=() prepare_flags=() launcher_flags=()
  while [ $# -gt 0 ]; do
    case $1 in
      --) shift; launcher_flags=("$@"); break ;;
      --resume) recipe_flags+=("$1" "${2:?--resume needs auto, never or a path}"); shift 2 ;;
      --accept-changes) recipe_flags+=("$1"); shift ;;
      --set) prepare_flags+=("$1" "${2:?--set needs KEY=VALUE}"); shift 2 ;;
      *) prepare_flags+=("$1"); shift ;;
    esac
  done
  if [ "$gpus" -eq 0 ] && [[ " ${launcher_flags[*]-} " != *" --num_"* ]]; then
    launcher_flags+=(--num_gpus "${OCHAT_CPU_RANKS:-2}")
  fi
  echo_and_run ochat prepare "${prepare_flags[@]}"
  echo_and_run deepspeed --log_level warning ${launcher_flags[@]+"${launcher_flags[@]}"} --module ochat_train \
    "${prepare_flags[@]}" ${recipe_flags[@]+"${recipe_flags[@]}"}
}

gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true)
extras=gpu,adapters,serve,tracking
if [ "$gpus" -eq 0 ]; then
  export DS_ACCELERATOR=cpu OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  extras=cpu,adapters,serve,tracking
fi

case ${1-} in
  -h | --help) sed -n '2,9p' "$0" ;;
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
    rm -rf runs/quickstart
    train recipes/quickstart.yaml
    echo_and_run ochat export runs/quickstart --out runs/quickstart/export --overwrite
    echo_and_run python -m ochat_train.quickstart.score runs/quickstart/export data/quickstart/held_out.jsonl
    say "next: source .venv/bin/activate; ochat report runs/quickstart; then docs/tutorial.md, with your own files"
    ;;
  *)
    set_up "$extras"
    train "$@"
    ;;
esac
