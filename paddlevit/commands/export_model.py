"""tools/export_model.py: a network with its weights for deployment, compared with what it was exported from."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from paddlevit.commands.flags import add_flags
from paddlevit.commands.parser import Parser, exit_code
from paddlevit.errors import UserError

_FORMATS = ("paddle", "onnx", "openvino")
_NUM_IMAGES = 512


@exit_code
def main(argv: list[str]) -> int:
    """Export the network that `argv` names, run both on images and print the difference; the exit code."""
    args = parse_args(argv)
    from paddlevit.commands.classifier import build_classifier, configure
    from paddlevit.commands.comparison import BATCH_SIZE, calibration_images, compare, comparison_images, logits_of
    from paddlevit.config import with_values
    from paddlevit.export import DESCRIPTION_FILE, describe, export, open_exported, with_file
    from paddlevit.training.checkpoint import write_text

    config, names = configure(args)
    config = with_values(config, {"DATA.BATCH_SIZE_EVAL": BATCH_SIZE})
    calibration = calibration_images(config, args) if args.int8 else None
    model = build_classifier(config, names)
    folder, shape = Path(args.output), [config.DATA.IMAGE_CHANNELS, *[config.DATA.IMAGE_SIZE] * 2]
    path = export(model, shape, args.format, folder, calibration=calibration)
    description = with_file(describe(config, model, names), folder, path)
    write_text(folder / DESCRIPTION_FILE, json.dumps(description, indent=1) + "\n")
    images, where = comparison_images(config, args, shape)
    print(f"written to {path}; how to use it: {folder / DESCRIPTION_FILE}\ncompared on {where}:")
    print(compare(logits_of(config, model), open_exported(path), images))
    return 0


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """The flags of `argv`. Raises UserError."""
    parser = Parser(description="Export a network for deployment.")
    add_flags(parser)
    flag = parser.flag
    flag("format", default="paddle", help="paddle (default), onnx or openvino")
    flag("output", required=True, metavar="DIR", help="folder to write into")
    flag("int8", action="store_true", help="compute in int8 (openvino), with ranges found on -images or -data_path")
    flag("images", nargs="+", metavar="IMAGE_OR_FOLDER", help="compare on these, not on -data_path or random ones")
    flag("num_images", type=int, default=_NUM_IMAGES, help=f"to compare on, and for -int8, at most ({_NUM_IMAGES})")
    flag("opts", nargs="*", action="extend", default=[], metavar="KEY VALUE", help="any keys of the configuration")
    args = parser.parse_args(argv)
    if args.format not in _FORMATS:
        raise UserError(f"-format {args.format}, allowed: {', '.join(_FORMATS)}")
    if args.int8 and args.format != "openvino":
        raise UserError(f"-int8 goes with -format openvino, not {args.format}")
    if args.int8 and not (args.images or args.data_path):
        raise UserError("-int8 needs images to find ranges on: -data_path DIR, or -images FOLDER")
    if args.num_images < 1:
        raise UserError(f"-num_images is {args.num_images}, allowed: 1 and above")
    return args
