"""Two tasks of the photographs in scikit-image and scikit-learn: one to pretrain on, and one with few images.

python -m benchmarks.pictures data/pictures
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from paddlevit.commands.parser import Parser, exit_code
from paddlevit.errors import UserError

SIDE = 80  # of a cut as it is saved
MANY = (
    *("brick", "camera", "cell", "clock_motion", "coins", "color", "grass", "gravel", "horse", "hubble_deep_field"),
    *("ihc", "moon", "motorcycle_left", "page", "retina", "text", "flower"),
)
FEW = {"astronaut": "astronaut", "cat": "chelsea", "coffee": "coffee", "rocket": "rocket", "temple": "china"}
QUARTERS = ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, 0.5))
STRIPS = {"train": (0, 2, 3, 5), "val": (1, 4)}  # sixths of the width, so that nothing is in both


def photographs() -> dict[str, Image.Image]:
    """The pictures of both packages by their names. Raises UserError where one is not installed."""
    found = {}
    for package, folder in (("skimage", "data"), ("sklearn", "datasets/images")):
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise UserError("these pictures come with two packages: pip install scikit-image scikit-learn")
        for file in Path(spec.submodule_search_locations[0], folder).iterdir():
            if file.stem in (*MANY, *FEW.values()) and file.suffix in (".png", ".jpg"):
                found[file.stem] = Image.open(file).convert("RGB")
    return found


def write_cut(image: Image.Image, box: tuple[int, int, int, int], rng: np.random.RandomState, file: Path) -> None:
    """Write a square of 40 to 65 pixels from within `box`, with contrast and brightness of its own."""
    side = min(rng.randint(40, 66), box[2] - box[0], box[3] - box[1])
    x, y = rng.randint(box[0], box[2] - side + 1), rng.randint(box[1], box[3] - side + 1)
    cut = image.crop((x, y, x + side, y + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pixels = np.asarray(cut, dtype=float)
    mean = pixels.mean()
    pixels = (pixels - mean) * rng.uniform(0.6, 1.4) + mean + rng.uniform(-40, 40)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, quality=92)


def write_many(folder: Path, images: dict[str, Image.Image]) -> str:
    """A class for each quarter of 17 pictures, 28 cuts to train on and 4 to validate."""
    rng = np.random.RandomState(0)  # whose numbers NumPy will never change
    for name in MANY:
        image = images[name]
        image.thumbnail((700, 700))
        width, height = image.width // 2, image.height // 2
        for i, (x, y) in enumerate(QUARTERS):
            left, top = round(x * image.width), round(y * image.height)
            for k in range(32):
                file = folder / ("train" if k < 28 else "val") / f"{name}_{i}" / f"{k:02d}.jpg"
                write_cut(image, (left, top, left + width, top + height), rng, file)
    classes = len(QUARTERS) * len(MANY)
    return f"{28 * classes} cuts to train on and {4 * classes} to validate, {classes} classes, in {folder}"


def write_few(folder: Path, images: dict[str, Image.Image], each: int, seed: int) -> str:
    """A class for each of five other photographs: `each` cuts to train on, which `seed` chooses, and 60 to validate."""
    for split, count, rng in (("train", each, np.random.RandomState(seed + 1)), ("val", 60, np.random.RandomState(0))):
        for name, photograph in FEW.items():
            image = images[photograph]
            for k in range(count):
                strip = STRIPS[split][k % len(STRIPS[split])]
                box = (strip * image.width // 6, 0, (strip + 1) * image.width // 6, image.height)
                write_cut(image, box, rng, folder / split / name / f"{k:02d}.jpg")
    return f"{each * len(FEW)} cuts to train on and {60 * len(FEW)} to validate, of {', '.join(FEW)}, in {folder}"


@exit_code
def main(argv: list[str]) -> int:
    """Write both tasks into the folder that `argv` names."""
    parser = Parser(description="Write two tasks of photographs: OUT_DIR/many and OUT_DIR/few.")
    parser.add_argument("folder", type=Path, metavar="OUT_DIR")
    parser.flag("images", type=int, default=5, help="a class, in the few (default: 5)")
    parser.flag("seed", type=int, default=0, help="which images these are (default: 0)")
    args = parser.parse_args(argv)
    if args.folder.exists():
        raise UserError(f"{args.folder} is there already: name another folder")
    images = photographs()
    print(write_many(args.folder / "many", images))
    print(write_few(args.folder / "few", images, args.images, args.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
