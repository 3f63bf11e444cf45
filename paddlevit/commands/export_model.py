"""tools/export_model.py: a model with its weights for deployment, compared with what it was exported from."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from paddlevit.commands.flags import add_flags
from paddlevit.commands.parser import Parser, exit_code
from paddlevit.errors import UserError

_PRECISIONS = {"paddle": ("f32",), "onnx": ("f32",), "openvino": ("f32", "bf16", "int8")}  # by format
_NUM_IMAGES = 512


@exit_code
def main(argv: list[str]) -> int:
    """Export the model that `argv` names, run both on images and print the difference; the exit code."""
    args = parse_args(argv)
    from paddlevit.commands.classifier import open_classifier
    from paddlevit.commands.comparison import calibration_images, compare, comparison_images
    from paddlevit.export import DESCRIPTION_FILE, complete_in, describe, export, file_name, open_exported, with_file

    classifier = open_classifier(args)
    if classifier.model is None:
        raise UserError(f"-pretrained {args.pretrained} is exported already: name the weights")
    data, folder = classifier.config.DATA, Path(args.output)
    name = file_name(args.format, int8=args.precision == "int8")
    description = describe(classifier.config, classifier.model, classifier.class_names)
    description = with_file(description, folder, name, args.precision)
    calibration = calibration_images(classifier, args) if args.precision == "int8" else None
    images, where = comparison_images(classifier, args)
    with complete_in(folder) as scratch:
        shape = [data.IMAGE_CHANNELS, data.IMAGE_SIZE, data.IMAGE_SIZE]
        path = export(classifier.model, shape, args.format, scratch, calibration=calibration)
        compared = compare(classifier, open_exported(path, precision=args.precision), images)
        (scratch / DESCRIPTION_FILE).write_text(json.dumps(description, indent=1, allow_nan=False) + "\n", "utf-8")
    print(f"written to {folder / name}; how to use it: {folder / DESCRIPTION_FILE}\ncompared on {where}:\n{compared}")
    return 0


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """The flags of `argv`. Raises UserError."""
    parser = Parser(
        description="Export a model for deployment.",
        usage="%(prog)s -pretrained FILE -format FORMAT -output DIR [flags]",
        examples=(
            "-pretrained output/flowers/best.pdparams -format onnx -output exported",
            "-cfg pit_s_224 -pretrained pit_s_224.pdparams -format openvino -output exported -data_path data/imagenet",
        ),
    )
    add_flags(parser)
    flag = parser.flag
    flag("format", default="paddle", choices=tuple(_PRECISIONS), help="paddle (default), onnx or openvino")
    flag("output", required=True, metavar="DIR", help="folder to write into")
    flag(
        "precision",
        default="f32",
        choices=_PRECISIONS["openvino"],
        help="what it is to run in, and is compared in: f32 (default); for openvino bf16, or int8 with ranges found on "
        "-images or -data_path",
    )
    flag("int8", dest="precision", action="store_const", const="int8", help="the same as -precision int8")
    flag("images", nargs="+", metavar="IMAGE_OR_FOLDER", help="compare on these, not on -data_path or random ones")
    flag("num_images", type=int, default=_NUM_IMAGES, help=f"to compare on, and for int8, at most ({_NUM_IMAGES})")
    flag("opts", nargs="*", action="extend", default=[], metavar="KEY VALUE", help="any keys of the configuration")
    args = parser.parse_args(argv)
    if args.precision not in _PRECISIONS[args.format]:
        allowed = ", ".join(_PRECISIONS[args.format])
        raise UserError(f"-precision {args.precision} of -format {args.format}, allowed: {allowed} (others: openvino)")
    if args.precision == "int8" and not (args.images or args.data_path):
        raise UserError("-precision int8 needs images to find ranges on: -data_path DIR, or -images FOLDER")
    if args.num_images < 1:
        raise UserError(f"-num_images is {args.num_images}, allowed: 1 and above")
    return args
