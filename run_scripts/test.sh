#!/bin/sh
# Run the tests in .venv, which is made if need be; arguments go to pytest (-n 0: in one process).
# One worker more than there are cores, as some tests only wait.
set -e
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[cpu,demo,test]'
.venv/bin/python -m ruff check . && .venv/bin/python -m ruff format --check . && .venv/bin/python -m mypy
exec .venv/bin/python -m pytest -n "$(($(nproc) + 1))" --maxprocesses 8 --dist worksteal "$@"
