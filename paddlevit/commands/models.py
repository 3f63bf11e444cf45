"""paddlevit models: the shipped variants, with the numbers at the top of their yaml files."""

from __future__ import annotations

import itertools
import re

from paddlevit.commands.parser import Parser, exit_code, table
from paddlevit.config import CONFIG_DIR, get_config, variant_names
from paddlevit.errors import UserError
from paddlevit.runtime.streams import only_results

_FIGURES = (r"([\d.]+ M) parameters", r"([\d.]+ G) multiply-accumulates", r"Published top-1 on ImageNet-1k: ([\d.]+ %)")


@exit_code
def main(argv: list[str]) -> None:
    """Print a table of the variants that match the pattern in `argv`."""
    parser = Parser(description="List the shipped variants.", examples=("'pit_*'", "'*384*'"))
    parser.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="of names, such as 'pit_*'")
    args = parser.parse_args(argv)
    names = variant_names(args.pattern)
    if not names:
        raise UserError(f"no variant is called '{args.pattern}'; paddlevit models lists all")
    head = ("variant", "image", "parameters", "MACs", "published top-1")
    with only_results() as out:
        print(table([head, *((name, *figures(name)) for name in names)], ">"), file=out)


def figures(name: str) -> tuple[str, ...]:
    """Image size, parameters, multiply-accumulates and published top-1 of a variant; "-" for what is not known."""
    lines = next(CONFIG_DIR.glob(f"*/{name}.yaml")).read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.lstrip("# ") for line in itertools.takewhile(lambda line: line.startswith("#"), lines))
    found = (re.search(pattern, comment) for pattern in _FIGURES)
    return (str(get_config(name).DATA.IMAGE_SIZE), *(match[1] if match else "-" for match in found))
