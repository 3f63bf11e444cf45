"""The command `paddlevit`: each subcommand is a module of commands/, which a tool of tools/ calls too."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

if not __package__:  # run as a file: paddlevit is where this file is, not what else is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from paddlevit.commands import parser

# What each does, and its module of commands/; that of train is told which of its commands it is.
COMMANDS = {
    "train": ("train a model, or resume a run", "train"),
    "eval": ("evaluate weights", "train"),
    "distill": ("train with a teacher", "train"),
    "predict": ("name the classes of images", "predict"),
    "serve": ("serve predictions: a web page, and POST /predict", "serve"),
    "export": ("write a model for Paddle Inference, ONNX or OpenVINO", "export_model"),
    "explain": ("show what a model looks at in an image", "visualize_attention"),
    "prepare": ("make and check data sets", "prepare_data"),
    "convert": ("write weights of any source for this or another project", "convert_weights"),
    "weights": ("list published weights, and fetch them", "weights"),
    "flops": ("count parameters and multiply-accumulates", "count_flops"),
    "benchmark": ("measure the speed of a model, or of the data path", "benchmark"),
    "compare": ("compare training runs", "compare_runs"),
    "verify": ("compare a run with its certificate, and repeat some of its steps", "verify"),
    "check": ("check this machine, and every family on its device", "check"),
    "models": ("list the variants: parameters, MACs, image size, published accuracy", "models"),
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
    name = parser.choose(argv, {name: summary for name, (summary, _) in COMMANDS.items()}, _EXAMPLES)
    if name is None:
        return 0
    parser.program = f"paddlevit {name}"
    _, room = COMMANDS[name]
    module = importlib.import_module(f"paddlevit.commands.{room}")
    return module.main(argv[1:], **({"command": name} if room == "train" else {}))


if __name__ == "__main__":
    sys.exit(main())
