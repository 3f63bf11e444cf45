"""paddlevit weights: where published weights are, fetching them, and averages of one's own."""

from __future__ import annotations

import argparse
import fnmatch
import functools
from pathlib import Path

from paddlevit.commands.parser import Parser, exit_code, table
from paddlevit.config import get_config
from paddlevit.errors import UserError
from paddlevit.schema import refuse_keys_of_evaluation


@exit_code
def main(argv: list[str]) -> None:
    """List, fetch or average the weights that `argv` names."""
    parser = Parser(
        description="List published weights, fetch them into the cache (PADDLEVIT_CACHE, ~/.cache/paddlevit), or "
        "average weights of one model.",
        examples=(
            "list 'pit_*'",
            "pull hf:timm/pit_s_224.in1k",
            "average output/flowers -output output/flowers/average.pdparams",
        ),
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="where the weights of each variant are, and under which licence")
    listing.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="of variants, such as 'pit_*'")
    pull = commands.add_parser("pull", help="fetch weights, and print the files")
    pull.add_argument("weights", nargs="+", metavar="WEIGHTS", help="a variant, or hf:OWNER/NAME")
    mean = commands.add_parser("average", help="average weights of one model where that is no worse (model soups)")
    mean.add_argument("where", nargs="+", metavar="RUN_OR_FILE", help="weights, or a run: its best and its checkpoints")
    mean.flag("output", required=True, type=Path, metavar="FILE", help="the .pdparams file to write")
    mean.flag(
        "method",
        choices=("greedy", "uniform"),
        default="greedy",
        help="greedy (default): add file after file to the best where the average is no worse; uniform: all",
    )
    mean.flags("data_path cfg device")
    mean.opts()
    args = parser.parse_args(argv)
    {"list": _list, "pull": _pull, "average": _average}[args.command](args)


def _list(args: argparse.Namespace) -> None:
    from paddlevit.weights.hub import published

    rows = [row for row in published() if fnmatch.fnmatchcase(row["variant"], args.pattern)]
    if not rows:
        raise UserError(f"no published weights are known of '{args.pattern}'; paddlevit weights list shows all")
    cells = []
    for row in rows:
        where = row.get("address") or f"by hand from {row['page']}"
        sha256 = "by the hub" if where.startswith("hf:") else row.get("sha256", "not known")
        cells.append((row["variant"], row["licence"], f"sha256 {sha256}", where))
    print(table(cells))


def _pull(args: argparse.Namespace) -> None:
    from paddlevit.weights.hub import changed, fetch

    for name in args.weights:
        file = fetch(name)
        if file is None:
            raise UserError(f"no published weights of '{name}' are known (paddlevit weights list)")
        if changed(file):
            raise UserError(f"{file} is not what was fetched: delete it, and pull again")
        print(file)


def _average(args: argparse.Namespace) -> None:
    from paddlevit.classifier import config_beside
    from paddlevit.run.average import average
    from paddlevit.runtime import process

    if args.output.suffix != ".pdparams":
        raise UserError(f"-output must end in .pdparams, got {args.output}")
    refuse_keys_of_evaluation(args.opts, "averages are scored by Paddle, without augmentation")
    data = ["DATA.DATA_PATH", args.data_path] if args.data_path else []
    config = get_config(args.cfg or config_beside(args.where[0]), ["EVAL", True, *data, *args.opts])
    process.setup(args.device or config.DEVICE, config.SEED)
    show = functools.partial(print, flush=True)
    best = average(config, args.where, args.output, greedy=args.method == "greedy", on_score=show)
    if len(best.files) == 1:
        print(f"no average is as good as {best.files[0]}: {args.output} has its weights")
    else:
        print(f"written to {args.output}: the average of {', '.join(best.files)}")
