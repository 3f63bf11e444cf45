#!/bin/sh
# sh run_scripts/check.sh [-device gpu] [-json]: what this machine has, and every family on its device, from a fresh clone.
# PYTHON names the Python that has a GPU build of PaddlePaddle; without it, .venv is made with the build for CPUs.
set -e && cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python} extras=demo
command -v "$python" >/dev/null || python3 -m venv .venv
"$python" -c "import paddle" 2>/dev/null || extras=cpu,demo
"$python" -m pip install --quiet --disable-pip-version-check -e ".[$extras]"
exec "$python" -m paddlevit check "$@"
