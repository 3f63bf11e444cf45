#!/bin/sh
# sh run_scripts/test_paddle_version.sh VERSION [pytest's arguments]: the fast tests with another PaddlePaddle, in .venv-paddle-VERSION.
set -e && cd "$(dirname "$0")/.."
version=${1:?VERSION is missing, such as 3.0.0} && shift
venv=.venv-paddle-$version
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e '.[demo,test]' "paddlepaddle==$version"
exec "$venv/bin/python" -m pytest -m "not slow" -n auto --maxprocesses 8 --dist worksteal "$@"
