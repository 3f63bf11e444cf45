#!/bin/sh
# sh run_scripts/tool.sh NAME.py [flags]: a tool of tools/ by the first of PYTHON, python, python3 and .venv's that has PaddlePaddle.
root="$(cd "$(dirname "$0")/.." && pwd)" tool=$1 && shift
for python in "${PYTHON:-python}" python python3 "$root/.venv/bin/python"; do
    has="import sys; sys.path = list(filter(None, sys.path)); from importlib import util; exit(not util.find_spec('paddle'))"
    "$python" -c "$has" >/dev/null 2>&1 && exec "$python" "$root/tools/$tool" "$@"
done
exec python3 "$root/tools/$tool" "$@" # which says what is missing
