"""tools/visualize_attention.py: where a model looks, as heat over the image."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from paddlevit.commands.classifier import add_flags, open_classifier
from paddlevit.commands.parser import Parser, exit_code
from paddlevit.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from paddlevit.attention_maps.picture import Captioned

_SHOWS = {  # what the picture of each method is, in words; {} is a class
    "grad-cam": "what speaks for {}",
    "grad-rollout": "what speaks for {}",
    "attention": "where attention looks in one layer",
    "rollout": "where attention looks through all layers",
    "features": "feature maps of all stages",
    "all": "everything there is to see",
}
_OF_A_CLASS = tuple(method for method, shown in _SHOWS.items() if "{}" in shown)


@exit_code
def main(argv: list[str]) -> None:
    """Write the picture that `argv` asks for and say what it shows."""
    args = parse_args(argv)
    from paddlevit.attention_maps import heat_map, methods
    from paddlevit.attention_maps.picture import sheet
    from paddlevit.commands.view import View, features, heats

    if args.amp:
        raise UserError("-amp: explain runs in float32; drop -amp")
    classifier = open_classifier(args)
    if classifier.model is None:
        raise UserError(f"-pretrained {args.pretrained} is exported, and has no gradients: name the weights")
    view = View(classifier, args.image)
    label = int(view.probabilities.argmax())
    if args.of is not None:
        label = _label(args.of, classifier.class_names, len(view.probabilities))
    method = args.method or methods(view.model)[0]
    name = classifier.label(label)
    found = f"{name} ({100 * view.probabilities[label]:.1f} %)"
    if method in ("all", "features"):
        rows: list[list[Captioned]] = [[(f"{classifier.name}: {found}", None)]]
        if method == "all":
            rows += heats(view, label)
        picture = sheet(rows + features(view))
    else:
        of = label if method in _OF_A_CLASS else None
        heat = heat_map(view.model, view.images, method, class_index=of, stage=args.stage)[0]
        if not heat.any():
            print(f"no evidence for {name} in this image", file=sys.stderr)
        picture = view.over(heat)
    _save(picture, args.output)
    shown = _SHOWS[method].format(name)
    print(f"{args.image}: {found}{'' if view.known else '; by its energy it is none of these classes'}")
    print(f"written to {args.output}: {shown} ({method}), {picture.width} x {picture.height} pixels")
    if args.method is None:
        print("other methods show other things: -method all draws them side by side")


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """The flags of `argv`. Raises UserError."""
    parser = Parser(
        description="Show what a model looks at.",
        examples=(
            "-pretrained output/flowers/best.pdparams -image photo.jpg -output heat.png",
            "-pretrained output/flowers/best.pdparams -image photo.jpg -output all.png -method all",
        ),
    )
    add_flags(parser)
    flag = parser.flag
    flag("image", required=True, metavar="FILE", help="the image")
    flag("output", type=Path, metavar="PNG", help="the picture to write (default: the image's name with -heat.png)")
    flag("method", choices=tuple(_SHOWS), help="default: grad-rollout for PiT, grad-cam for the others")
    flag("class", dest="of", metavar="CLASS", help="grad-...: name or number of the class (default: the top-1 class)")
    flag("stage", type=int, metavar="N", help="grad-cam, attention: the stage, or HVT's block (default: the last)")
    args = parser.parse_args(argv)
    args.output = args.output or Path(f"{Path(args.image).stem}-heat.png")
    if Path(args.image).is_dir():
        raise UserError(f"-image {args.image} is a folder: name one image")
    if args.stage is not None and args.method not in (None, "grad-cam", "attention"):
        raise UserError(f"-stage {args.stage}: only grad-cam and attention show one stage, not {args.method}")
    if args.of is not None and args.method not in (None, "all", *_OF_A_CLASS):
        raise UserError(f"-class {args.of}: {' and '.join(_OF_A_CLASS)} show a class, not {args.method}")
    return args


def _label(of: str, names: Sequence[str], num_classes: int) -> int:
    """The class that a name or a number means."""
    if of in names:
        return list(names).index(of)
    if of.isdecimal() and int(of) < num_classes:
        return int(of)
    raise UserError(f"-class {of}, allowed: a number from 0 to {num_classes - 1}, or a class's name")


def _save(picture: Image.Image, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    except ValueError:  # a suffix that Pillow does not know
        raise UserError(f"-output {path}: unknown file extension '{path.suffix}', allowed: .png, .jpg, ...") from None
    except OSError as error:
        raise UserError(f"-output {path}: {error}") from None
