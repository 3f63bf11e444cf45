"""tools/predict.py: the top-k classes of images, seen as evaluation sees them."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TextIO

from paddlevit.commands.classifier import add_flags, open_classifier
from paddlevit.commands.parser import Parser, exit_code
from paddlevit.errors import UserError
from paddlevit.runtime.settings import use_all_cores
from paddlevit.runtime.streams import escaped, only_results, utf8_names

if TYPE_CHECKING:
    import numpy as np

    from paddlevit.classifier import Classifier

_BATCH_SIZE = 32  # a training run's own would be a long wait for the first answer, and memory for nothing


@exit_code
def main(argv: list[str]) -> int:
    """Print the top-k classes of every image that `argv` names; 0, or 2 where one could not be read."""
    args = parse_args(argv)
    use_all_cores()
    with only_results() as out:
        return _predict(args, out)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """The flags of `argv`. Raises UserError."""
    parser = Parser(
        description="Name the most likely classes of images.",
        examples=(
            "-pretrained output/flowers/best.pdparams photo.jpg more_photos -topk 3",
            "-cfg pit_b_224 -pretrained pit_b_224.pdparams -data_path data/imagenet -json photo.jpg",
        ),
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER", help="- reads a list from standard input")
    add_flags(parser, exported=True)
    flag = parser.flag
    flag("topk", type=int, least=1, default=5, help="classes to name for each image (default 5)")
    flag("tta", default="none")
    flag("json", help="print one JSON object a line for each image, and nothing else")
    flag("batch_size", least=1, default=_BATCH_SIZE, help="images at a time (32)")
    flag("num_workers", default=-1, help="decoding threads (default: by the cores)")
    return parser.parse_intermixed_args(argv)


def _predict(args: argparse.Namespace, out: TextIO) -> int:
    from tqdm import tqdm

    from paddlevit.data.sources import find_images

    paths = list(find_images(_named(args.images)))
    if not paths:
        raise UserError("no image is named on standard input")
    classifier = open_classifier(args, precision=args.precision, tta=args.tta)
    write, code = _json if args.json else _text, 0
    for image, found in zip(paths, _guesses(classifier, paths, args)):
        if isinstance(found, UserError):
            message = str(found) if image in str(found) else f"{image}: {found}"
            tqdm.write(f"error: {escaped(message)}", file=sys.stderr)
            code = 2
        else:
            with tqdm.external_write_mode(sys.stderr):  # where the progress bar is
                print(write(image, found, args.tta), file=out, flush=True)
    return code


def _guesses(
    classifier: Classifier, paths: Sequence[str], args: argparse.Namespace
) -> Iterator[list[dict[str, Any]] | UserError]:
    """For every image its top-k classes, or what is wrong with it."""
    import numpy as np

    from paddlevit.training.journal import progress

    def read(path: str) -> np.ndarray | UserError:
        try:
            return classifier.pixels(path)
        except UserError as error:
            return error

    batches = [paths[i : i + args.batch_size] for i in range(0, len(paths), args.batch_size)]
    with ThreadPoolExecutor(max(args.num_workers, 0) or None) as readers:
        ahead = (readers.map(read, batch) for batch in batches)  # map begins at once
        reading = deque(itertools.islice(ahead, 1))
        for _ in progress(batches, len(batches), "batches"):
            reading.extend(itertools.islice(ahead, 1))  # decoded while the model computes
            pixels = list(reading.popleft())
            images = [each for each in pixels if not isinstance(each, UserError)]
            logits = iter(classifier.forward(classifier.normalize(np.stack(images))) if images else ())
            for each in pixels:
                try:
                    yield each if isinstance(each, UserError) else classifier.ranked(next(logits), args.topk)
                except UserError as error:
                    yield error


def _named(words: Sequence[str]) -> Iterator[str]:
    """The words, and in the place of "-" the lines of standard input that are not blank."""
    for word in words:
        if word == "-":
            from paddlevit.data.index import plain_text

            lines = plain_text(sys.stdin.buffer.read(), "standard input").splitlines()
            yield from (os.fsdecode(line) for line in lines if line.strip())
        else:
            yield word


def _json(image: str, found: list[dict[str, Any]], tta: str) -> str:
    classes = [
        {"class": each["index"], "name": each["label"], "probability": round(each["probability"], 6)} for each in found
    ]
    how = {} if tta == "none" else {"tta": tta}
    how |= {key: found[0][key] for key in ("known", "energy") if key in found[0]}
    return json.dumps({"image": utf8_names(image), **how, "classes": classes}, allow_nan=False)


def _text(image: str, found: list[dict[str, Any]], tta: str) -> str:
    lines = [] if found[0].get("known", True) else ["  none of these classes; the closest:"]
    lines += [f"  {100 * each['probability']:6.2f} %  {each['label']}" for each in found]
    return escaped("\n".join([image if tta == "none" else f"{image}  (-tta {tta})", *lines]))
