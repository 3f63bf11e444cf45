#!/bin/sh
# From a fresh clone to a trained and evaluated network: real handwritten digits, through the tools that ImageNet uses.
set -e && cd "$(dirname "$0")/.." && out="output/quickstart-$(date +%Y%m%d-%H%M%S)"
echo "Installing into $PWD/.venv (PaddlePaddle is about 200 MB)"
[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[cpu,demo]'
.venv/bin/python tools/prepare_data.py digits data/digits
.venv/bin/python tools/main_single_gpu.py -cfg pit_digits -data_path data/digits -output "$out" "$@"
.venv/bin/python tools/main_single_gpu.py -cfg pit_digits -data_path data/digits -output "$out/eval" -eval -pretrained "$out/best"
echo "Curves, confusion matrix and the worst mistakes: open $PWD/$out/report.html"
