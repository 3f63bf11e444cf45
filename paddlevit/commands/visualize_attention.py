"""tools/visualize_attention.py: what a network looks at, over the image that it looks at."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
from PIL import Image
from yacs.config import CfgNode

from paddlevit.attention_maps import class_attention, feature_maps, heat_map, methods, overlay
from paddlevit.attention_maps.heat import OF_A_CLASS
from paddlevit.attention_maps.picture import Captioned, fitted, sheet, tiles
from paddlevit.commands.classifier import add_flags, build_classifier, configure, name_of
from paddlevit.commands.parser import Parser, exit_code
from paddlevit.config import with_values
from paddlevit.data import build_file_loader
from paddlevit.data.transforms import build_eval_transform
from paddlevit.errors import UserError
from paddlevit.runtime import process

_SHOWS = {  # what the picture of each method is, in words; {} is a class
    "grad-cam": "what speaks for {}",
    "grad-rollout": "what speaks for {}",
    "attention": "where attention looks in one layer",
    "rollout": "where attention looks through all layers",
    "features": "feature maps of all stages",
    "all": "everything there is to see",
}
_SIDE, _SMALL = 240, 96  # longer side of the pictures of a sheet, in pixels
_CHANNELS = 8


class View:
    """A network and the image that it looks at."""

    def __init__(self, config: CfgNode, path: str, names: Sequence[str]) -> None:
        loader = build_file_loader(with_values(config, {"DATA.NUM_WORKERS": 0}), [path])
        self.image = loader.source.image(0)
        self.box = build_eval_transform(config).source_box(self.image.size)
        self.images, _ = next(iter(loader))
        self.model = build_classifier(config, names)
        with paddle.no_grad():
            self.probabilities = F.softmax(self.model(self.images).astype("float32"))[0].numpy()

    def over(self, heat: np.ndarray, side: int | None = None) -> Image.Image:
        """The image with `heat` [h, w] over it, at its own size or with its longer side at `side`."""
        image, box = (self.image, self.box) if side is None else fitted(self.image, self.box, side)
        return overlay(image, heat, box)


@exit_code
def main(argv: list[str]) -> int:
    """Write the picture that `argv` asks for and say of what it is; 0."""
    args = parse_args(argv)
    config, names = configure(args)
    if config.AMP:
        raise UserError("-amp: what a network looks at is found in full precision")
    process.setup(config.DEVICE, config.SEED)
    view = View(config, args.image, names)
    label = int(view.probabilities.argmax())
    if args.of is not None:
        label = _label(args.of, names, len(view.probabilities))
    method = args.method or methods(view.model)[0]
    found = f"{name_of(label, names)} ({100 * view.probabilities[label]:.1f} %)"
    if method in ("all", "features"):
        rows: list[list[Captioned]] = [[(f"{config.MODEL.NAME}: {found}", None)]]
        if method == "all":
            rows += _heats(view, label)
        picture = sheet(rows + _features(view))
    else:
        of = label if method in OF_A_CLASS else None
        heat = heat_map(view.model, view.images, method, class_index=of, stage=args.stage)[0]
        if not heat.any():
            print(f"nothing speaks for {name_of(label, names)} there", file=sys.stderr)
        picture = view.over(heat)
    _save(picture, Path(args.output))
    shown = _SHOWS[method].format(name_of(label, names))
    print(f"{args.image}: {found}")
    print(f"written to {args.output}: {shown} ({method}), {picture.width} x {picture.height} pixels")
    return 0


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """The flags of `argv`. Raises UserError."""
    parser = Parser(description="Show what a network looks at.")
    add_flags(parser)
    flag = parser.flag
    flag("image", required=True, metavar="FILE", help="the image")
    flag("output", required=True, metavar="PNG", help="the picture to write")
    flag("method", help=f"{', '.join(_SHOWS)} (default: grad-rollout for PiT, grad-cam for the others)")
    flag("class", dest="of", metavar="CLASS", help="grad-...: name or number of the class (default: the likeliest)")
    flag("stage", type=int, metavar="N", help="grad-cam, attention: the stage, or HVT's block (default: the last)")
    args = parser.parse_args(argv)
    if args.method not in (None, *_SHOWS):
        raise UserError(f"-method {args.method}, allowed: {', '.join(_SHOWS)}")
    if Path(args.image).is_dir():
        raise UserError(f"-image {args.image} is a folder: name one image")
    if args.stage is not None and args.method not in (None, "grad-cam", "attention"):
        raise UserError(f"-stage {args.stage}: only grad-cam and attention show one stage, not {args.method}")
    if args.of is not None and args.method not in (None, "all", *OF_A_CLASS):
        raise UserError(f"-class {args.of}: {' and '.join(OF_A_CLASS)} show a class, not {args.method}")
    return args


def _label(of: str, names: Sequence[str], num_classes: int) -> int:
    """The class that a name or a number means."""
    if of in names:
        return list(names).index(of)
    if of.isdecimal() and int(of) < num_classes:
        return int(of)
    raise UserError(f"-class {of}, allowed: a number from 0 to {num_classes - 1}, or a class's name")


def _heats(view: View, label: int) -> list[list[Captioned]]:
    """The image and every heat map that the network has; below them the heads of the last attention."""
    image = view.over(np.zeros([1, 1]), _SIDE)
    row: list[Captioned] = [("what the network sees", image)]
    for method in methods(view.model):
        of = label if method in OF_A_CLASS else None
        heat = heat_map(view.model, view.images, method, class_index=of)[0]
        row.append((method if heat.any() else f"{method}: nothing", view.over(heat, _SIDE)))
    if len(row) == 2:
        return [row]
    heads = class_attention(view.model, view.images)[0]
    pictures = tiles(heads, len(heads), _SMALL)
    return [row, _captioned(f"attention of the {len(heads)} heads of the last layer", pictures)]


def _features(view: View) -> list[list[Captioned]]:
    """For every stage and resolution, the channels that vary most."""
    rows = []
    for name, maps in feature_maps(view.model, view.images).items():
        for x in maps:
            _, channels, height, width = x.shape
            caption = f"{name}: {min(channels, _CHANNELS)} of {channels} channels, {height} x {width}"
            rows.append(_captioned(caption, tiles(x[0], _CHANNELS, _SMALL)))
    return rows


def _captioned(caption: str, pictures: Sequence[Image.Image]) -> list[Captioned]:
    return [(caption, pictures[0]), *(("", picture) for picture in pictures[1:])]


def _save(picture: Image.Image, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    except ValueError:  # a suffix that Pillow does not know
        raise UserError(f"-output {path}: unknown file extension '{path.suffix}', allowed: .png, .jpg, ...") from None
    except OSError as error:
        raise UserError(f"-output {path}: {error}") from None
