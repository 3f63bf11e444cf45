"""tools/prepare_data.py: data sets in the layouts that the trainer reads, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

from paddlevit.commands.parser import Parser, exit_code
from paddlevit.errors import UserError


@exit_code
def main(argv: list[str]) -> None:
    """Do what `argv` says, and print what was done."""
    args = _parser().parse_args(argv)
    from paddlevit.commands.prepared import COMMANDS

    try:
        print(COMMANDS[args.command](args))
    except OSError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{error.filename or args.folder}: {error.strerror or error}") from error


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
    split.flag("folds", type=int, least=2, metavar="K", help="K divisions instead, in OUT_DIR/fold_0 and so on")
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
    audit.flag("pretrained", help="weights whose features show wrong labels (default: the pixels do)")
    audit.flag("cfg")
    audit.flag("seed", type=int, default=0, help="of the folds (default: 0)")
    for command in (digits, photos, lists, split, zips, audit):
        command.flag("force", action="store_true", help="replace what is there and has other content")
    check = commands.add_parser("check", help="decode every image and list those that cannot be read")
    for command in (audit, check):
        command.flag("workers", type=int, default=-1, help="processes (default: one per core, at most 8)")
    check.add_argument("folder", type=Path, metavar="DATA_DIR", help="a data set in any layout that training reads")
    check.flag("dataset", choices=("imagenet2012", "folder", "cifar10", "cifar100"), default="imagenet2012")
    check.flag("output", type=Path, default=Path("bad_images.txt"), metavar="FILE", help="the list of bad images")
    return parser
