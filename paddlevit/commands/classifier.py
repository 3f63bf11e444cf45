"""The classifier that a command's flags name."""

from __future__ import annotations

import argparse
import sys

from paddlevit.classifier import Classifier
from paddlevit.errors import MissingFileError, UserError
from paddlevit.export import DESCRIPTION_FILE, exported_file
from paddlevit.schema import FLAGS

_IN_THE_DESCRIPTION = ("cfg", "data_path", "num_classes", "image_size", "amp", "weights", "engine")


def open_classifier(args: argparse.Namespace, *, precision: str = "auto") -> Classifier:
    """What -pretrained or -exported names, as the other flags of `flags.add_flags` say. Raises UserError."""
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
