"""paddlevit verify: whether a run is still what it was certified to be, and whether its steps can be repeated."""

from __future__ import annotations

from pathlib import Path

from paddlevit.commands.parser import Parser, exit_code


@exit_code
def main(argv: list[str]) -> int:
    """Verify the run that `argv` names; the exit code is 2 where something differs."""
    parser = Parser(
        description="Compare a run with its certificate.json, and train some of its steps again.",
        examples=("output/flowers", "output/flowers -steps 200"),
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the run's folder")
    parser.flag("steps", type=int, least=1, help="replay at least so many (default: the first REPORT_FREQ of an epoch)")
    parser.flag("data_path", help="folder of its data set (default: as the run's config.yaml has it)")
    parser.flag("device", help="default: as the run; cpu: bit for bit, others: losses to rounding")
    args = parser.parse_args(argv)
    from paddlevit.run.certificate import read_certificate, verify
    from paddlevit.runtime import process

    known = read_certificate(args.run)
    kind = known["device"].partition(":")[0]
    process.setup(args.device or (kind if kind in ("gpu", "cpu") else f"custom:{kind}"), seed=0)
    same = True
    for what, found, ok in verify(args.run, known, args.steps, args.data_path):
        same &= ok
        print(f"{'ok     ' if ok else 'DIFFERS'}  {what}: {found}", flush=True)
    return 0 if same else 2
