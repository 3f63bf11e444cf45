"""What every command line of the project shares: single-dash flags, and mistakes that end with a message and code 2."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from typing import Any, Callable, NoReturn

from paddlevit.errors import UserError, path_mistakes
from paddlevit.runtime import settings

Main = Callable[..., int]


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose mistakes are UserErrors; `-flag value`, `-flag=value` and `--flag value` all work."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def flag(self, name: str, **options: Any) -> None:
        """Add the flag -name, which --name means too."""
        self.add_argument(f"-{name}", f"--{name}", **options)

    def error(self, message: str) -> NoReturn:
        """Called by argparse where the command line makes no sense."""
        raise UserError(f"{message} (-h lists the flags)")


def exit_code(main: Main) -> Main:
    """`main(argv=None, ...) -> int` that turns a UserError into a message and 2, and Ctrl-C into 130."""

    @functools.wraps(main)
    def guarded(argv: Sequence[str] | None = None, **options: Any) -> int:
        try:
            settings.prepare_command()
            with path_mistakes():
                return main(list(sys.argv[1:] if argv is None else argv), **options)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except ModuleNotFoundError as error:
            if error.name != "paddle":
                raise
            print(f"error: {settings.NO_PADDLE}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130

    return guarded
