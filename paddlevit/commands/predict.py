"""tools/predict.py: the most likely classes of images, seen as evaluation sees them."""

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Callable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import paddle
import paddle.nn.functional as F
from paddle import Tensor
from tqdm import tqdm
from yacs.config import CfgNode

from paddlevit import runtime
from paddlevit.commands.parser import Parser, exit_code
from paddlevit.config import get_config, update_config, with_values
from paddlevit.data import EvalLoader, build_file_loader, open_source
from paddlevit.data.class_names import CLASS_NAMES_FILE, imagenet_names, read_class_names
from paddlevit.data.files import READ, find_images
from paddlevit.errors import MissingFileError, UserError
from paddlevit.journal import progress
from paddlevit.models import build_model
from paddlevit.weights import load_weights

Logits = Callable[[Tensor], Tensor]  # images float32 [N, C, H, W] -> [N, classes]

_BATCH_SIZE = 32  # a training run's own would be a long wait for the first answer, and memory for nothing
_BROKEN_PIPE = 141


class Guess(NamedTuple):
    """A class and how likely it is, 0 to 1."""

    label: int
    probability: float


@exit_code
def main(argv: List[str]) -> int:
    """Print the likely classes of every image that `argv` names; 0, or 2 where there was one that cannot be read."""
    args = parse_args(argv)
    paths = list(find_images(_named(args.images)))
    if not paths:
        raise UserError("no image is named on standard input")
    config, names = _configure(args, len(paths))
    runtime.setup(config.DEVICE, config.SEED)
    try:
        return _predict(build_logits(config), build_file_loader(config, paths), args=args, names=names)
    except BrokenPipeError:  # who reads has enough, as head does; at its end Python would write once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE


def build_logits(config: CfgNode) -> Logits:
    """The network of `config` with the weights that it names, ready to evaluate."""
    model = build_model(config)
    load_weights(model, config.MODEL.PRETRAINED)
    model.eval()

    @paddle.no_grad()
    def logits(images: Tensor) -> Tensor:
        with paddle.amp.auto_cast(enable=config.AMP, dtype=config.AMP_DTYPE, level=config.AMP_OPT_LEVEL):
            return model(images)

    return logits


def guesses(logits: Logits, loader: EvalLoader, topk: int) -> Iterator[Optional[List[Guess]]]:
    """For each image of `loader`, in order, its `topk` likely classes (all, where there are fewer), the likeliest
    first; None for one that cannot be read.
    """
    for images, labels in progress(loader, len(loader), "images"):
        probabilities = F.softmax(logits(images).astype("float32"))
        best, classes = (part.tolist() for part in paddle.topk(probabilities, min(topk, probabilities.shape[1])))
        for row, label in enumerate(labels.tolist()):
            yield [Guess(*pair) for pair in zip(classes[row], best[row])] if label == READ else None


def find_class_names(config: CfgNode, run_folders: Sequence[Path]) -> Sequence[str]:
    """The names that a training run has saved in one of `run_folders`, or else those of the data in DATA.DATA_PATH, or
    ImageNet's, if its file of names is there; both only where there are as many as the network has classes. Or none.
    """
    for folder in run_folders:
        names = read_class_names(folder / CLASS_NAMES_FILE)
        if names is not None:
            return names
    for split in ("val", "train"):
        with contextlib.suppress(UserError):
            names = open_source(config, split).class_names
            if len(names) == config.MODEL.NUM_CLASSES:
                return names
    names = list(imagenet_names(Path(config.DATA.DATA_PATH).expanduser()).values())
    return names if len(names) == config.MODEL.NUM_CLASSES else []


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """The flags of `argv`. Raises UserError."""
    parser = Parser(description="Say what is on images.")
    parser.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER", help="- reads a list from standard input")
    flag = parser.flag
    flag("cfg", metavar="FILE", help="yaml file, variant, or a run's config.yaml (default: the one beside the weights)")
    flag("pretrained", required=True, metavar="FILE", help="the weights; of any source")
    flag("topk", type=int, default=5, help="classes to name for each image (default 5)")
    flag("labels", metavar="FILE", help="names of the classes, one a line (default: found beside the weights or data)")
    flag("json", action="store_true", help="print one JSON object a line for each image")
    flag("data_path", metavar="DIR", help="the data set, if its classes have the names")
    flag("num_classes", type=int, help="classes of the network (default: as many as there are names)")
    flag("image_size", type=int, help="side of the square input image")
    flag("batch_size", dest="batch_size_eval", metavar="N", type=int, default=_BATCH_SIZE, help="images at a time (32)")
    flag("num_workers", type=int, help="decoding processes (-1: chosen by the cores)")
    flag("device", help="auto (default: a GPU where there is one), gpu or cpu")
    flag("amp", action="store_true", help="mixed precision")
    args = parser.parse_intermixed_args(argv)
    if args.topk < 1:
        raise UserError(f"-topk is {args.topk}, allowed: 1 and above")
    return args


def _named(words: Sequence[str]) -> Iterator[str]:
    """The words, and in the place of "-" the lines of standard input that are not blank."""
    for word in words:
        if word == "-":
            lines = sys.stdin.buffer.read().splitlines()
            yield from (os.fsdecode(line) for line in lines if line.strip())
        else:
            yield word


def _configure(args: argparse.Namespace, num_images: int) -> Tuple[CfgNode, Sequence[str]]:
    folder = Path(args.pretrained).parent
    if args.cfg is None:
        args.cfg = str(folder / "config.yaml")
        if not Path(args.cfg).is_file():
            raise UserError(f"-cfg FILE is missing, and there is no {args.cfg} of a run beside the weights")
    config = update_config(get_config(), args)
    if num_images <= config.DATA.BATCH_SIZE_EVAL:
        config = with_values(config, {"DATA.NUM_WORKERS": 0})  # with one batch there is nothing to do in advance
    if args.labels:
        names = _given(Path(args.labels), config)
    else:
        folders = [folder, Path(args.cfg).parent] if Path(args.cfg).is_file() else [folder]
        names = find_class_names(config, folders)
    if names and config.DATA.INFER_NUM_CLASSES:
        config = with_values(config, {"MODEL.NUM_CLASSES": len(names), "DATA.INFER_NUM_CLASSES": False})
    if not config.MODEL.NUM_CLASSES:
        raise UserError("MODEL.NUM_CLASSES is 0: a network without a head predicts nothing")
    if not names:
        print("the classes have no names here (-labels FILE): these are their numbers", file=sys.stderr)
    return config, names


def _given(file: Path, config: CfgNode) -> List[str]:
    names = read_class_names(file)
    if names is None:
        raise MissingFileError(f"-labels {file}: there is no such file")
    if len(names) != config.MODEL.NUM_CLASSES and not config.DATA.INFER_NUM_CLASSES:
        raise UserError(
            f"-labels {file} has {len(names)} names, but the network has {config.MODEL.NUM_CLASSES} classes "
            "(MODEL.NUM_CLASSES)"
        )
    return names


def _predict(logits: Logits, loader: EvalLoader, *, args: argparse.Namespace, names: Sequence[str]) -> int:
    code = 0
    for i, found in enumerate(guesses(logits, loader, args.topk)):
        if found is None:
            tqdm.write(f"error: {_why(loader, i)}", file=sys.stderr)
            code = 2
        else:
            write = _json if args.json else _text
            tqdm.write(write(loader.source.name(i), found, names), file=sys.stdout)
        sys.stdout.flush()
    return code


def _why(loader: EvalLoader, i: int) -> str:
    try:
        loader.source.image(i)
    except UserError as error:
        return str(error)
    return f"{loader.source.name(i)} could not be read at first"


def _json(image: str, found: Sequence[Guess], names: Sequence[str]) -> str:
    classes = [
        {"class": label, "name": _name(label, names), "probability": round(probability, 6)}
        for label, probability in found
    ]
    return json.dumps({"image": image, "classes": classes})


def _text(image: str, found: Sequence[Guess], names: Sequence[str]) -> str:
    lines = [f"  {100 * probability:6.2f} %  {_name(label, names)}" for label, probability in found]
    text = image.encode("utf-8", "backslashreplace").decode("utf-8")  # a file's name need not be text
    return "\n".join([text, *lines])


def _name(label: int, names: Sequence[str]) -> str:
    return names[label] if label < len(names) else str(label)
