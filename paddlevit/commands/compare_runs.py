"""tools/compare_runs.py: training runs side by side, in the terminal and on one page."""

from __future__ import annotations

import sys
from pathlib import Path

from paddlevit.commands.parser import Parser, exit_code, table
from paddlevit.errors import UserError
from paddlevit.runtime.streams import only_results

_WIDEST = 44  # characters of a cell; the page has all of them


@exit_code
def main(argv: list[str]) -> int:
    """Print results and differing keys of the runs that `argv` names, and write the page if that is asked for; 0, or 2
    where a folder holds no run, which is left out.
    """
    parser = Parser(
        description="Compare training runs.",
        examples=("output/first output/second", "output/first output/second -output compare.html"),
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.flag("output", type=Path, metavar="FILE", help="write a page with their curves, such as compare.html")
    args = parser.parse_intermixed_args(argv)
    from paddlevit.report.comparison import difference_table, result_table, write_comparison
    from paddlevit.report.history import Run, read_run

    runs: list[Run] = []
    code = 0
    for folder in dict.fromkeys(args.folders):
        try:
            runs.append(read_run(folder))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            code = 2
    said = [table(_cut(result_table(runs)))] if runs else []
    if len(runs) > 1:
        rows = _cut(difference_table(runs))
        narrower = min(table(rows), table([*zip(*rows)]), key=lambda text: max(map(len, text.splitlines())))
        said.append(narrower if rows[1:] else "The configurations are the same.")
    if runs and args.output is not None:
        said.append(f"written to {write_comparison(runs, args.output)}")
    with only_results() as out:
        print(*said, sep="\n\n", end="\n" * bool(said), file=out)
    return code


def _cut(rows: list[list[str]]) -> list[list[str]]:
    return [[cell if len(cell) <= _WIDEST else f"{cell[: _WIDEST - 1]}…" for cell in row] for row in rows]
