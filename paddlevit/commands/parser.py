"""What every command line of the project shares: single-dash flags, and mistakes that end with a message and code 2."""

from __future__ import annotations

import argparse
import difflib
import functools
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Callable, NoReturn, Optional

import paddlevit
from paddlevit.config import flat, get_config
from paddlevit.errors import UserError, path_mistakes
from paddlevit.runtime import settings, streams
from paddlevit.schema import FLAGS, OF_EVALUATION, PATHS, ROWS

Main = Callable[..., Optional[int]]

_BROKEN_PIPE = 141  # as of a program that SIGPIPE ends

_OF_TYPE: dict[type, dict[str, Any]] = {
    int: {"type": int, "metavar": "N"},
    float: {"type": float, "metavar": "X"},
    bool: {"action": "store_true"},
    list: {"nargs": "+", "metavar": "PATTERN"},
}
_WITHOUT_KEY: dict[str, dict[str, Any]] = {
    "cfg": {"metavar": "PATH", "help": "yaml file, or a variant such as pit_ti_224 (default: that of the weights)"},
    "labels": {"metavar": "PATH", "help": "names of the classes, one a line (default: those of the weights or data)"},
    "json": {"action": "store_true", "help": "print JSON instead of a table"},
    "recipe": {
        "choices": ("official", "finetune", "probe"),
        "help": "finetune: for few images; probe: a linear classifier",
    },
    "drop_path": {"type": float, "help": "stochastic depth of the deepest block"},
}

program = f"python {sys.argv[0]}"  # what the user has called, for the usage and the examples


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """The usage does not repeat every flag."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)

    def add_usage(self, usage: str | None, actions: Iterable[argparse.Action], *rest: Any) -> None:
        required = [action for action in actions if action.required]
        flags = [f"{action.option_strings[0]} {action.metavar}" for action in required if action.option_strings]
        marks = {"+": "{} ...", "*": "[{} ...]", "?": "[{}]"}
        words = [marks.get(str(a.nargs), "{}").format(a.metavar) for a in actions if not a.option_strings]
        super().add_usage(usage or " ".join(["%(prog)s", *flags, "[flags]", *words]), [], *rest)


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
        self._flags: list[str] = []
        self._has_commands = False
        super().__init__(allow_abbrev=False, add_help=False, formatter_class=_Formatter, **options)
        self._negative_number_matcher = re.compile(r"-(\d+\.?|\d*\.\d+)(e[+-]?\d+)?$", re.I)  # argparse: not -1e-3
        self._synonyms = {"help": "h", "exported": "pretrained", **(synonyms or {})}
        self._meant = meant or {}
        self.flag("h", action="help", help="show this")
        self.flag("version", action="version", version=f"paddlevit {paddlevit.__version__}", help="show the version")

    def flag(self, name: str, *, group: Any = None, least: int | None = None, **options: Any) -> None:
        """Add the flag -name, to one of argparse's groups if `group` is given; `least` is the smallest number.

        `options` take the place of those that it has in all commands.
        """
        self._flags.append(name)
        options = {**_of_all(name), **options}
        if options.get("required"):
            options["help"] = options["help"].partition(" (default")[0]
        if options.get("type") in (int, float):
            options.setdefault("metavar", "N" if options["type"] is int else "X")
        if least is not None:
            options["type"] = _at_least(least, options["type"])
        (group or self).add_argument(f"-{name}", **options)

    def flags(self, names: str, title: str = "") -> None:
        """Add flags that are the same in all commands, under a title if there is one."""
        group = self.add_argument_group(title) if title else None
        for name in names.split():
            self.flag(name, group=group)

    def opts(self) -> None:
        """Add -opts, for any keys of the configuration."""
        self.flag("opts", nargs="*", action="extend", default=[], metavar="KEY VALUE", help="any configuration keys")

    def add_subparsers(self, **options: Any) -> Any:
        self._has_commands = True
        return super().add_subparsers(prog=self.prog, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """An unknown flag is a UserError here already."""
        return super().parse_known_args(list(self._in_our_words(args)), namespace)

    def parse_known_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Before Python 3.13 it comes through the above as well."""
        return super().parse_known_intermixed_args(list(self._in_our_words(args)), namespace)

    def error(self, message: str) -> NoReturn:
        """Called by argparse where the command line makes no sense."""
        message = re.sub(r"^argument (-\w+): invalid int value: ", r"\1 must be an integer, got ", message)
        message = re.sub(r"^argument (-\w+): invalid float value: ", r"\1 must be a number, got ", message)
        message = re.sub(r"^argument (-\w+): must be", r"\1 must be", message)
        raise UserError(f"{message} (-h lists the flags)")

    def _in_our_words(self, words: Sequence[str]) -> Iterator[str]:
        rest, named = iter(words), set[str]()
        for word in rest:
            found = re.fullmatch(r"--?([A-Za-z][\w.-]*)(=.*)?", word, re.S)
            if word == "--":
                yield word
                yield from rest
            elif found is None:
                yield _at_home(word)
            else:
                named.add(name := found[1].replace("-", "_"))
                if named >= {"exported", "pretrained"}:
                    self.error("-exported is another name of -pretrained: name one model")
                name = self._synonyms.get(name, name)
                if name not in self._flags and not self._has_commands:  # each of which has flags of its own
                    self.error(f"there is no flag -{found[1]}{self._nearest(name)}")
                yield f"-{name}" + (f"={_at_home(found[2][1:])}" if found[2] else "")

    def _nearest(self, name: str) -> str:
        """A flag that is misspelt, a key that has the words of `name`, or else whatever is nearest."""
        name = name.lower()
        candidates = {**dict(zip(self._flags, self._flags)), **self._synonyms, **self._meant}
        known = {other: ours for other, ours in candidates.items() if ours in self._flags or ours.isupper()}
        said = {other: f"-opts {ours} VALUE" if ours.isupper() else f"-{ours}" for other, ours in known.items()}
        near = difflib.get_close_matches(name, said, n=1, cutoff=0.85)
        keys = _keys(self._flags) if "opts" in self._flags and not near else {}  # which take longer than all else
        near = near or sorted((key for key in keys if set(name.split("_")) <= set(key.split("_"))), key=len)
        near = near or difflib.get_close_matches(name, said, n=1, cutoff=0.7)
        near = near or difflib.get_close_matches(name, keys, n=1, cutoff=0.7)
        return f"; did you mean {({**keys, **said})[near[0]]}?" if near else ""


def _of_all(name: str) -> dict[str, Any]:
    """What argparse is told of a flag in every command that has it; nothing where that differs."""
    if name not in FLAGS:
        return _WITHOUT_KEY.get(name, {})
    row, metavar = ROWS[FLAGS[name]], "PATH" if FLAGS[name] in PATHS else "NAME"
    words = f"{', '.join(row.allowed)}; " if isinstance(row.allowed, tuple) else ""
    return {**_OF_TYPE.get(row.type, {"metavar": metavar}), "help": words + row.flag[1]}


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
    refused = () if "eval" in known else OF_EVALUATION
    own = {key: f"-{flag}" for flag, key in FLAGS.items() if flag in known}
    found = {}
    for key in (key for key, _ in flat(get_config()) if key not in refused):
        said = own.get(key, f"-opts {key} VALUE")
        found[key.lower()] = said
        found.setdefault(key.rsplit(".", 1)[-1].lower(), said)
    return found


def choose(argv: Sequence[str], commands: Mapping[str, str], examples: Sequence[str]) -> str | None:
    """The command that the first of `argv` names; None where that is -h, -version or nothing, which are answered here.

    `commands` are what each does. UserError names the nearest one for a name that is none.
    """
    word = argv[0] if argv else "-h"
    if word in ("-h", "-help", "--help"):
        width = max(map(len, commands))
        listed = "\n".join(f"  {name:{width}}  {summary}" for name, summary in commands.items())
        shown = "\n".join(f"    {program} {example}" for example in examples)
        print(f"usage: {program} COMMAND [flags]\n\n{listed}\n\nCOMMAND -h lists its flags\n\nexamples:\n{shown}")
    elif word in ("-version", "--version"):
        print(f"paddlevit {paddlevit.__version__}")
    elif word in commands:
        return word
    else:
        near = difflib.get_close_matches(word, commands, n=1)
        hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(commands)}"
        raise UserError(f"there is no command '{word}'; {hint}")
    return None


def table(rows: Sequence[Sequence[str]], align: str = "<") -> str:
    """Rows of cells in columns; `align` is that of all columns but the first and those without a name."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    sides = ["<", *(align if name else "<" for name in rows[0][1:])]
    lines = ([f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths)] for row in rows)
    return "\n".join("  ".join(line).rstrip() for line in lines)


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


def exit_code(main: Main) -> Callable[..., int]:
    """`main(argv=None, ...)` that returns 0 for None, 2, after a message, for a UserError, and 130 for Ctrl-C."""

    @functools.wraps(main)
    def guarded(argv: Sequence[str] | None = None, **options: Any) -> int:
        streams.tolerate_losses()
        try:
            settings.prepare_command()
            _show_warnings()
            with path_mistakes():
                return main(list(sys.argv[1:] if argv is None else argv), **options) or 0
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
