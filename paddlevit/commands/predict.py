"""tools/predict.py: the most likely classes of images, seen as evaluation sees them."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddlevit.commands.flags import add_exported_flag, add_flags
from paddlevit.commands.parser import Parser, exit_code
from paddlevit.errors import UserError

if TYPE_CHECKING:
    from paddlevit.commands.classifier import Logits
    from paddlevit.data import EvalLoader

_BATCH_SIZE = 32  # a training run's own would be a long wait for the first answer, and memory for nothing
_BROKEN_PIPE = 141


@exit_code
def main(argv: list[str]) -> int:
    """Print the likely classes of every image that `argv` names; 0, or 2 where there was one that cannot be read."""
    args = parse_args(argv)
    from paddlevit.commands.classifier import build_classifier, build_logits, configure
    from paddlevit.commands.exported import configure_exported, exported_logits
    from paddlevit.config import with_values
    from paddlevit.data import build_file_loader
    from paddlevit.data.files import find_images
    from paddlevit.runtime import process

    paths = list(find_images(_named(args.images)))
    if not paths:
        raise UserError("no image is named on standard input")
    exported: Path | None = None
    if args.exported:
        config, names, exported = configure_exported(args)
    else:
        config, names = configure(args)
    if len(paths) <= config.DATA.BATCH_SIZE_EVAL:
        config = with_values(config, {"DATA.NUM_WORKERS": 0})  # with one batch there is nothing to do in advance
    process.setup(config.DEVICE, config.SEED)
    logits = exported_logits(exported) if exported else build_logits(config, build_classifier(config, names))
    try:
        return _predict(logits, build_file_loader(config, paths), args=args, names=names)
    except BrokenPipeError:  # who reads has enough, as head does; at its end Python would write once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """The flags of `argv`. Raises UserError."""
    parser = Parser(description="Say which classes images are likely of.")
    parser.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER", help="- reads a list from standard input")
    add_flags(parser)
    add_exported_flag(parser)
    flag = parser.flag
    flag("topk", type=int, default=5, help="classes to name for each image (default 5)")
    flag("json", action="store_true", help="print one JSON object a line for each image")
    flag("batch_size", dest="batch_size_eval", metavar="N", type=int, default=_BATCH_SIZE, help="images at a time (32)")
    flag("num_workers", type=int, help="decoding processes (-1: chosen by the cores)")
    args = parser.parse_intermixed_args(argv)
    if args.topk < 1:
        raise UserError(f"-topk is {args.topk}, allowed: 1 and above")
    return args


def _named(words: Sequence[str]) -> Iterator[str]:
    """The words, and in the place of "-" the lines of standard input that are not blank."""
    for word in words:
        if word == "-":
            lines = sys.stdin.buffer.read().splitlines()
            yield from (os.fsdecode(line) for line in lines if line.strip())
        else:
            yield word


def _predict(logits: Logits, loader: EvalLoader, *, args: argparse.Namespace, names: Sequence[str]) -> int:
    from tqdm import tqdm

    from paddlevit.commands.classifier import as_json, guesses

    code = 0
    for i, found in enumerate(guesses(logits, loader, args.topk)):
        if found is None:
            tqdm.write(f"error: {_why(loader, i)}", file=sys.stderr)
            code = 2
        else:
            write = _json if args.json else _text
            tqdm.write(write(loader.source.name(i), as_json(found, names)), file=sys.stdout)
        sys.stdout.flush()
    return code


def _why(loader: EvalLoader, i: int) -> str:
    try:
        loader.source.image(i)
    except UserError as error:
        return str(error)
    return f"{loader.source.name(i)} could not be read at first"


def _json(image: str, classes: list[dict[str, Any]]) -> str:
    return json.dumps({"image": image, "classes": classes})


def _text(image: str, classes: list[dict[str, Any]]) -> str:
    lines = [f"  {100 * found['probability']:6.2f} %  {found['name']}" for found in classes]
    text = image.encode("utf-8", "backslashreplace").decode("utf-8")  # a file's name need not be text
    return "\n".join([text, *lines])
