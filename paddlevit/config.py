"""Configuration: defaults, yaml files with BASE inheritance, flags and options, checked and frozen.

A key's default gives its type. The keys of MODEL that only one family has stand, with their defaults, in
`configs/<family>/_family.yaml`; all others in `schema.py`.
"""

from __future__ import annotations

import copy
import difflib
import fnmatch
import math
import os
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from yacs.config import CfgNode

from paddlevit.errors import MissingFileError, UserError
from paddlevit.schema import ABOVE_ZERO, BELOW_ONE, CHOICES, DEFAULTS, FLAGS, OPTIONAL, PATHS, RANGES

CONFIG_DIR = Path(__file__).parent / "configs"

# What yaml files of other projects call a family.
_FAMILY_ALIASES = {"hrt": "hrformer"}

_Source = tuple[str, Any, str]  # dotted key, value, where it was written


class ConfigError(UserError):
    """A configuration that cannot be used."""


class ConfigKeyError(ConfigError, KeyError):
    """A key that does not exist."""


class ConfigTypeError(ConfigError, TypeError):
    """A value of another type than its key's."""


def get_config(cfg: str | Path | None = None, opts: Sequence[Any] | None = None) -> CfgNode:
    """The frozen configuration of a yaml file or a shipped variant.

    `cfg` is a path or a variant's name ('pit_b_224'), or None for the defaults; `opts` a flat list of keys and values
    (['TRAIN.BASE_LR', 1e-3]) that take precedence. Raises ConfigKeyError, ConfigTypeError, ConfigError or
    MissingFileError.
    """
    return _resolve([*_read(cfg), *_pairs(opts or [])])


def update_config(config: CfgNode, args: Namespace) -> CfgNode:
    """A new frozen configuration: `config`, or the one that `args.cfg` names, with the flags and `opts` of `args`.

    `args` has attributes named as the flags of `schema.FLAGS`; None and False count as not given. Raises as
    `get_config`.
    """
    start = _read(args.cfg) if getattr(args, "cfg", None) else list(_flat(config, "the configuration"))
    flags = [
        (key, getattr(args, flag), f"flag -{flag}")
        for flag, key in FLAGS.items()
        if getattr(args, flag, None) is not None and getattr(args, flag) is not False
    ]
    return _resolve([*start, *flags, *_pairs(getattr(args, "opts", None) or [])])


def with_values(config: CfgNode, values: dict[str, Any]) -> CfgNode:
    """A new frozen configuration in which the dotted keys of `values` are set. Raises as `get_config`."""
    return _resolve(
        [*_flat(config, "the configuration"), *((key, value, "the program") for key, value in values.items())]
    )


def variant_names(pattern: str = "*") -> list[str]:
    """Stems of the shipped yaml files that match `pattern` (as in file names: * and ?), sorted."""
    stems = (path.stem for path in CONFIG_DIR.glob("*/*.yaml") if not path.stem.startswith("_"))
    return sorted(stem for stem in stems if fnmatch.fnmatchcase(stem, pattern))


def variant_path(name: str) -> Path:
    """The shipped yaml file of a variant; MissingFileError names the nearest variants where there is none."""
    paths = {path.stem: path for path in CONFIG_DIR.glob("*/*.yaml")}
    if name in variant_names():
        return paths[name]
    near = difflib.get_close_matches(name, variant_names(), n=3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise MissingFileError(f"no configuration file and no variant is called '{name}'{hint}")


def _read(cfg: str | Path | None) -> list[_Source]:
    if cfg is None:
        return []
    path = Path(cfg)
    return _read_file(path if path.is_file() else _named(str(cfg)), ())


def _named(name: str) -> Path:
    if name.endswith((".yaml", ".yml")) or "/" in name:
        raise MissingFileError(f"there is no configuration file '{name}'")
    return variant_path(name)


def _read_file(path: Path, seen: tuple[Path, ...]) -> list[_Source]:
    if path.resolve() in seen:
        raise ConfigError(f"{path}: BASE leads back to this file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a yaml file: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no keys")
    bases = content.pop("BASE", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigTypeError(f"{path}: BASE is {bases!r}, allowed: a yaml file, or a list of them")
    sources: list[_Source] = []
    for base in bases:
        if base:
            base_path = path.parent / base
            sources += _read_file(base_path if base_path.is_file() else _named(base), (*seen, path.resolve()))
    return sources + list(_flat(content, str(path)))


def _flat(node: dict[str, Any], where: str, prefix: str = "") -> Iterator[_Source]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, where, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value, where


def _pairs(opts: Sequence[Any]) -> list[_Source]:
    if not isinstance(opts, (list, tuple)):
        raise ConfigTypeError(f"options are {opts!r}, allowed: a list of keys and values, ['TRAIN.BASE_LR', 1e-3]")
    if len(opts) % 2:
        raise ConfigError(f"options come as pairs of a key and a value, but '{opts[-1]}' stands alone")
    return [(str(key), value, "option") for key, value in zip(opts[::2], opts[1::2])]


def _resolve(sources: list[_Source]) -> CfgNode:
    schema = _schema(sources)
    defaults = {key: value for key, value, _ in _flat(schema, "")}
    values = copy.deepcopy(defaults)
    inference_said_by = ""
    for key, value, where in sources:
        if any(known.startswith(f"{key}.") for known in values):
            if value is None:
                continue  # a section without keys
            raise ConfigKeyError(
                f"{where}: {key} is {value!r}, allowed: a section of keys, such as {_first(key, values)}"
            )
        if key not in values:
            raise _unknown(key, where, values, schema["MODEL"]["TYPE"])
        values[key] = _checked(key, value, OPTIONAL.get(key, defaults[key]), where)
        if key == "DATA.INFER_NUM_CLASSES":
            inference_said_by = where
        elif key == "MODEL.NUM_CLASSES" and where != inference_said_by:
            values["DATA.INFER_NUM_CLASSES"] = False
    values["MODEL.TYPE"] = schema["MODEL"]["TYPE"]
    # PaddleViT's yaml files say by the objective whether the network has a second head.
    if values.get("MODEL.DISTILLED", False) is None:
        values["MODEL.DISTILLED"] = values["TRAIN.DISTILLATION_TYPE"] != "none"
    return _nested(values)


def _first(section: str, values: dict[str, Any]) -> str:
    return next(key for key in values if key.startswith(f"{section}."))


def _nested(values: dict[str, Any]) -> CfgNode:
    config = CfgNode()
    for key, value in values.items():
        *parents, leaf = key.split(".")
        node = config
        for parent in parents:
            node = node.setdefault(parent, CfgNode())
        node[leaf] = value
    config.freeze()
    return config


def _schema(sources: list[_Source]) -> dict[str, Any]:
    """The defaults, with the MODEL keys of the family that `sources` name."""
    given = [(value, where) for key, value, where in sources if key == "MODEL.TYPE"]
    name, where = given[-1] if given else (DEFAULTS["MODEL"]["TYPE"], "the defaults")
    family = _FAMILY_ALIASES.get(str(name).lower(), str(name).lower())
    path = CONFIG_DIR / family / "_family.yaml"
    if not path.is_file():
        families = ", ".join(sorted(p.parent.name for p in CONFIG_DIR.glob("*/_family.yaml")))
        raise ConfigError(f"{where}: MODEL.TYPE is '{name}', allowed: {families}")
    own = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {**DEFAULTS, "MODEL": {**DEFAULTS["MODEL"], "TYPE": family, **own["MODEL"]}}


def _unknown(key: str, where: str, values: dict[str, Any], family: str) -> ConfigKeyError:
    by_upper = {known.upper(): known for known in values}
    near = difflib.get_close_matches(key.upper(), by_upper, n=1, cutoff=0.0)
    return ConfigKeyError(
        f"{where}: there is no key '{key}' (family {family}); the nearest one is '{by_upper[near[0]]}'"
    )


def _checked(key: str, value: Any, like: Any, where: str) -> Any:
    if key in OPTIONAL and (value is None or value in ("null", "None")):
        return None
    if isinstance(value, str) and not isinstance(like, str):
        value = _parsed(value)
    value = _typed(key, value, like, where)
    if key in PATHS:
        value = os.path.expanduser(value)
    if key in CHOICES and value not in CHOICES[key]:
        raise ConfigError(f"{where}: {key} is '{value}', allowed: {', '.join(CHOICES[key])}")
    low, high = RANGES.get(key, (-math.inf, math.inf))
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, (int, float)) and not low <= number <= high:
            off = ", or null" if key in OPTIONAL else ""
            raise ConfigError(f"{where}: {key} is {value}, allowed: {_range_text(low, high)}{off}")
    return value


def _range_text(low: float, high: float) -> str:
    if low == ABOVE_ZERO[0]:
        return "above 0" if high == math.inf else f"above 0, at most {high:g}"
    if high == math.inf:
        return f"{low:g} and above"
    return f"{low:g} to {'less than 1' if (low, high) == BELOW_ONE else format(high, '.10g')}"


def _parsed(text: str) -> Any:
    """`text` as yaml reads it, and 1e-3, which yaml takes for a string, as a number."""
    try:
        value = yaml.safe_load(text)
        return float(value) if isinstance(value, str) else value
    except (ValueError, yaml.YAMLError):
        return text


def _typed(key: str, value: Any, like: Any, where: str) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(like, list) and isinstance(value, (list, tuple)):
        return [_typed(key, item, like[0], where) if like else item for item in value]
    if isinstance(like, float) and isinstance(value, str):
        value = _parsed(value)
    if isinstance(like, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(like) or (isinstance(value, float) and not math.isfinite(value)):
        raise ConfigTypeError(f"{where}: {key} is {value!r}, which is no {_type_name(like)}")
    return value


def _type_name(like: Any) -> str:
    names = {bool: "true or false", int: "whole number", float: "number", str: "text", list: "list"}
    return names[type(like)]
