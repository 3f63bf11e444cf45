"""tools/prepare_data.py: data sets in the layouts that the trainer reads, and what is wrong with them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Callable

from paddlevit.commands.parser import Parser, exit_code
from paddlevit.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from paddlevit.data.sources import Source

_MOST_NAMED = 5


@exit_code
def main(argv: list[str]) -> int:
    """Do what `argv` says, print what was done, and return the exit code."""
    args = _parser().parse_args(argv)
    try:
        print(_COMMANDS[args.command](args))
    except OSError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{error.filename or args.folder}: {error.strerror or error}") from error
    return 0


def _parser() -> Parser:
    parser = Parser(
        description="Prepare a data set.", examples=("digits data/digits", "list data/flowers", "audit data/flowers")
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    digits = commands.add_parser("digits", help="write scikit-learn's 1,797 handwritten digits as an image folder")
    digits.add_argument("folder", type=Path, metavar="OUT_DIR")
    photos = commands.add_parser("photos", help="write 120 cuts of scikit-learn's two photographs, of three classes")
    photos.add_argument("folder", type=Path, metavar="OUT_DIR")
    lists = commands.add_parser("list", help="write train_list.txt, val_list.txt and class_names.txt from folders")
    lists.add_argument("folder", type=Path, metavar="DATA_DIR", help="holds train/<class>/* and val/<class>/*")
    split = commands.add_parser("split", help="write such lists for one folder of classes: to train on, to validate")
    split.add_argument("folder", type=Path, metavar="DIR", help="holds <class>/*")
    split.flag("val", type=float, metavar="SHARE", help="of each class, to validate with (default: 0.2)")
    split.flag("folds", type=int, metavar="K", help="K divisions instead, in OUT_DIR/fold_0 and so on")
    split.flag("group_by", metavar="PATTERN", help="images with the same match in their path stay on one side")
    split.flag("seed", type=int, default=0, help="of the random choice (default: 0)")
    split.flag("output", type=Path, metavar="OUT_DIR", help="where the lists go (default: DIR)")
    zips = commands.add_parser("zip", help="write train.zip and val.zip with their maps")
    zips.add_argument("folder", type=Path, metavar="DATA_DIR", help="folders of classes, or list files and images")
    zips.flag("output", type=Path, metavar="OUT_DIR", help="where they go (default: DATA_DIR)")
    audit = commands.add_parser(
        "audit", help="look for duplicates, leaks and likely wrong labels", synonyms={"weights": "pretrained"}
    )
    audit.add_argument("folder", type=Path, metavar="DATA_DIR", help="list files, or train/<class>/* and val/<class>/*")
    audit.flag("output", type=Path, metavar="OUT_DIR", help="where page and lists go (default: DATA_DIR-audit)")
    audit.flag("pretrained", metavar="W", help="weights whose features show wrong labels (default: the pixels do)")
    audit.flag("cfg", metavar="FILE", help="of the weights (default: the one beside them)")
    audit.flag("seed", type=int, default=0, help="of the folds (default: 0)")
    for command in (digits, photos, lists, split, zips, audit):
        command.flag("force", action="store_true", help="replace what is there and has other content")
    check = commands.add_parser("check", help="decode every image and list those that cannot be read")
    for command in (audit, check):
        command.flag("workers", type=int, default=-1, help="processes (default: one per core, at most 8)")
    check.add_argument("folder", type=Path, metavar="DATA_DIR", help="a data set in any layout that training reads")
    check.flag("dataset", choices=("imagenet2012", "cifar10", "cifar100"), default="imagenet2012")
    check.flag("output", type=Path, default=Path("bad_images.txt"), metavar="FILE", help="the list of bad images")
    return parser


def _written(args: argparse.Namespace) -> str:
    from paddlevit.data import prepare

    write = {"digits": prepare.write_digits, "photos": prepare.write_photos, "list": prepare.write_lists}[args.command]
    return write(args.folder, force=args.force)


def _split(args: argparse.Namespace) -> str:
    from paddlevit.data.prepare import write_splits

    if args.val is not None and args.folds is not None:
        raise UserError("-val and -folds exclude each other: a fold of K validates with 1 / K")
    if args.val is not None and not 0 < args.val < 1:
        raise UserError(f"-val must be above 0 and below 1, got {args.val}")
    if args.folds is not None and args.folds < 2:
        raise UserError(f"-folds must be 2 or more, got {args.folds}")
    return write_splits(
        args.folder,
        args.output or args.folder,
        val=args.val or 0.2,
        folds=args.folds,
        group_by=args.group_by,
        seed=args.seed,
        force=args.force,
    )


def _zip(args: argparse.Namespace) -> str:
    from tqdm import tqdm

    from paddlevit.data.prepare import write_zips

    output = args.output or args.folder
    done = 0
    with tqdm(unit="image", disable=None) as bar:
        for done, total in write_zips(args.folder, output, force=args.force):
            bar.total = total
            bar.update(done - bar.n)
    return f"{done} images are in zip files, with their maps, in {output}"


def _check(args: argparse.Namespace) -> str:
    from paddlevit.data import num_workers
    from paddlevit.data.sources import SPLITS

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
    import json
    from functools import partial

    from tqdm import tqdm

    from paddlevit.data import num_workers
    from paddlevit.data.audit import audit
    from paddlevit.data.decode import decode, thumbnail
    from paddlevit.data.prepare import refuse_filled, write_texts
    from paddlevit.data.sources import read_image
    from paddlevit.report.audit import headline, write_audit
    from paddlevit.runtime.files import write_text

    output = args.output or Path(f"{args.folder.resolve()}-audit")
    refuse_filled(output, args.force)
    if output.resolve() == args.folder.resolve():
        raise UserError(f"-output {output} holds the data, which stays as it is: name another folder")
    findings, texts = audit(
        args.folder,
        num_workers=num_workers(args.workers, 1),
        seed=args.seed,
        bar=partial(tqdm, disable=None),
        features=_features(args.pretrained, args.cfg) if args.pretrained else None,
    )
    output.mkdir(parents=True, exist_ok=True)
    write_texts(output, texts)
    write_text(output / "audit.json", json.dumps(findings, indent=1, ensure_ascii=False))
    write_audit(output / "audit.html", args.folder, findings, lambda path: thumbnail(decode(read_image(path), path)))
    lines = [f"{what:20}{count:9,}  {detail}" for what, count, detail in headline(findings)]
    return "\n".join([*lines, f"{output}/audit.html shows them; -data_path {output} trains on the lists beside it"])


def _features(weights: str, cfg: str | None) -> Callable[[Sequence[bytes]], np.ndarray]:
    """What the head of these weights sees of image files, or the logits of an exported model."""
    import numpy as np
    import paddle

    from paddlevit.classifier import Classifier

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
    from paddlevit.data.cifar import open_cifar
    from paddlevit.data.sources import SPLITS, open_imagenet

    if dataset != "imagenet2012":
        return open_cifar(folder, dataset, split=split)
    there = [any((folder / file).exists() for file in (f"{name}_list.txt", f"{name}_map.txt", name)) for name in SPLITS]
    if split == SPLITS[0] and there == [False, True]:
        return None
    return open_imagenet(folder, split)


def _bad_images(source: Source, split: str, workers: int) -> list[str]:
    from tqdm import tqdm

    from paddlevit.data.prepare import check_image, look_at_images

    bad: list[str] = []
    with tqdm(total=len(source), desc=split, unit="image", disable=None) as bar:
        for error in look_at_images(source, check_image, num_workers=workers):
            if error:
                bad.append(error)
            bar.update()
            bar.set_postfix(bad=len(bad), refresh=False)
    return bad


def _described(source: Source, split: str) -> str:
    import numpy as np

    counts = np.bincount(source.labels, minlength=source.num_classes)
    return f"{split}: {len(source)} images of {source.num_classes} classes, {counts.min()} to {counts.max()} of each"


_COMMANDS = {
    "digits": _written,
    "photos": _written,
    "list": _written,
    "split": _split,
    "zip": _zip,
    "check": _check,
    "audit": _audit,
}
