#!/usr/bin/env bash
# Everything that a GPU must show, on a bare machine without network: bash gpu_day.sh [--seconds 540 | --smoke]
# Lies in the folder that `make gpu-kit` packed. OUT: where results go; PYTHON: another interpreter than python3.
set -u
kit=$(cd "$(dirname "$0")" && pwd)
out=${OUT:-$kit/results}
work=$(mktemp -d "${TMPDIR:-/tmp}/gpu_day.XXXXXX") || exit 1
mkdir -p "$out" "$work/project" && tar xzf "$kit/project.tgz" -C "$work/project" || exit 1
# As a login shell of the machine would be: nothing of the caller's Python.
unset PYTHONPATH PYTHONHOME CI
"${PYTHON:-python3}" -B "$work/project/tests/bench/gpu/kit/day.py" --kit "$kit" --work "$work" --out "$out" "$@" 2>&1 |
  tee "$out/day.log"
code=${PIPESTATUS[0]}
rm -rf "$work"
exit "$code"
