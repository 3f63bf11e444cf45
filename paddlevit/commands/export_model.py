"""tools/export_model.py: a model with its weights for deployment, compared with what it was exported from."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Callable

from paddlevit.commands.classifier import add_flags, open_classifier
from paddlevit.commands.parser import Parser, exit_code
from paddlevit.errors import UserError

if TYPE_CHECKING:
    from paddlevit.classifier import Classifier
    from paddlevit.commands.precisions import Taken

_PRECISIONS = {"paddle": ("f32",), "onnx": ("f32",), "openvino": ("f32", "bf16", "int8", "auto")}  # by format
_PICTURE = "precisions.svg"  # of -precision auto
_NUM_IMAGES = 512
_MAX_DROP = 0.1


@exit_code
def main(argv: list[str]) -> int:
    """Export the model that `argv` names, run both on images and print the difference; the exit code."""
    args = parse_args(argv)
    from paddlevit.commands.precisions import as_text, fastest_within
    from paddlevit.export.description import DESCRIPTION_FILE, describe, with_file
    from paddlevit.export.write import complete_in, file_name
    from paddlevit.report.precisions import write_precisions

    classifier, folder = open_classifier(args), Path(args.output)
    if classifier.model is None:
        raise UserError(f"-pretrained {args.pretrained} is exported already: name the weights")
    described = describe(classifier.config, classifier.model, classifier.class_names)
    if classifier.calibration.num_images:
        described["calibration"] = classifier.calibration._asdict()
    with_file(described, folder, file_name(args.format, int8=args.precision == "int8"), args.precision)  # before work
    with complete_in(folder) as scratch:
        taken = (fastest_within if args.precision == "auto" else _export)(classifier, args, scratch)
        described = with_file(described, folder, taken.path.name, taken.precision, taken.measured)
        (scratch / DESCRIPTION_FILE).write_text(json.dumps(described, indent=1, allow_nan=False) + "\n", "utf-8")
        if taken.measured:
            write_precisions(scratch / _PICTURE, taken.measured, classifier.config.MODEL.NAME)
    print(f"written to {folder / taken.path.name}; how to use it: {folder / DESCRIPTION_FILE}")
    print(f"compared on {taken.where}:\n{taken.compared}")
    if taken.measured:
        print(f"{as_text(taken.measured)}\npicture: {folder / _PICTURE}")
    return 0


def _export(classifier: Classifier, args: argparse.Namespace, folder: Path) -> Taken:
    from paddlevit.commands.comparison import calibration_images, compare, comparison_images
    from paddlevit.commands.precisions import Taken
    from paddlevit.export import export, open_exported

    calibration = calibration_images(classifier, args) if args.precision == "int8" else None
    images, where = comparison_images(classifier, args)
    path = export(classifier.model, classifier.image_shape, args.format, folder, calibration=calibration)
    (compared,) = compare(classifier, [open_exported(path, precision=args.precision)], images)
    return Taken(path, args.precision, compared, where)


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
    _add_flags(parser.flag)
    parser.opts()
    args = parser.parse_args(argv)
    args.format = args.format or ("paddle" if args.precision == "f32" else "openvino")
    if args.precision not in _PRECISIONS[args.format]:
        allowed = ", ".join(_PRECISIONS[args.format])
        raise UserError(f"-precision {args.precision} of -format {args.format}, allowed: {allowed} (others: openvino)")
    if args.precision == "int8" and not (args.images or args.data_path):
        raise UserError("-precision int8 needs images to find ranges on: -data_path DIR, or -images FOLDER")
    if args.precision == "auto" and not args.data_path:
        raise UserError("-precision auto needs validation images with labels to measure on: -data_path DIR")
    if args.max_drop is not None and args.precision != "auto":
        raise UserError(f"-max_drop {args.max_drop} of -precision {args.precision}: it is for -precision auto")
    args.max_drop = _MAX_DROP if args.max_drop is None else args.max_drop
    return args


def _add_flags(flag: Callable[..., None]) -> None:
    flag(
        "format",
        choices=tuple(_PRECISIONS),
        help="paddle (default), onnx, or openvino (default with another -precision than f32)",
    )
    flag("output", required=True, metavar="DIR", help="folder to write into")
    flag(
        "precision",
        default="f32",
        choices=_PRECISIONS["openvino"],
        help="what it is to run in, and is compared in: f32 (default); for openvino bf16, int8 with ranges found on "
        "-images or -data_path, or auto: the fastest on this processor that keeps the top-1 on -data_path",
    )
    flag("max_drop", type=float, least=0, metavar="P", help=f"top-1 points that -precision auto may lose ({_MAX_DROP})")
    flag("int8", dest="precision", action="store_const", const="int8", help="the same as -precision int8")
    flag(
        "images",
        nargs="+",
        metavar="IMAGE_OR_FOLDER",
        help="compare on these, not on -data_path or random ones; with auto only for the ranges of int8",
    )
    flag("num_images", type=int, least=1, default=_NUM_IMAGES, help=f"at most, to compare and for int8 ({_NUM_IMAGES})")
