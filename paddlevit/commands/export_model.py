"""tools/export_model.py: a model with its weights for deployment, compared with what it was exported from."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from paddlevit.commands.classifier import add_flags, open_classifier
from paddlevit.commands.parser import Parser, exit_code
from paddlevit.errors import UserError

_PRECISIONS = {"paddle": ("f32",), "onnx": ("f32",), "openvino": ("f32", "bf16", "int8", "auto")}  # by format
_PICTURE = "precisions.svg"  # of -precision auto
_NUM_IMAGES = 512
_MAX_DROP = 0.1


@exit_code
def main(argv: list[str]) -> None:
    """Export the model that `argv` names, run both on images and print the difference."""
    args = parse_args(argv)
    from paddlevit.commands.precisions import as_text, exported_as_asked, fastest_within
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
        export = fastest_within if args.precision == "auto" else exported_as_asked
        taken = export(classifier, args, scratch)
        described = with_file(described, folder, taken.path.name, taken.precision, taken.measured)
        (scratch / DESCRIPTION_FILE).write_text(json.dumps(described, indent=1, allow_nan=False) + "\n", "utf-8")
        if taken.measured:
            write_precisions(scratch / _PICTURE, taken.measured, classifier.config.MODEL.NAME)
    print(f"written to {folder / taken.path.name}; how to use it: {folder / DESCRIPTION_FILE}")
    print(f"compared on {taken.where}:\n{taken.compared}")
    if taken.measured:
        print(f"{as_text(taken.measured)}\npicture: {folder / _PICTURE}")


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """The flags of `argv`. Raises UserError."""
    parser = Parser(
        description="Export a model for deployment.",
        examples=(
            "-pretrained output/flowers/best.pdparams -format onnx -output exported",
            "-cfg pit_s_224 -pretrained pit_s_224.pdparams -format openvino -output exported -data_path data/imagenet",
        ),
    )
    add_flags(parser)
    flag = parser.flag
    formats = "paddle (default), onnx, or openvino (default with another -precision than f32)"
    flag("format", choices=tuple(_PRECISIONS), help=formats)
    flag("output", required=True, metavar="DIR", help="folder to write into")
    precisions = "to run in: f32 (default); for openvino bf16, int8, or auto: the fastest that keeps top-1"
    flag("precision", default="f32", choices=_PRECISIONS["openvino"], help=precisions)
    flag("max_drop", type=float, least=0, metavar="P", help=f"top-1 points that -precision auto may lose ({_MAX_DROP})")
    images = "compare on these, not on -data_path or random ones; with int8 and auto also for its ranges"
    flag("images", nargs="+", metavar="IMAGE_OR_FOLDER", help=images)
    flag("num_images", type=int, least=1, default=_NUM_IMAGES, help=f"at most, to compare and for int8 ({_NUM_IMAGES})")
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
