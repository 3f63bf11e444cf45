"""Configuration: defaults, yaml files with BASE inheritance, flags and options, checked and frozen.

A key's default gives its type. The keys of MODEL that only one family has stand, with their defaults, in
`configs/<family>/_family.yaml`; all others stand here.
"""

import copy
import difflib
import fnmatch
from argparse import Namespace
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import yaml
from yacs.config import CfgNode

from paddlevit.errors import MissingFileError, UserError

CONFIG_DIR = Path(__file__).parent / "configs"

_DEFAULTS: Dict[str, Any] = {
    "DATA": {
        "DATASET": "imagenet2012",  # or cifar10, cifar100
        "DATA_PATH": "./data/imagenet",
        "BATCH_SIZE": 128,  # per process
        "BATCH_SIZE_EVAL": None,  # per process; null: BATCH_SIZE
        "IMAGE_SIZE": 224,
        "IMAGE_CHANNELS": 3,
        "CROP_PCT": 0.875,  # evaluation: resize the shorter side to IMAGE_SIZE / CROP_PCT, cut out the centre
        "RESIZE_MODE": "crop",  # evaluation: crop, or squash (both sides to IMAGE_SIZE, nothing cut off)
        "INTERPOLATION": "bicubic",  # or bilinear
        "IMAGENET_MEAN": [0.485, 0.456, 0.406],
        "IMAGENET_STD": [0.229, 0.224, 0.225],
        "NUM_WORKERS": -1,  # per process; -1: one per core that is free for it, at most 8
        "INFER_NUM_CLASSES": True,  # MODEL.NUM_CLASSES from the data; false where the user gave it
    },
    "MODEL": {
        "TYPE": "pit",  # the family: hvt, cvt, hrformer, pit, regnet
        "NAME": "",
        "NUM_CLASSES": 1000,  # 0: no head, the network returns features
        "PRETRAINED": "",
        "REINIT_HEAD": False,  # start with a new classifier where PRETRAINED has another number of classes
        "RESUME": "",  # a checkpoint, a run's folder, or auto
    },
    "TRAIN": {
        "LAST_EPOCH": 0,  # epochs to count as done
        "NUM_EPOCHS": 300,
        "BASE_LR": 5.0e-4,  # at LINEAR_SCALED_LR images per optimizer step
        "LINEAR_SCALED_LR": 512,  # null: BASE_LR is used as it is
        "SCALE_ALL_LRS": False,  # scale WARMUP_START_LR and END_LR as well
        "LR_SCHEDULE": "previous_epoch",  # the learning rate follows the iteration, the epoch, or the epoch before
        "WARMUP_EPOCHS": 5.0,
        "WARMUP_START_LR": 1.0e-6,
        "END_LR": 1.0e-5,
        "WEIGHT_DECAY": 0.05,
        "NO_WEIGHT_DECAY": ["pos_embed", "cls_token", "dist_token"],  # last part of the name; 1-D tensors never decay
        "GRAD_CLIP": None,  # largest global norm of the gradient; null: not clipped
        "ACCUM_ITER": 1,  # batches per optimizer step
        "OPTIMIZER": {"NAME": "AdamW", "EPS": 1.0e-8, "BETAS": [0.9, 0.999]},
        "MODEL_EMA": False,
        "MODEL_EMA_DECAY": 0.99996,
        "MODEL_EMA_WARMUP": True,  # decay (1 + step) / (10 + step) while that is smaller
        "SMOOTHING": 0.1,
        "MIXUP_ALPHA": 0.8,
        "CUTMIX_ALPHA": 1.0,
        "CUTMIX_MINMAX": None,
        "MIXUP_PROB": 1.0,
        "MIXUP_SWITCH_PROB": 0.5,
        "MIXUP_MODE": "batch",
        "CROP": "random_resized",  # or padded: CROP_PADDING pixels around, then a random crop of IMAGE_SIZE
        "CROP_SCALE": [0.08, 1.0],  # share of the area that random_resized keeps
        "CROP_RATIO": [0.75, 1.3333333333333333],  # width / height that random_resized keeps
        "CROP_PADDING": 4,
        "HFLIP": 0.5,
        "COLOR_JITTER": 0.4,  # only without RAND_AUGMENT and AUTO_AUGMENT
        "RAND_AUGMENT": True,
        "RAND_AUGMENT_LAYERS": 2,
        "RAND_AUGMENT_MAGNITUDE": 9,
        "RAND_AUGMENT_STD": 0.5,
        "AUTO_AUGMENT": False,
        "RANDOM_ERASE_PROB": 0.25,
        "RANDOM_ERASE_MODE": "pixel",  # or const, rand
        "RANDOM_ERASE_COUNT": 1,
        "REPEATED_AUG": 1,  # times that an image stands in an epoch, each with another augmentation
        "DISTILLATION_TYPE": "none",
        "DISTILLATION_ALPHA": 0.5,
        "DISTILLATION_TAU": 1.0,
        "TEACHER_MODEL": "regnety_160",
        "TEACHER_MODEL_PATH": "",
    },
    "OUTPUT": "",  # "": ./output/<variant>-<train or eval>-<time>
    "DEVICE": "auto",
    "NPROCS": None,  # processes to start; null: one per visible GPU, 1 on CPU
    "EVAL": False,
    "AMP": False,
    "AMP_DTYPE": "float16",
    "AMP_OPT_LEVEL": "O1",
    "SEED": 0,
    "SAVE_FREQ": 1,  # epochs between checkpoints
    "KEEP_LAST": 3,  # checkpoints that stay, beside the best
    "VALIDATE_FREQ": 1,  # epochs between evaluations
    "REPORT_FREQ": 50,  # steps between lines of the log
}

# Keys whose default is null, and what they hold otherwise.
_OPTIONAL: Dict[str, Any] = {
    "DATA.BATCH_SIZE_EVAL": 1,
    "MODEL.DISTILLED": False,
    "NPROCS": 1,
    "TRAIN.CUTMIX_MINMAX": [0.0],
    "TRAIN.GRAD_CLIP": 1.0,
    "TRAIN.LINEAR_SCALED_LR": 1,
}

_CHOICES: Dict[str, Tuple[str, ...]] = {
    "AMP_DTYPE": ("float16", "bfloat16"),
    "AMP_OPT_LEVEL": ("O0", "O1", "O2"),
    "DATA.DATASET": ("imagenet2012", "cifar10", "cifar100"),
    "DATA.INTERPOLATION": ("bicubic", "bilinear"),
    "DATA.RESIZE_MODE": ("crop", "squash"),
    "DEVICE": ("auto", "gpu", "cpu"),
    "TRAIN.CROP": ("random_resized", "padded"),
    "TRAIN.DISTILLATION_TYPE": ("none", "soft", "hard"),
    "TRAIN.LR_SCHEDULE": ("epoch", "previous_epoch", "iteration"),
    "TRAIN.MIXUP_MODE": ("batch", "elem", "pair"),
    "TRAIN.OPTIMIZER.NAME": ("AdamW",),
    "TRAIN.RANDOM_ERASE_MODE": ("const", "rand", "pixel"),
}

_AT_LEAST_ONE = (
    "DATA.BATCH_SIZE",
    "DATA.BATCH_SIZE_EVAL",
    "DATA.IMAGE_SIZE",
    "KEEP_LAST",
    "NPROCS",
    "REPORT_FREQ",
    "SAVE_FREQ",
    "TRAIN.ACCUM_ITER",
    "TRAIN.LINEAR_SCALED_LR",
    "TRAIN.NUM_EPOCHS",
    "TRAIN.REPEATED_AUG",
    "VALIDATE_FREQ",
)

# What yaml files of other projects call a family.
_FAMILY_ALIASES = {"hrt": "hrformer"}

# Command-line flag -> configuration key.
FLAGS: Dict[str, str] = {
    "dataset": "DATA.DATASET",
    "data_path": "DATA.DATA_PATH",
    "batch_size": "DATA.BATCH_SIZE",
    "batch_size_eval": "DATA.BATCH_SIZE_EVAL",
    "image_size": "DATA.IMAGE_SIZE",
    "num_workers": "DATA.NUM_WORKERS",
    "num_classes": "MODEL.NUM_CLASSES",
    "pretrained": "MODEL.PRETRAINED",
    "reinit_head": "MODEL.REINIT_HEAD",
    "resume": "MODEL.RESUME",
    "accum_iter": "TRAIN.ACCUM_ITER",
    "last_epoch": "TRAIN.LAST_EPOCH",
    "teacher": "TRAIN.TEACHER_MODEL",
    "teacher_model_path": "TRAIN.TEACHER_MODEL_PATH",
    "output": "OUTPUT",
    "eval": "EVAL",
    "amp": "AMP",
    "amp_dtype": "AMP_DTYPE",
    "device": "DEVICE",
    "nprocs": "NPROCS",
    "seed": "SEED",
}

_Source = Tuple[str, Any, str]  # dotted key, value, where it was written


class ConfigError(UserError):
    """A configuration that cannot be used."""


class ConfigKeyError(ConfigError, KeyError):
    """A key that does not exist."""


class ConfigTypeError(ConfigError, TypeError):
    """A value of another type than its key's."""


def get_config(cfg: Union[str, Path, None] = None, opts: Optional[Sequence[Any]] = None) -> CfgNode:
    """The frozen configuration of a yaml file or a shipped variant.

    `cfg` is a path or a variant's name ('pit_b_224'), or None for the defaults; `opts` a flat list of keys and values
    (['TRAIN.BASE_LR', 1e-3]) that take precedence. Raises ConfigKeyError, ConfigTypeError, ConfigError or
    MissingFileError.
    """
    return _resolve([*_read(cfg), *_pairs(opts or [])])


def update_config(config: CfgNode, args: Namespace) -> CfgNode:
    """A new frozen configuration: `config`, or the one that `args.cfg` names, with the flags and `opts` of `args`."""
    start = _read(args.cfg) if getattr(args, "cfg", None) else list(_flat(config, "the configuration"))
    flags = [
        (key, getattr(args, flag), f"flag -{flag}")
        for flag, key in FLAGS.items()
        if getattr(args, flag, None) not in (None, False)
    ]
    return _resolve([*start, *flags, *_pairs(getattr(args, "opts", None) or [])])


def with_values(config: CfgNode, values: Dict[str, Any]) -> CfgNode:
    """A new frozen configuration in which the dotted keys of `values` are set."""
    return _resolve(
        [*_flat(config, "the configuration"), *((key, value, "the program") for key, value in values.items())]
    )


def variant_names(pattern: str = "*") -> List[str]:
    """Stems of the shipped yaml files that match `pattern` (as in file names: * and ?), sorted."""
    stems = (path.stem for path in CONFIG_DIR.glob("*/*.yaml") if not path.stem.startswith("_"))
    return sorted(stem for stem in stems if fnmatch.fnmatchcase(stem, pattern))


def variant_path(name: str) -> Path:
    """The shipped yaml file of a variant; MissingFileError names the nearest variants where there is none."""
    for path in CONFIG_DIR.glob(f"*/{name}.yaml"):
        return path
    near = difflib.get_close_matches(name, variant_names(), n=3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise MissingFileError(f"no configuration file and no variant is called '{name}'{hint}")


def _read(cfg: Union[str, Path, None]) -> List[_Source]:
    if cfg is None:
        return []
    path = Path(cfg)
    return _read_file(path if path.is_file() else _named(str(cfg)), ())


def _named(name: str) -> Path:
    if name.endswith((".yaml", ".yml")) or "/" in name:
        raise MissingFileError(f"there is no configuration file '{name}'")
    return variant_path(name)


def _read_file(path: Path, seen: Tuple[Path, ...]) -> List[_Source]:
    if path.resolve() in seen:
        raise ConfigError(f"{path}: BASE leads back to this file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a yaml file: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no keys")
    bases = content.pop("BASE", None) or []
    sources: List[_Source] = []
    for base in [bases] if isinstance(bases, str) else bases:
        if base:
            base_path = path.parent / base
            sources += _read_file(base_path if base_path.is_file() else _named(base), (*seen, path.resolve()))
    return sources + list(_flat(content, str(path)))


def _flat(node: Dict[str, Any], where: str, prefix: str = "") -> Iterator[_Source]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, where, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value, where


def _pairs(opts: Sequence[Any]) -> List[_Source]:
    if len(opts) % 2:
        raise ConfigError(f"options come as pairs of a key and a value, but '{opts[-1]}' stands alone")
    return [(str(key), value, "option") for key, value in zip(opts[::2], opts[1::2])]


def _resolve(sources: List[_Source]) -> CfgNode:
    schema = _schema(sources)
    defaults = {key: value for key, value, _ in _flat(schema, "")}
    values = copy.deepcopy(defaults)
    inference_said_by = ""
    for key, value, where in sources:
        if key not in values:
            raise _unknown(key, where, values, schema["MODEL"]["TYPE"])
        values[key] = _checked(key, value, _OPTIONAL.get(key, defaults[key]), where)
        if key == "DATA.INFER_NUM_CLASSES":
            inference_said_by = where
        elif key == "MODEL.NUM_CLASSES" and where != inference_said_by:
            values["DATA.INFER_NUM_CLASSES"] = False
    values["MODEL.TYPE"] = schema["MODEL"]["TYPE"]
    # PaddleViT's yaml files say by the objective whether the network has a second head.
    if values.get("MODEL.DISTILLED", False) is None:
        values["MODEL.DISTILLED"] = values["TRAIN.DISTILLATION_TYPE"] != "none"
    return _nested(values)


def _nested(values: Dict[str, Any]) -> CfgNode:
    config = CfgNode()
    for key, value in values.items():
        *parents, leaf = key.split(".")
        node = config
        for parent in parents:
            node = node.setdefault(parent, CfgNode())
        node[leaf] = value
    config.freeze()
    return config


def _schema(sources: List[_Source]) -> Dict[str, Any]:
    """The defaults, with the MODEL keys of the family that `sources` name."""
    given = [(value, where) for key, value, where in sources if key == "MODEL.TYPE"]
    name, where = given[-1] if given else (_DEFAULTS["MODEL"]["TYPE"], "the defaults")
    family = _FAMILY_ALIASES.get(str(name).lower(), str(name).lower())
    path = CONFIG_DIR / family / "_family.yaml"
    if not path.is_file():
        families = ", ".join(sorted(p.parent.name for p in CONFIG_DIR.glob("*/_family.yaml")))
        raise ConfigError(f"{where}: MODEL.TYPE is '{name}', allowed: {families}")
    own = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {**_DEFAULTS, "MODEL": {**_DEFAULTS["MODEL"], "TYPE": family, **own["MODEL"]}}


def _unknown(key: str, where: str, values: Dict[str, Any], family: str) -> ConfigKeyError:
    by_upper = {known.upper(): known for known in values}
    near = difflib.get_close_matches(key.upper(), by_upper, n=1, cutoff=0.0)
    return ConfigKeyError(
        f"{where}: there is no key '{key}' (family {family}); the nearest one is '{by_upper[near[0]]}'"
    )


def _checked(key: str, value: Any, like: Any, where: str) -> Any:
    if key in _OPTIONAL and (value is None or value in ("null", "None")):
        return None
    if isinstance(value, str) and not isinstance(like, str):
        value = _parsed(value)
    value = _typed(key, value, like, where)
    if key in _CHOICES and value not in _CHOICES[key]:
        raise ConfigError(f"{where}: {key} is '{value}', allowed: {', '.join(_CHOICES[key])}")
    if key in _AT_LEAST_ONE and value < 1:
        raise ConfigError(f"{where}: {key} is {value}, allowed: 1 and above")
    return value


def _parsed(text: str) -> Any:
    """`text` as yaml reads it, and 1e-3, which yaml takes for a string, as a number."""
    try:
        value = yaml.safe_load(text)
        return float(value) if isinstance(value, str) else value
    except (ValueError, yaml.YAMLError):
        return text


def _typed(key: str, value: Any, like: Any, where: str) -> Any:
    if isinstance(like, list) and isinstance(value, (list, tuple)):
        return [_typed(key, item, like[0], where) if like else item for item in value]
    if isinstance(like, float) and isinstance(value, str):
        value = _parsed(value)
    if isinstance(like, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(like):
        raise ConfigTypeError(f"{where}: {key} is {value!r}, which is no {_type_name(like)}")
    return value


def _type_name(like: Any) -> str:
    names = {bool: "true or false", int: "whole number", float: "number", str: "text", list: "list"}
    return names[type(like)]
