"""The command `paddlevit`: each subcommand is a module of commands/, which a tool of tools/ calls too."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:  # run as a file: paddlevit is where this file is, not what else is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from paddlevit.commands import parser


class Command(NamedTuple):
    """A module of commands/, and how its `main` is called."""

    summary: str
    module: str
    options: dict[str, Any] = {}


COMMANDS = {
    "train": Command("train a model, or resume a run", "train"),
    "eval": Command("evaluate weights", "train", {"command": "eval"}),
    "distill": Command("train with a teacher", "train", {"command": "distill"}),
    "predict": Command("name the classes of images", "predict"),
    "serve": Command("serve predictions: a web page, and POST /predict", "serve"),
    "export": Command("write a model for Paddle Inference, ONNX or OpenVINO", "export_model"),
    "explain": Command("show what a model looks at in an image", "visualize_attention"),
    "prepare": Command("make and check data sets", "prepare_data"),
    "convert": Command("write weights of any source for this or another project", "convert_weights"),
    "weights": Command("list published weights, and fetch them", "weights"),
    "flops": Command("count parameters and multiply-accumulates", "count_flops"),
    "benchmark": Command("measure the speed of a model, or of the data path", "benchmark"),
    "compare": Command("compare training runs", "compare_runs"),
    "verify": Command("compare a run with its certificate, and repeat some of its steps", "verify"),
    "check": Command("check this machine, and every family on its device", "check"),
    "models": Command("list the variants: parameters, MACs, image size, published accuracy", "models"),
}


_EXAMPLES = (
    "prepare digits data/digits",
    "train -cfg pit_digits -data_path data/digits -output output/digits",
    "predict -pretrained output/digits/best.pdparams photo.png",
)


@parser.exit_code
def main(argv: list[str]) -> int:
    """Run the command that the first of `argv` names; the exit code."""
    parser.program = "paddlevit"
    chosen = parser.choose(argv, {name: each.summary for name, each in COMMANDS.items()}, "command", _EXAMPLES)
    if chosen is None:
        return 0
    name, words = chosen
    parser.program = f"paddlevit {name}"
    module = importlib.import_module(f"paddlevit.commands.{COMMANDS[name].module}")
    return module.main(words, **COMMANDS[name].options)


if __name__ == "__main__":
    sys.exit(main())
