#!/bin/sh
# sh run_scripts/tool.sh NAME.py [flags]: a tool of tools/ by PYTHON, or the first of python, python3 and .venv's that has PaddlePaddle.
tool="$(dirname "$0")/../tools/$1" && shift
[ -z "$PYTHON" ] || exec "$PYTHON" "$tool" "$@"
for python in python python3 "$(dirname "$0")/../.venv/bin/python"; do
    "$python" -c "import importlib.util as util; exit(util.find_spec('paddle') is None)" >/dev/null 2>&1 && exec "$python" "$tool" "$@"
done
exec python3 "$tool" "$@" # which says what is missing
