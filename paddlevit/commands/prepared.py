"""What each command of prepare_data.py does; it returns what was done, in words."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

import numpy as np
import paddle
from tqdm import tqdm

from paddlevit.classifier import Classifier
from paddlevit.data import num_workers, prepare
from paddlevit.data.audit import audit
from paddlevit.data.cifar import open_cifar
from paddlevit.data.decode import decode, thumbnail
from paddlevit.data.sources import SPLITS, Source, open_imagenet, read_image
from paddlevit.errors import UserError
from paddlevit.report.audit import headline, write_audit
from paddlevit.runtime.files import write_text

_MOST_NAMED = 5


def _split(args: argparse.Namespace) -> str:
    if args.val is not None and args.folds is not None:
        raise UserError("-val and -folds exclude each other: a fold of K validates with 1 / K")
    if args.val is not None and not 0 < args.val < 1:
        raise UserError(f"-val must be above 0 and below 1, got {args.val}")
    return prepare.write_splits(
        args.folder,
        args.output or args.folder,
        val=args.val or 0.2,
        folds=args.folds,
        group_by=args.group_by,
        seed=args.seed,
        force=args.force,
    )


def _zip(args: argparse.Namespace) -> str:
    bar = functools.partial(tqdm, unit="image", disable=None)
    return prepare.write_zips(args.folder, args.output or args.folder, bar=bar, force=args.force)


def _check(args: argparse.Namespace) -> str:
    lines, bad = [], []
    for split in SPLITS:
        source = _source(args.folder, args.dataset, split)
        if source is not None:
            own = _bad_images(source, split, num_workers(args.workers, 1))
            lines.append(f"{_described(source, split)}, {len(own)} of them cannot be read")
            bad += own
    report = "\n".join(lines)
    if not bad:
        return report
    args.output.write_text("".join(f"{message}\n" for message in bad), encoding="utf-8", errors="surrogateescape")
    shown = "\n".join(bad[:_MOST_NAMED])
    print(report)
    raise UserError(f"{len(bad)} images cannot be read; {args.output} lists them, beginning with\n{shown}")


def _audit(args: argparse.Namespace) -> str:
    output = args.output or Path(f"{args.folder.resolve()}-audit")
    prepare.refuse_filled(output, args.force)
    if output.resolve() == args.folder.resolve():
        raise UserError(f"-output {output} holds the data, which stays as it is: name another folder")
    findings, texts = audit(
        args.folder,
        num_workers=num_workers(args.workers, 1),
        seed=args.seed,
        bar=functools.partial(tqdm, disable=None),
        features=_features(args.pretrained, args.cfg) if args.pretrained else None,
    )
    output.mkdir(parents=True, exist_ok=True)
    prepare.write_texts(output, texts)
    write_text(output / "audit.json", json.dumps(findings, indent=1, ensure_ascii=False))
    write_audit(output / "audit.html", args.folder, findings, lambda path: thumbnail(decode(read_image(path), path)))
    lines = [f"{what:20}{count:9,}  {detail}" for what, count, detail in headline(findings)]
    return "\n".join([*lines, f"{output}/audit.html shows them; -data_path {output} trains on the lists beside it"])


def _features(weights: str, cfg: str | None) -> Callable[[Sequence[bytes]], np.ndarray]:
    """What the head of these weights sees of image files, or the logits of an exported model."""
    classifier = Classifier(weights, cfg)

    def features(files: Sequence[bytes]) -> np.ndarray:
        images = classifier.normalize(np.stack([classifier.pixels(file) for file in files]))
        if classifier.model is None:
            return classifier.forward(images)
        with paddle.no_grad():
            return classifier.model.forward_features(images).flatten(1).numpy()

    return features


def _source(folder: Path, dataset: str, split: str) -> Source | None:
    """A split of the data set; None where it has the other one only, as ImageNet's validation images."""
    if dataset.startswith("cifar"):
        return open_cifar(folder, dataset, split=split)
    there = [any((folder / file).exists() for file in (f"{name}_list.txt", f"{name}_map.txt", name)) for name in SPLITS]
    if split == SPLITS[0] and there == [False, True]:
        return None
    return open_imagenet(folder, split)


def _bad_images(source: Source, split: str, workers: int) -> list[str]:
    bad: list[str] = []
    with tqdm(total=len(source), desc=split, unit="image", disable=None) as bar:
        for error in prepare.look_at_images(source, prepare.check_image, num_workers=workers):
            if error:
                bad.append(error)
            bar.update()
            bar.set_postfix(bad=len(bad), refresh=False)
    return bad


def _described(source: Source, split: str) -> str:
    counts = np.bincount(source.labels, minlength=source.num_classes)
    return f"{split}: {len(source)} images of {source.num_classes} classes, {counts.min()} to {counts.max()} of each"


COMMANDS: dict[str, Callable[[argparse.Namespace], str]] = {
    "digits": lambda args: prepare.write_digits(args.folder, force=args.force),
    "photos": lambda args: prepare.write_photos(args.folder, force=args.force),
    "list": lambda args: prepare.write_lists(args.folder, force=args.force),
    "split": _split,
    "zip": _zip,
    "check": _check,
    "audit": _audit,
}
