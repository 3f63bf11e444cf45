"""The command line of tools/convert_weights.py."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Callable, NoReturn, Optional

import paddle
from paddle import nn

from paddlevit.config import get_config
from paddlevit.errors import UserError
from paddlevit.weights.load import load_weights


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def main(build_model: Callable[..., nn.Layer], arguments: Optional[Sequence[str]] = None) -> int:
    """Writes a weights file of any source as our `.pdparams` and prints the report; returns the exit code.

    `build_model` makes a network of a configuration. 2 is a mistake of the user's, told in a line on stderr.
    """
    parser = _Parser(prog="convert_weights.py", description="Write any known weights file as our .pdparams.")
    parser.add_argument("-cfg", "--cfg", required=True, help="yaml file or name of a variant")
    parser.add_argument("-input", "--input", required=True, help=".pdparams, .pth, .pt, .bin or .safetensors")
    parser.add_argument("-output", "--output", required=True, help="the .pdparams file to write")
    parser.add_argument(
        "-source", "--source", default="auto", help="official, timm, hf, paddlevit, ours (default: auto)"
    )
    try:
        flags = parser.parse_args(arguments)
        model = build_model(get_config(flags.cfg))
        report = load_weights(model, flags.input, source=flags.source)
        save(model, flags.output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{report}\nwritten to {flags.output}")
    return 0


def save(model: nn.Layer, path: str) -> None:
    """Writes the state dict of `model`; `path` holds the whole file or what it held before. Raises UserError."""
    if not path.endswith(".pdparams"):
        raise UserError(f"-output {path} does not end in .pdparams")
    partial = f"{path}.{os.getpid()}.partial"
    try:
        paddle.save(model.state_dict(), partial)
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"-output {path} cannot be written: {error.strerror}") from None
    finally:
        Path(partial).unlink(missing_ok=True)
