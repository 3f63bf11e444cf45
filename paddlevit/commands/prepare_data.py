"""tools/prepare_data.py: data sets in the layouts that the trainer reads."""

from pathlib import Path
from typing import List

from paddlevit.commands.parser import Parser, exit_code
from paddlevit.data.prepare import write_digits, write_lists
from paddlevit.errors import UserError


@exit_code
def main(argv: List[str]) -> int:
    """Do what `argv` says, print what was done, and return the exit code."""
    parser = Parser(description="Prepare a data set.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    digits = commands.add_parser("digits", help="write scikit-learn's 1,797 handwritten digits as an image folder")
    digits.add_argument("folder", type=Path, metavar="OUT_DIR")
    lists = commands.add_parser("list", help="write train_list.txt, val_list.txt and class_names.txt from folders")
    lists.add_argument("folder", type=Path, metavar="DATA_DIR", help="holds train/<class>/* and val/<class>/*")
    for command in (digits, lists):
        command.flag("force", action="store_true", help="replace lists of other content")
    args = parser.parse_args(argv)
    try:
        print({"digits": write_digits, "list": write_lists}[args.command](args.folder, force=args.force))
    except OSError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{error.filename or args.folder}: {error.strerror or error}") from error
    return 0
