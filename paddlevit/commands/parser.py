"""What every command line of the project shares: single-dash flags, and mistakes that end with a message and code 2."""

from __future__ import annotations

import argparse
import difflib
import functools
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Callable, NoReturn

import paddlevit
from paddlevit.errors import UserError, path_mistakes
from paddlevit.runtime import settings, streams

Main = Callable[..., int]

_BROKEN_PIPE = 141  # as of a program that SIGPIPE ends

program = f"python {sys.argv[0]}"  # what the user has called, for the usage and the examples


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose mistakes are UserErrors.

    `-flag_name value`, `-flag_name=value`, `--flag_name value` and `--flag-name value` all work. `synonyms` maps other
    names of flags to ours, `meant` names that other projects have to the flag or key that does the same in another way.
    `examples` stand below the help, each after the name of the program.
    """

    def __init__(
        self,
        *,
        examples: Sequence[str] = (),
        synonyms: Mapping[str, str] | None = None,
        meant: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        options.setdefault("prog", program)
        if examples:
            options["epilog"] = "\n".join(["examples:", *(f"  %(prog)s {example}" for example in examples)])
        formatter = functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=32)
        self._flags: list[str] = []
        self._words: list[str] = []
        self._has_commands = False
        super().__init__(allow_abbrev=False, add_help=False, formatter_class=formatter, **options)
        self._synonyms = {"help": "h", **(synonyms or {})}
        self._meant = meant or {}
        self.flag("h", action="help", help="show this")
        self.flag("version", action="version", version=f"paddlevit {paddlevit.__version__}", help="show the version")

    def flag(self, name: str, *, group: Any = None, least: int | None = None, **options: Any) -> None:
        """Add the flag -name, to one of argparse's groups if `group` is given; `least` is the smallest number."""
        self._flags.append(name)
        if options.get("type") in (int, float):
            options.setdefault("metavar", "N" if options["type"] is int else "X")
        if least is not None:
            options["type"] = _at_least(least, options["type"])
        (group or self).add_argument(f"-{name}", **options)

    def opts(self) -> None:
        """Add -opts, for any keys of the configuration."""
        self.flag("opts", nargs="*", action="extend", default=[], metavar="KEY VALUE", help="any configuration keys")

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """Words without a flag are shown in the usage."""
        action = super().add_argument(*names, **options)
        if not action.option_strings:
            self._words.append(f"{action.metavar}{' ...' if action.nargs == '+' else ''}")
        return action

    def add_subparsers(self, **options: Any) -> Any:
        self._has_commands = True
        self._words.append(options["metavar"])
        return super().add_subparsers(**options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """An unknown flag is a UserError here already."""
        return super().parse_known_args(list(self._in_our_words(args)), namespace)

    def parse_known_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Before Python 3.13 it comes through the above as well."""
        return super().parse_known_intermixed_args(list(self._in_our_words(args)), namespace)

    def format_help(self) -> str:
        """The usage does not repeat every flag."""
        self.usage = self.usage or " ".join(["%(prog)s [flags]", *self._words])
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Called by argparse where the command line makes no sense."""
        message = re.sub(r"^argument (-\w+): invalid int value: ", r"\1 must be an integer, got ", message)
        message = re.sub(r"^argument (-\w+): invalid float value: ", r"\1 must be a number, got ", message)
        message = re.sub(r"^argument (-\w+): must be", r"\1 must be", message)
        raise UserError(f"{message} (-h lists the flags)")

    def _in_our_words(self, words: Sequence[str]) -> Iterator[str]:
        rest = iter(words)
        for word in rest:
            found = re.fullmatch(r"--?([A-Za-z][\w.-]*)(=.*)?", word, re.S)
            if word == "--":
                yield word
                yield from rest
            elif found is None:
                yield _at_home(word)
            else:
                name = found[1].replace("-", "_")
                name = self._synonyms.get(name, name)
                if name not in self._flags and not self._has_commands:  # each of which has flags of its own
                    self.error(f"there is no flag -{found[1]}{self._nearest(name)}")
                yield f"-{name}" + (f"={_at_home(found[2][1:])}" if found[2] else "")

    def _nearest(self, name: str) -> str:
        """A flag that is misspelt, a key that has the words of `name`, or else whatever is nearest."""
        name = name.lower()
        candidates = {**dict(zip(self._flags, self._flags)), **self._synonyms, **self._meant}
        flags = {other: f"-opts {ours} VALUE" if ours.isupper() else f"-{ours}" for other, ours in candidates.items()}
        near = difflib.get_close_matches(name, flags, n=1, cutoff=0.85)
        keys = _keys(self._flags) if "opts" in self._flags and not near else {}  # which take longer than all else
        near = near or sorted((key for key in keys if set(name.split("_")) <= set(key.split("_"))), key=len)
        near = near or difflib.get_close_matches(name, flags, n=1, cutoff=0.7)
        near = near or difflib.get_close_matches(name, keys, n=1, cutoff=0.7)
        return f"; did you mean {({**keys, **flags})[near[0]]}?" if near else ""


def _at_least(least: int, kind: type) -> Callable[[str], Any]:
    def number(word: str) -> Any:
        if not kind(word) >= least:
            raise argparse.ArgumentTypeError(f"must be {least} or more, got {word}")
        return kind(word)

    number.__name__ = kind.__name__  # as argparse calls it in a message
    return number


def _at_home(word: str) -> str:
    """The path that a word is, where it begins with ~/: a shell leaves that alone after an equals sign."""
    return os.path.expanduser(word) if word.startswith("~/") else word


def _keys(known: Sequence[str]) -> dict[str, str]:
    """By the lower-case name of a configuration key, alone and with its section: the flag, of those that are `known`,
    or the option that sets it.
    """
    from paddlevit.config import flat, get_config
    from paddlevit.schema import FLAGS, OF_EVALUATION

    refused = () if "eval" in known else OF_EVALUATION
    flags = {key: f"-{flag}" for flag, key in FLAGS.items() if flag in known}
    found = {}
    for key in (key for key, _ in flat(get_config()) if key not in refused):
        said = flags.get(key, f"-opts {key} VALUE")
        found[key.lower()] = said
        found.setdefault(key.rsplit(".", 1)[-1].lower(), said)
    return found


def choose(
    argv: Sequence[str], commands: Mapping[str, str], what: str, examples: Sequence[str]
) -> tuple[str, list[str]] | None:
    """The command that the first of `argv` names, and the words for it; None where that is -h or nothing, after a list
    of `commands`, what they do, and examples. UserError names the nearest one for a name that is none.
    """
    if not argv or argv[0] in ("-h", "-help", "--help"):
        width = max(map(len, commands))
        lines = [f"usage: {program} {what.upper()} [flags]\n"]
        lines += [f"  {name:{width}}  {summary}" for name, summary in commands.items()]
        lines += [f"\n{what.upper()} -h lists its flags\n\nexamples:"]
        print("\n".join([*lines, *(f"    {program} {example}" for example in examples)]))
        return None
    if argv[0] in ("-version", "--version"):
        print(f"paddlevit {paddlevit.__version__}")
        return None
    if argv[0] not in commands:
        near = difflib.get_close_matches(argv[0], commands, n=1)
        hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(commands)}"
        raise UserError(f"there is no {what} '{argv[0]}'; {hint}")
    return argv[0], list(argv[1:])


def _show_warnings() -> None:
    """Show the package's warnings as lines on standard error; Paddle's handler of the root logger adds dates and files.

    A run logs in its own way as soon as it has begun.
    """
    package = logging.getLogger("paddlevit")
    if not package.handlers:
        handler = logging.StreamHandler()
        handler.setLevel(logging.WARNING)
        handler.setFormatter(streams.Formatter("warning: %(message)s"))
        package.addHandler(handler)
        package.propagate = False


def exit_code(main: Main) -> Main:
    """`main(argv=None, ...) -> int` that turns a UserError into a message and 2, and Ctrl-C into 130."""

    @functools.wraps(main)
    def guarded(argv: Sequence[str] | None = None, **options: Any) -> int:
        streams.tolerate_losses()
        try:
            settings.prepare_command()
            _show_warnings()
            with path_mistakes():
                return main(list(sys.argv[1:] if argv is None else argv), **options)
        except UserError as error:
            print(f"error: {streams.escaped(str(error))}", file=sys.stderr)
            return 2
        except streams.NobodyReads:
            return _BROKEN_PIPE
        except ModuleNotFoundError as error:
            if error.name != "paddle":
                raise
            print(f"error: {settings.NO_PADDLE}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130

    return guarded
