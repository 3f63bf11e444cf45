"""paddlevit weights: where published weights are, and fetching them."""

from __future__ import annotations

import fnmatch
from pathlib import Path

from paddlevit.commands.parser import Parser, exit_code
from paddlevit.errors import UserError


@exit_code
def main(argv: list[str]) -> int:
    """List or fetch the weights that `argv` names; the exit code."""
    parser = Parser(
        description="List published weights, or fetch them into the cache (PADDLEVIT_CACHE, ~/.cache/paddlevit).",
        usage="%(prog)s list [PATTERN] | pull WEIGHTS ...",
        examples=("list 'pit_*'", "pull pit_ti_224", "pull hf:timm/pit_s_224.in1k"),
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="where the weights of each variant are, and under which licence")
    listing.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="of variants, such as 'pit_*'")
    pull = commands.add_parser("pull", help="fetch weights, and print the files")
    pull.add_argument("weights", nargs="+", metavar="WEIGHTS", help="a variant, or hf:OWNER/NAME")
    args = parser.parse_args(argv)
    if args.command == "list":
        _list(args.pattern)
    else:
        for weights in args.weights:
            print(_pull(weights))
    return 0


def _list(pattern: str) -> None:
    from paddlevit.weights.hub import published

    rows = [row for row in published() if fnmatch.fnmatchcase(row["variant"], pattern)]
    if not rows:
        raise UserError(f"no published weights are known of '{pattern}'; paddlevit weights list shows all")
    width = max(len(row["variant"]) for row in rows)
    for row in rows:
        where = row.get("address") or f"by hand from {row['page']}"
        sha256 = "by the hub" if where.startswith("hf:") else row.get("sha256", "not known")
        print(f"{row['variant']:{width}}  {row['licence']:10}  sha256 {sha256:10}  {where}")


def _pull(weights: str) -> Path:
    from paddlevit.weights.hub import changed, fetch

    file = fetch(weights)
    if file is None:
        raise UserError(f"no published weights of '{weights}' are known (paddlevit weights list)")
    if changed(file):
        raise UserError(f"{file} is not what was fetched: delete it, and pull again")
    return file
