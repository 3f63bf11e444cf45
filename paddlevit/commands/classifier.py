"""The classifier that a command's flags name, and these flags."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from paddlevit.commands.parser import Parser
from paddlevit.schema import FLAGS

if TYPE_CHECKING:
    from paddlevit.classifier import Classifier


def add_flags(parser: Parser, *, exported: bool = False) -> None:
    """The flags that `open_classifier` reads; with `exported` those for an exported model too."""
    what = "weights of any source; hf:OWNER/NAME; a variant"
    parser.flag("pretrained", required=True, help=f"{what}; an exported model's folder or file" if exported else what)
    if exported:
        parser.flag("engine", default="paddle")
        parser.flag("precision", default="auto")
    parser.flag("device", default="auto")
    parser.flags("weights cfg labels data_path num_classes image_size amp")


def open_classifier(args: argparse.Namespace, **options: Any) -> Classifier:
    """What -pretrained names, as the other flags say; `options` are further ones of `Classifier`. Raises UserError."""
    from paddlevit.classifier import Classifier

    keys = ("weights", "data_path", "num_classes", "image_size", "amp")
    given = {FLAGS[key]: getattr(args, key) for key in keys if getattr(args, key) not in (None, False)}
    opts = [*(word for pair in given.items() for word in pair), *getattr(args, "opts", ())]
    options |= {"device": args.device, "labels": args.labels, "engine": getattr(args, "engine", "paddle")}
    classifier = Classifier(args.pretrained, args.cfg, opts=opts, **options)
    if (classifier.engine, classifier.precision) != ("paddle", "f32"):
        print(f"{classifier.name} runs by {classifier.engine} in {classifier.precision}", file=sys.stderr)
    if not classifier.class_names:
        print("no names of classes found, showing their indices (-labels FILE)", file=sys.stderr)
    return classifier
