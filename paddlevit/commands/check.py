"""paddlevit check: what this machine has, and whether every family computes on its device what a CPU does."""

from __future__ import annotations

import json

from paddlevit.commands.parser import Parser, exit_code
from paddlevit.runtime.streams import only_results


@exit_code
def main(argv: list[str]) -> int:
    """Check the machine; the exit code is 2 where something is wrong."""
    parser = Parser(
        description="Check this machine: what it has, and every family on its device against float32 on the CPU.",
        examples=("", "-device gpu -json"),
    )
    parser.flag("device", default="auto")
    parser.flag("batch_size", least=1, help="images per step of the speed rows (default: 64, on a CPU 4)")
    parser.flag("json", help="print one JSON object per line instead of a table")
    args = parser.parse_args(argv)
    from paddlevit.commands.device import rows

    sound = True
    with only_results() as out:
        if not args.json:
            print("| check | result | |\n|---|---|---|", file=out, flush=True)
        for row in rows(args.device, args.batch_size):
            sound &= row.ok is not False
            verdict = {True: "ok", False: "FAILED", None: ""}[row.ok]
            line = json.dumps(row._asdict()) if args.json else f"| {row.check} | {row.result} | {verdict} |"
            print(line, file=out, flush=True)
    return 0 if sound else 2
