"""tools/benchmark.py: how fast a network or the way of its images is."""

from __future__ import annotations

from typing import Callable

from paddlevit.commands.benchmark_data import data_command
from paddlevit.commands.benchmark_model import model_command
from paddlevit.commands.parser import exit_code
from paddlevit.errors import UserError

COMMANDS: dict[str, Callable[[list[str]], int]] = {"model": model_command, "data": data_command}
HELP = "usage: benchmark.py model|data [flags]; model: a network's speed, data: that of its images; -h lists the flags"


@exit_code
def main(argv: list[str]) -> int:
    """Run the benchmark that the first word of `argv` names; the exit code."""
    if argv[:1] in (["-h"], ["--help"]):
        print(HELP)
        return 0
    if not argv or argv[0] not in COMMANDS:
        given = f"{argv[0]} is no benchmark" if argv else "the name of a benchmark is missing"
        raise UserError(f"{given}, allowed: model, data (-h says more)")
    return COMMANDS[argv[0]](argv[1:])
