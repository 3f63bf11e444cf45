#!/bin/sh
# From a fresh clone to a trained and evaluated model: real handwritten digits, through the tools that ImageNet uses.
set -e && cd "$(dirname "$0")/.." && out="output/quickstart-$(date +%Y%m%d-%H%M%S)"
echo "Installing into $PWD/.venv (PaddlePaddle is about 200 MB)"
[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
.venv/bin/python -m pip install --disable-pip-version-check -e '.[cpu,demo]'
.venv/bin/python tools/prepare_data.py digits data/digits
.venv/bin/python tools/main_single_gpu.py -cfg pit_digits -data_path data/digits -output "$out" "$@"
.venv/bin/python tools/main_single_gpu.py -cfg pit_digits -data_path data/digits -output "$out/eval" -eval -pretrained "$out/best"
ln -sfn "$(basename "$out")" output/quickstart && cat <<END

Curves, confusion matrix and the worst mistakes: open $PWD/$out/report.html
To continue:
  . .venv/bin/activate
  paddlevit predict -pretrained output/quickstart/best.pdparams data/digits/val/3
  paddlevit explain -pretrained output/quickstart/best.pdparams -image $(ls data/digits/val/3/*.png | head -n 1) -output output/heat.png
  pip install -e '.[serve]' && paddlevit serve -pretrained output/quickstart/best.pdparams
Your own photographs, step by step: docs/walkthrough.md
END
