"""The classifier that a command's flags name, and these flags."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from paddlevit.commands.parser import Parser
from paddlevit.errors import MissingFileError, UserError

if TYPE_CHECKING:
    from paddlevit.classifier import Classifier

_IN_THE_DESCRIPTION = ("cfg", "data_path", "num_classes", "image_size", "amp", "weights", "engine")


def add_flags(parser: Parser, *, exported: bool = False) -> None:
    """The flags that `open_classifier` reads; with `exported` those for an exported model too."""
    flag = parser.flag
    weights = parser.add_mutually_exclusive_group(required=True)
    flag("pretrained", group=weights, metavar="FILE", help="the weights, of any source; hf:OWNER/NAME; a variant")
    if exported:
        flag("exported", group=weights, metavar="DIR", help="folder or file of an exported model")
        flag(
            "engine",
            choices=("auto", "paddle", "openvino", "onnx"),
            help="that -pretrained is compiled for (default paddle: it is not; auto: openvino, on a CPU that has it)",
        )
        flag(
            "precision",
            choices=("auto", "f32", "bf16", "int8"),
            default="auto",
            help="auto (default: as exported, or f32), f32, bf16 with -engine openvino; int8 of an exported model",
        )
    flag("weights", metavar="WHICH", help="model (default) or ema, where -pretrained has both")
    flag("cfg", metavar="FILE", help="yaml file, variant, or a run's config.yaml (default: the one beside the weights)")
    flag("labels", metavar="FILE", help="names of the classes, one a line (default: found beside the weights or data)")
    flag("data_path", metavar="DIR", help="the data set, if its classes have the names")
    flag("num_classes", type=int, help="classes of the model (default: as many as there are names)")
    flag("image_size", type=int, help="side of the square input image")
    flag("device", help="auto (default: a GPU where there is one), gpu, cpu, custom:NAME")
    flag("amp", action="store_true", help="mixed precision")


def open_classifier(args: argparse.Namespace, *, precision: str = "auto") -> Classifier:
    """What -pretrained or -exported names, as the other flags say. Raises UserError."""
    from paddlevit.classifier import Classifier
    from paddlevit.export.description import DESCRIPTION_FILE
    from paddlevit.export.read import exported_file
    from paddlevit.schema import FLAGS

    flags = ((flag, getattr(args, flag, None)) for flag in _IN_THE_DESCRIPTION)
    given = {flag: value for flag, value in flags if value not in (None, False)}
    options = {"device": args.device or "auto", "precision": precision, "labels": args.labels}
    options["tta"] = getattr(args, "tta", "none")
    exported = getattr(args, "exported", None)
    if exported:
        for flag in given:
            raise UserError(f"-{flag} cannot be combined with -exported: its {DESCRIPTION_FILE} defines it")
        file = exported_file(exported)
        if file is None:
            raise MissingFileError(f"-exported {exported}: there is no {DESCRIPTION_FILE} that export_model.py wrote")
        classifier = Classifier(file, **options)
        if (precision, classifier.precision) != ("auto", "f32"):
            print(f"{classifier.name} runs in {classifier.precision}", file=sys.stderr)
        return classifier
    cfg, engine = given.pop("cfg", None), given.pop("engine", "paddle")
    opts = [word for flag, value in given.items() for word in (FLAGS[flag], value)]
    classifier = Classifier(args.pretrained, cfg, opts=[*opts, *getattr(args, "opts", [])], engine=engine, **options)
    if engine != "paddle":
        print(f"{classifier.name} runs by {classifier.engine} in {classifier.precision}", file=sys.stderr)
    if not classifier.class_names:
        print("no names of classes found, showing their indices (-labels FILE)", file=sys.stderr)
    return classifier
