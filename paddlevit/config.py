"""Configuration: defaults, yaml files with BASE inheritance, flags and options, checked and frozen.

A key's default gives its type. The keys of MODEL that only one family has stand, with their defaults and ranges, in
`configs/<family>/_family.yaml`; all others in `schema.py`.
"""

from __future__ import annotations

import copy
import difflib
import fnmatch
import functools
import itertools
import logging
import os
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from yacs.config import CfgNode

from paddlevit.errors import MissingFileError, UserError, quoted
from paddlevit.schema import FLAGS, KEYS, PATHS, ROWS, Key

logger = logging.getLogger(__name__)

CONFIG_DIR = Path(__file__).parent / "configs"

# What people and other projects call a family, a size or a kind of model.
_ALIASES = {"hrt": "hrformer", "tiny": "ti", "t": "ti", "small": "s", "base": "b", "distill": "distilled"}
OF_IMAGES = r"DATA\.(IMAGE_\w+|IMAGENET_\w+|CROP_PCT|RESIZE_MODE|INTERPOLATION|EXIF_ORIENTATION)"  # what a model sees
HEAD, _END = "# The configuration of a run, as it was resolved.\n", "# end\n"
_OF_A_START = {"OUTPUT", "MODEL.RESUME"}  # differ where a run is resumed
_MOST_VALUES = 10_000  # in one file: aliases of aliases multiply


class ConfigError(UserError):
    """A configuration that cannot be used."""


class ConfigKeyError(ConfigError, KeyError):
    """A key that does not exist."""


class ConfigTypeError(ConfigError, TypeError):
    """A value of another type than its key's."""


class _Source(NamedTuple):
    key: str  # dotted
    value: Any
    origin: str = ""  # a file or a flag
    line: int = 0  # in the file

    @property
    def where(self) -> str:
        """The beginning of a message about it."""
        line = f":{self.line}" if self.line else ""
        return f"{self.origin}{line}: " if self.origin else ""


def get_config(cfg: str | Path | None = None, opts: Sequence[Any] | None = None) -> CfgNode:
    """The frozen configuration of a yaml file or a shipped variant.

    `cfg` is a yaml file, a json file of official HVT, or a variant's name ('pit_b_224'; `find_variant` says what else
    counts as its name), or None for the defaults; `opts` a flat list of keys and values (['TRAIN.BASE_LR', 1e-3])
    that take precedence. Raises ConfigKeyError, ConfigTypeError, ConfigError or MissingFileError.
    """
    return _resolve([*_read(cfg), *_pairs(opts or [])])


def update_config(config: CfgNode, args: Namespace) -> CfgNode:
    """A new frozen configuration: `config`, or the one that `args.cfg` names, with the flags and `opts` of `args`.

    `args` has attributes named as the flags of `schema.FLAGS`; None and False count as not given. `args.recipe` is
    official (the variant's own), or another of configs/_<recipe>.yaml. Raises as `get_config`.
    """
    start = _read(args.cfg) if getattr(args, "cfg", None) else list(_flat(config, "config"))
    recipe = getattr(args, "recipe", None) or "official"
    if recipe != "official":
        start += _read(CONFIG_DIR / f"_{recipe}.yaml")
    given = {flag: (key, getattr(args, flag, None)) for flag, key in FLAGS.items()}
    flags = [
        _Source(key, value, f"-{flag}")
        for flag, (key, value) in given.items()
        if value is not None and value is not False
    ]
    return _resolve([*start, *flags, *_pairs(getattr(args, "opts", None) or [])])


def with_values(config: CfgNode, values: dict[str, Any]) -> CfgNode:
    """A new frozen configuration in which the dotted keys of `values` are set. Raises as `get_config`."""
    return _resolve([*_flat(config, "config"), *itertools.starmap(_Source, values.items())])


def dumped(config: CfgNode) -> str:
    """The yaml file of `config`, of which it can be told whether it is whole."""
    return f"{HEAD}{config.dump()}{_END}"


def read_dumped(path: Path) -> dict[str, Any]:
    """The values of a run's config.yaml by dotted key, also of keys that are no longer known. Raises ConfigError."""
    return dict(flat(_load(path, yaml.SafeLoader)))


def flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys of nested sections, and their values."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def changes(path: Path, config: CfgNode, pattern: str = ".*") -> list[str]:
    """Keys, of those that the pattern fits, that differ between the yaml file `path` and `config`, with both values."""
    try:
        before = read_dumped(path)
    except UserError as error:
        return [f"settings that cannot be told ({error})"]
    now = dict(flat(yaml.safe_load(config.dump())))
    keys = [key for key in sorted({*before, *now} - _OF_A_START) if re.fullmatch(pattern, key)]
    return [f"{key} was {before.get(key)}, now {now.get(key)}" for key in keys if before.get(key) != now.get(key)]


def variant_names(pattern: str = "*") -> list[str]:
    """Stems of the shipped yaml files that match `pattern` (as in file names: * and ?), sorted."""
    stems = (path.stem for path in CONFIG_DIR.glob("*/*.yaml") if not path.stem.startswith("_"))
    return sorted(stem for stem in stems if fnmatch.fnmatchcase(stem, pattern))


def find_variant(typed: str) -> str:
    """The shipped variant that a name or path means; a warning says which, where it is not its name.

    Folders and suffix do not count, nor do case, - and _. hrformer is hrt, tiny (t), small and base are ti, s and b.
    Only patch16 and the image size may be left out: 224 is meant, or the one size that there is. So 384 and distilled
    are never assumed where 224 or the plain model exists. Raises MissingFileError that names the nearest.
    """
    stem = re.sub(r"\.(ya?ml|json)$", "", re.split(r"[/\\]", typed)[-1])
    by_key = {_key(name): name for name in variant_names()}
    key = _key(stem)
    sizes = [other for other in by_key if re.fullmatch(re.escape(key) + r" \d{3}", other)]
    found = by_key.get(sizes[0] if key not in by_key and len(sizes) == 1 else key)
    if found is None and os.path.isdir(typed):
        raise MissingFileError(f"{typed} is a folder: name a yaml file or a variant")
    if found is None:
        raise MissingFileError(
            f"there is no configuration file and no variant '{typed}'{_nearest(key, by_key)} "
            "(paddlevit.list_models() names all)"
        )
    if found != typed and os.environ.get("PADDLE_TRAINER_ID", "0") == "0":  # one process says it for all
        logger.warning("'%s' means the variant %s", typed, found)
    return found


def _key(name: str) -> str:
    """The words and numbers of a variant's name, as we say them, without patch16 and 224."""
    square = re.sub(r"(?<!\d)(\d+)x\1(?!\d)", r"\1", name.lower())
    words = re.findall(r"[^\W\d_]+|\d+|[^\w .-]", square)
    return re.sub(r" patch 16\b| 224$", "", " ".join(_ALIASES.get(word, word) for word in words))


def _nearest(key: str, by_key: dict[str, str]) -> str:
    words = re.findall(r"[a-z]{3,}", key)
    score = {
        other: difflib.SequenceMatcher(None, key, other).ratio() + any(word in other for word in words)
        for other in by_key
    }
    near = [by_key[other] for other in sorted(by_key, key=lambda other: -score[other]) if score[other] > 0.75]
    return f"; did you mean {' or '.join(near[:3])}?" if near else ""


def _read(cfg: str | Path | None, folder: Path | None = None, seen: tuple[Path, ...] = ()) -> list[_Source]:
    """What the file or variant `cfg`, and the files that its BASE names, set. `seen` are the files that name it."""
    if cfg is None:
        return []
    path = (folder or Path()) / os.path.expanduser(cfg)
    if not os.path.isfile(path):
        path = next(CONFIG_DIR.glob(f"*/{find_variant(str(cfg))}.yaml"))
    if path.resolve() in seen:
        raise ConfigError(f"{path}: BASE leads back to this file")
    content = _load(path)
    if path.suffix == ".json" and not content.keys() & KEYS.keys():
        return _official_json(content, path)
    bases = content.pop("BASE", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigTypeError(f"{path}: BASE must be a file, a variant or a list of them, got {quoted(bases)}")
    sources = [source for base in bases if base for source in _read(base, path.parent, (*seen, path.resolve()))]
    return [*sources, *_flat(content, str(path))]


class _Key(str):
    """A key of a file that knows its line."""

    line = 0


class _Loader(yaml.SafeLoader):
    """Leaves scalars as the text that the file has: a key's type decides what it means, not the rules of YAML 1.1, by
    which 010 is 8, 1:30 is 90 and `on` is true. Null is None, and a mapping has no key twice."""

    def scalar(self, node: yaml.ScalarNode) -> Any:
        text = self.construct_scalar(node)
        return None if node.tag.endswith(":null") else text

    def sequence(self, node: yaml.SequenceNode) -> list[Any]:
        return self.construct_sequence(node, deep=True)

    def mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        content: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be text", problem_mark=key.start_mark)
            if key.value in lines:
                problem = f"'{key.value}' is given twice, first in line {lines[key.value]}"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        for name, value in self.construct_mapping(node, deep=True).items():
            own = _Key(name)
            own.line = lines.get(str(name), node.start_mark.line + 1)
            content[own] = value
        return content


_Loader.yaml_constructors = {
    None: _Loader.construct_undefined,
    **{
        f"tag:yaml.org,2002:{kind}": _Loader.scalar
        for kind in ("null", "bool", "int", "float", "timestamp", "value", "str")
    },
    "tag:yaml.org,2002:seq": _Loader.sequence,
    "tag:yaml.org,2002:map": _Loader.mapping,
}


def _load(path: Path, loader: type = _Loader) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except OSError as error:
        kind = MissingFileError if isinstance(error, FileNotFoundError) else ConfigError
        raise kind(f"{path} cannot be read: {error.strerror}") from None
    if data.startswith(HEAD.encode()) and not data.endswith(_END.encode()):
        raise ConfigError(f"{path} is cut short: its last line, '{_END.strip()}', is missing")
    try:
        # To YAML, json is a part of it but for tabs.
        content = yaml.load(data.expandtabs() if path.suffix == ".json" else data, loader)
        too_many = any(True for _ in itertools.islice(_values(content), _MOST_VALUES, None))
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # such as of a 13th month
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or f"not a yaml file ({getattr(error, 'reason', error)})"
        line = mark.line if mark else data.count(b"\n", 0, getattr(error, "position", 0))
        raise ConfigError(f"{path}:{line + 1}: {problem}") from None
    if too_many:
        raise ConfigError(f"{path} holds more than {_MOST_VALUES} values")
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no keys")
    return content


def _values(content: Any) -> Iterator[Any]:
    yield content
    for inner in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        yield from _values(inner)


def _official_json(content: dict[str, Any], path: Path) -> list[_Source]:
    """What a json file of official HVT sets, as `configs/hvt/_json.yaml` says."""
    table = yaml.safe_load((CONFIG_DIR / "hvt" / "_json.yaml").read_text(encoding="utf-8"))
    content |= {name: value for name, value in table["DEFAULTS"].items() if name not in content}
    numbers = {name: str(content[name]) for name in ("num_heads", "head_dim", "input_size", "pool_stride")}
    for name, number in numbers.items():
        if not number.isdecimal():
            raise ConfigTypeError(f"{path}: {name} must be an integer, got {quoted(number)}")
    width = int(numbers["num_heads"]) * int(content.pop("head_dim"))
    sources = [_Source("MODEL.NAME", path.stem), _Source("MODEL.EMBED_DIM", width, str(path))]
    if int(numbers["input_size"]) <= 32:  # there, small images are neither resized nor cut to a part of them
        sources += [_Source("TRAIN.CROP", "padded"), _Source("DATA.CROP_PCT", 1.0)]
    if int(numbers["pool_stride"]) != 2:
        logger.warning("%s: pool_stride %s is used; the official code always pools by 2", path, numbers["pool_stride"])
    ignored = [name for name in content if name in table["IGNORED"]]
    if ignored:
        logger.info("%s: ignored %s", path, ", ".join(ignored))
    for name, value in content.items():
        source = _Source(table["KEYS"].get(name, name), value, str(path), getattr(name, "line", 0))
        words = table["VALUES"].get(name)
        if name in ignored or (name in table["KEYS"] and value is None):
            continue
        if name not in table["KEYS"]:
            near = difflib.get_close_matches(name, table["KEYS"], n=1, cutoff=0.0)[0]
            raise ConfigKeyError(f"{source.where}there is no key '{name}' (official HVT); the nearest one is '{near}'")
        if words and value not in list(words):
            raise ConfigError(f"{source.where}{name} must be one of {', '.join(words)}, got {quoted(value)}")
        sources.append(source._replace(value=words[value]) if words else source)
    return sources


def _flat(node: dict[str, Any], origin: str, prefix: str = "") -> Iterator[_Source]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, origin, f"{prefix}{key}.")
        else:
            yield _Source(f"{prefix}{key}", None if value == {} else value, origin, getattr(key, "line", 0))


def _pairs(opts: Sequence[Any]) -> list[_Source]:
    if not isinstance(opts, (list, tuple)):
        raise ConfigTypeError(f"opts must be a list of keys and values, ['TRAIN.BASE_LR', 1e-3], got {quoted(opts)}")
    if len(opts) % 2:
        raise ConfigError(f"opts must be pairs of a key and a value, but '{opts[-1]}' stands alone")
    return [_Source(str(key), value, "opts") for key, value in zip(opts[::2], opts[1::2])]


def _resolve(sources: list[_Source]) -> CfgNode:
    keys = _keys_of(family := _family(sources))
    values = {key: copy.deepcopy(row.default) for key, row in keys.items()}
    inference_said_by = None
    for source in sources:
        if source.key not in keys:
            if source.value is not None or not _keys_in(source.key, keys):  # else a section without keys
                raise _unknown(source, keys, family)
            continue
        try:
            value = keys[source.key].checked(source.value)
            values[source.key] = _path(value) if source.key in PATHS else value
        except (TypeError, ValueError) as error:
            kind = ConfigTypeError if isinstance(error, TypeError) else ConfigError
            raise kind(f"{source.where}{source.key} {error}") from None
        if source.key == "DATA.INFER_NUM_CLASSES":
            inference_said_by = source.origin
        elif source.key == "MODEL.NUM_CLASSES" and source.origin != inference_said_by:
            values["DATA.INFER_NUM_CLASSES"] = False
    values["MODEL.TYPE"] = family
    # PaddleViT's yaml files say by the objective whether the model has a second head.
    if values.get("MODEL.DISTILLED", False) is None:
        values["MODEL.DISTILLED"] = values["TRAIN.DISTILLATION_TYPE"] != "none"
    return _nested(values)


def _path(value: str) -> str:
    """A path from a command line or a file in UTF-8, as Python has it in this process's locale."""
    if "\0" in value:
        raise ValueError("must be a path, which has no zero byte")
    return os.fsdecode(os.path.expanduser(value).encode("utf-8", "surrogateescape"))


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


def _family(sources: list[_Source]) -> str:
    default = _Source("MODEL.TYPE", KEYS["MODEL"]["TYPE"])
    source = [default, *(source for source in sources if source.key == "MODEL.TYPE")][-1]
    name = str(source.value).lower()
    family = _ALIASES.get(name, name)
    families = sorted(path.parent.name for path in CONFIG_DIR.glob("*/_family.yaml"))
    if family not in families:
        raise ConfigError(f"{source.where}MODEL.TYPE must be one of {', '.join(families)}, got {quoted(source.value)}")
    return family


@functools.cache
def _keys_of(family: str) -> dict[str, Key]:
    """All keys that a family has."""
    own = yaml.safe_load((CONFIG_DIR / family / "_family.yaml").read_text(encoding="utf-8")) or {}
    allowed = {key: tuple(words) for key, words in own.get("CHOICES", {}).items()}
    allowed |= {key: span for span, keys in own.get("RANGES", {}).items() for key in keys}
    keys = dict(ROWS)
    for key, default, *_ in _flat(own.get("MODEL", {}), ""):
        keys[f"MODEL.{key}"] = Key(default, allowed.get(key, ""), own.get("OPTIONAL", {}).get(key))
    return keys


def _keys_in(section: str, keys: dict[str, Key]) -> list[str]:
    return [key for key in keys if key.startswith(f"{section}.")]


def _unknown(source: _Source, keys: dict[str, Key], family: str) -> ConfigKeyError:
    where, key = source.where, source.key[:100]
    inside = _keys_in(key, keys)
    if inside:
        got = quoted(source.value)
        return ConfigKeyError(f"{where}{key} must be a section of keys, such as {inside[0]}, got {got}")
    by_upper = {known.upper(): known for known in keys}
    near = by_upper[difflib.get_close_matches(key.upper(), by_upper, n=1, cutoff=0.0)[0]]
    return ConfigKeyError(f"{where}there is no key '{key}' (family {family}); the nearest one is '{near}'")
