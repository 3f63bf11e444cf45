"""The keys of the configuration: defaults, what their values may be, and the flags that set them."""

from __future__ import annotations

import math
import operator
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import yaml

from paddlevit.errors import UserError, quoted

_TYPES = {
    bool: ("true or false", "true and false"),
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
    list: ("a list", "lists"),
}
_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_COMPARE = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}


class Key(NamedTuple):
    """A key with a range, a choice of words, or that may be null, or a flag. Any other is its default alone."""

    default: Any
    allowed: str | tuple[str, ...] = ""  # a range (of every entry, where the value is a list), or the words
    like: Any = None  # where the key may be null: a value of its type
    flag: tuple[str, str] = ("", "")  # of the command line, and its help, which is the key's meaning

    @property
    def type(self) -> type:
        """Of its values, where they are not null."""
        return type(self.default if self.like is None else self.like)

    def checked(self, value: Any) -> Any:
        """`value` in the key's type; text, as files and the command line have it, is read as that type.

        Raises TypeError or ValueError, which say what the value must be and what it is.
        """
        like, or_null = (self.default, "") if self.like is None else (self.like, " or null")
        if or_null and (value is None or (isinstance(value, str) and value.lower() in ("none", "null", "~"))):
            return None
        if value is None and self.default == "":
            return ""
        try:
            typed = _typed(value, like)
        except (TypeError, ValueError, OverflowError, yaml.YAMLError, RecursionError):
            of = f" of {_TYPES[type(like[0])][1]}" if isinstance(like, list) and like else ""
            raise TypeError(f"must be {_TYPES[type(like)][0]}{of}{or_null}, got {quoted(value)}") from None
        if isinstance(self.allowed, tuple):
            if typed not in self.allowed:
                raise ValueError(f"must be one of {', '.join(self.allowed)}, got {quoted(typed)}")
        elif self.allowed and not all(_in_range(number, self.allowed) for number in _numbers(typed)):
            be = "have entries" if type(typed) is list else "be"
            raise ValueError(f"must {be} {self.allowed}{or_null}, got {quoted(typed)}")
        return typed


def _numbers(value: Any) -> list[float]:
    """A number, or those of nested lists."""
    return [number for each in value for number in _numbers(each)] if isinstance(value, list) else [value]


def _in_range(number: float, allowed: str) -> bool:
    return all(_COMPARE[sign](number, float(limit)) for sign, limit in map(str.split, allowed.split(" and ")))


def _typed(value: Any, like: Any) -> Any:
    """`value` in the type of `like`. What YAML 1.1 makes of 010 (8), 1:30 (90) or `on` (true) is nowhere assumed."""
    if hasattr(value, "tolist"):  # NumPy's
        value = value.tolist()
    elif isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(like, list):
        items = yaml.load(value, yaml.BaseLoader) if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise TypeError
        return [_typed(item, like[0]) if like else item for item in items]
    if isinstance(value, str) and isinstance(like, bool):
        value = _BOOLS.get(value.lower())
    elif isinstance(value, str) and not isinstance(like, str):
        if re.match(r"[-+]?0\d", value):
            raise ValueError  # octal or decimal
        value = type(like)(value)
    if isinstance(like, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(like) or (isinstance(value, float) and not math.isfinite(value)):
        raise TypeError
    return value


_SHARE = ">= 0 and <= 1"

_DATASETS = ("imagenet2012", "cifar10", "cifar100", *(f"imagenet-{of}" for of in ("v2", "a", "r", "sketch", "real")))
TTA = ("none", "flip", "shift")
_ENGINES, _PRECISIONS = ("auto", "paddle", "openvino", "onnx"), ("auto", "f32", "bf16", "int8")

KEYS: dict[str, Any] = {
    "DATA": {
        "DATASET": Key("imagenet2012", _DATASETS, flag=("dataset", "imagenet2012: any folder; the last five: -eval")),
        "DATA_PATH": Key("./data/imagenet", flag=("data_path", "folder of the data set")),
        "BATCH_SIZE": Key(128, ">= 1", flag=("batch_size", "images per process and step")),
        "BATCH_SIZE_EVAL": Key(None, ">= 1", like=1, flag=("batch_size_eval", "to validate with; null: BATCH_SIZE")),
        "IMAGE_SIZE": Key(224, ">= 1", flag=("image_size", "side of the square image")),
        "IMAGE_CHANNELS": Key(3, ">= 1"),  # 1: grey
        "CROP_PCT": Key(0.875, "> 0 and <= 1"),  # evaluation: resize the shorter side to IMAGE_SIZE / CROP_PCT, crop
        "RESIZE_MODE": Key("crop", ("crop", "squash")),  # evaluation; squash: both sides to IMAGE_SIZE, no crop
        "INTERPOLATION": Key("bicubic", ("bicubic", "bilinear")),  # filter that resizes images
        "IMAGENET_MEAN": Key([0.485, 0.456, 0.406], _SHARE),  # of pixels from 0 to 1
        "IMAGENET_STD": Key([0.229, 0.224, 0.225], "> 0 and <= 1"),  # of pixels from 0 to 1
        "NUM_WORKERS": Key(-1, ">= -1", flag=("num_workers", "decoding processes; -1: one per free core, at most 8")),
        "ON_ERROR": Key("stop", ("stop", "skip")),  # a training image that cannot be read; skip: take the next one
        "MAX_BAD": Key(100, ">= 0"),  # images per process that may be skipped
        "EXIF_ORIENTATION": Key("ignore", ("ignore", "apply")),  # apply: turn photographs as the camera was held
        "MAX_PIXELS": Key(89_478_485, ">= 1"),  # a larger image is an error, as it would fill the memory
        "INFER_NUM_CLASSES": True,  # MODEL.NUM_CLASSES from the data; false where the user gave it
    },
    "MODEL": {
        "TYPE": "pit",  # the family: hvt, cvt, hrformer, pit, regnet
        "NAME": "",  # the variant's name
        "NUM_CLASSES": Key(1000, ">= 0", flag=("num_classes", "by default the data's or the weights'; 0: no head")),
        "PRETRAINED": Key("", flag=("pretrained", "weights: a file of any source, hf:OWNER/NAME, a variant, official")),
        "WEIGHTS": Key("model", ("model", "ema"), flag=("weights", "which of -pretrained, where it has both")),
        "REINIT_HEAD": Key(False, flag=("reinit_head", "start with a new classifier, not with that of -pretrained")),
        "RESUME": Key("", flag=("resume", "a checkpoint, a run's folder, or auto: the newest in -output")),
    },
    "TRAIN": {
        "LAST_EPOCH": Key(0, ">= 0", flag=("last_epoch", "completed epochs; training starts after them")),
        "NUM_EPOCHS": Key(300, ">= 1", flag=("epochs", "epochs to train")),
        "BASE_LR": Key(5.0e-4, ">= 0", flag=("lr", "learning rate at LINEAR_SCALED_LR images per optimizer step")),
        "LINEAR_SCALED_LR": Key(512, ">= 1", like=1),  # null: BASE_LR is used as it is
        "SCALE_ALL_LRS": False,  # scale WARMUP_START_LR and END_LR as well
        # The learning rate follows the iteration, the epoch, or the epoch before.
        "LR_SCHEDULE": Key("previous_epoch", ("epoch", "previous_epoch", "iteration")),
        "LR_DECAY": Key("cosine", ("cosine", "constant", "step")),  # of the learning rate after the warm-up
        "LR_STEP_EPOCHS": Key(30, ">= 1"),  # LR_DECAY step: the learning rate is a tenth after each so many epochs
        "WARMUP_EPOCHS": Key(5.0, ">= 0", flag=("warmup_epochs", "epochs in which the learning rate rises, linearly")),
        "WARMUP_PREFIX": False,  # the decay begins after the warm-up, not at epoch 0 under it
        "WARMUP_START_LR": Key(1.0e-6, ">= 0"),  # learning rate at the start of the warm-up
        "END_LR": Key(1.0e-5, ">= 0"),  # learning rate at the end of the decay
        "WEIGHT_DECAY": Key(0.05, ">= 0", flag=("weight_decay", "weight decay; norms and biases have none")),
        # Last parts of names, in place of the model's own (pos_embed, cls_token).
        "NO_WEIGHT_DECAY": Key(None, like=[""]),
        "GRAD_CLIP": Key(None, "> 0", like=1.0),  # largest global norm of the gradient; null: not clipped
        "MAX_NONFINITE": Key(10, ">= 1"),  # steps in a row that may be left out because a gradient is not finite
        "RECOMPUTE": False,  # blocks keep no activations and compute them again: less memory, about a third more time
        "TO_STATIC": False,  # train on a static program of the model
        "SHARD_OPTIMIZER": False,  # every process keeps a part of the optimizer's state only (ZeRO stage 1)
        # Fit the new classifier to the features of the body: before training, or that only (a linear probe).
        "PROBE": Key("none", ("none", "first", "only")),
        "LAYER_DECAY": Key(1.0, _SHARE),  # factor of the learning rate from each layer to the one below; 1 at the head
        "FREEZE": Key(None, like=[""], flag=("freeze", "patterns of frozen parameters' names; '!...' takes some back")),
        "ACCUM_ITER": Key(1, ">= 1", flag=("accum_iter", "batches per optimizer step")),
        "OPTIMIZER": {
            "NAME": Key("AdamW", ("AdamW", "SGD", "Lamb")),
            "EPS": Key(1.0e-8, ">= 0"),  # added to the root of the second moment
            "BETAS": Key([0.9, 0.999], ">= 0 and < 1"),  # decay of the first and the second moment
            "MOMENTUM": Key(0.9, ">= 0 and < 1"),  # of SGD
        },
        "MODEL_EMA": False,  # keep and evaluate a moving average of the weights too
        "MODEL_EMA_DECAY": Key(0.99996, _SHARE),  # share of the average that a step keeps
        "MODEL_EMA_WARMUP": True,  # decay (1 + step) / (10 + step) while that is smaller
        "LOSS": Key("cross_entropy", ("cross_entropy", "bce")),  # bce: each class for itself
        "SMOOTHING": Key(0.1, ">= 0 and < 1"),  # label smoothing
        "MIXUP_ALPHA": Key(0.8, ">= 0"),  # alpha of mixup's Beta distribution; 0: no mixup
        "CUTMIX_ALPHA": Key(1.0, ">= 0"),  # alpha of CutMix's Beta distribution; 0: no CutMix
        "CUTMIX_MINMAX": Key(None, _SHARE, like=[0.0]),  # sides of CutMix's box, in place of the alpha
        "MIXUP_PROB": Key(1.0, _SHARE),  # probability of mixing
        "MIXUP_SWITCH_PROB": Key(0.5, _SHARE),  # share of cutmix in it, where both are on
        "MIXUP_OFF_EPOCHS": Key(0, ">= 0"),  # last epochs, without mixup and CutMix
        "MIXUP_MODE": Key("batch", ("batch", "elem", "pair")),  # one share per batch, image, or pair of images
        # padded: CROP_PADDING pixels around, then a random crop of IMAGE_SIZE
        "CROP": Key("random_resized", ("random_resized", "padded")),
        "CROP_SCALE": [0.08, 1.0],  # share of the area that random_resized keeps
        "CROP_RATIO": [0.75, 1.3333333333333333],  # width / height that random_resized keeps
        "CROP_PADDING": Key(4, ">= 0"),  # pixels around, for CROP padded
        "HFLIP": Key(0.5, _SHARE),  # probability that an image is mirrored
        # Training images by opencv where it is installed, or pillow: the published pixels, slower.
        "RESIZER": Key("auto", ("auto", "opencv", "pillow")),
        "FAST_JPEG": True,  # opencv only: decode by simplejpeg where it is installed, 1 level less exact
        "COLOR_JITTER": Key(0.4, ">= 0"),  # where only THREE_AUGMENT, or none of the three, is on
        "RAND_AUGMENT": True,  # random operations on each image
        "RAND_AUGMENT_LAYERS": Key(2, ">= 1"),  # operations per image
        "RAND_AUGMENT_MAGNITUDE": Key(9, ">= 0 and <= 10"),  # their strength
        "RAND_AUGMENT_STD": Key(0.5, ">= 0"),  # of the strength, which is drawn for each operation
        "AUTO_AUGMENT": False,  # in place of RAND_AUGMENT
        "THREE_AUGMENT": False,  # in place of RAND_AUGMENT: grey, solarized or blurred, and COLOR_JITTER
        "RANDOM_ERASE_PROB": Key(0.25, _SHARE),  # share of the images with an erased box
        "RANDOM_ERASE_MODE": Key("pixel", ("const", "rand", "pixel")),  # filled with grey, a random colour, or noise
        "RANDOM_ERASE_COUNT": Key(1, ">= 1"),  # boxes per image, at most
        "REPEATED_AUG": Key(1, ">= 1"),  # times that an image stands in an epoch, each with another augmentation
        "BALANCE": Key(0.0, _SHARE),  # 1: an epoch has images of all classes equally often; 0: as often as they are
        "CLASS_WEIGHTS": "none",  # of the loss: none, balanced, or a file with a number per line and class
        "BEST_BY": Key("acc1", ("acc1", "balanced_acc", "macro_f1", "loss")),  # what the best weights are best in
        "PATIENCE": Key(0, ">= 0", flag=("patience", "epochs without a better BEST_BY until training ends; 0: never")),
        "MIN_DELTA": Key(0.0, ">= 0"),  # what counts as better, in points of percent (BEST_BY loss: of the loss)
        "DISTILLATION_TYPE": Key("none", ("none", "soft", "hard")),  # teacher's probabilities (soft), its class (hard)
        "DISTILLATION_ALPHA": Key(0.5, _SHARE),  # share of the distillation in the loss
        "DISTILLATION_TAU": Key(1.0, "> 0"),  # temperature of soft distillation
        "TEACHER_MODEL": Key("regnety_160", flag=("teacher", "the teacher: a variant, or a yaml file")),
        "TEACHER_MODEL_PATH": Key("", flag=("teacher_model_path", "its weights; by default ./<teacher>.pdparams")),
    },
    "OUTPUT": Key("", flag=("output", "folder of the run; by default ./output/<variant>-<train or eval>-<time>")),
    "DEVICE": Key("auto", flag=("device", "auto (a GPU where there is one), gpu, cpu, or a plug-in: custom:NAME")),
    "NPROCS": Key(None, ">= 1", like=1, flag=("nprocs", "processes to start; null: one per visible GPU, 1 on CPU")),
    "MAX_RESTARTS": Key(0, ">= 0", flag=("max_restarts", "times that a run which died, failed or hung starts again")),
    "HANG_TIMEOUT": Key(1800, ">= 0", flag=("hang_timeout", "seconds without progress that count as hung; 0: never")),
    "EVAL": Key(False, flag=("eval", "evaluate -pretrained and stop")),
    "SAVE_PREDICTIONS": False,  # with EVAL: predictions.csv, a line per image
    "ENGINE": Key("paddle", _ENGINES, flag=("engine", "what computes (-eval); auto: openvino on a CPU that has it")),
    "PRECISION": Key("auto", _PRECISIONS, flag=("precision", "of -engine openvino; auto: as exported, or f32")),
    "TTA": Key("none", TTA, flag=("tta", "mean logits of an image and its mirror image (flip), or four moved (shift)")),
    "AMP": Key(False, flag=("amp", "mixed precision; nothing on a CPU")),
    "AMP_DTYPE": Key("float16", ("float16", "bfloat16"), flag=("amp_dtype", "bfloat16: compute capability >= 8.0")),
    "AMP_OPT_LEVEL": Key("O1", ("O0", "O1", "O2")),  # O1: operators in half precision; O2: weights too; O0: neither
    "SEED": Key(0, ">= 0 and < 2147483648", flag=("seed", "seed of everything random")),
    "SAVE_FREQ": Key(1, ">= 1"),  # epochs between checkpoints
    "KEEP_LAST": Key(3, ">= 1"),  # checkpoints that stay, beside the best
    "VALIDATE_FREQ": Key(1, ">= 1"),  # epochs between evaluations
    "REPORT_FREQ": Key(50, ">= 1"),  # steps between lines of the log
    # Training curves also for these, in a folder of that name in the run's.
    "LOG_TO": Key("none", ("none", "tensorboard", "visualdl")),
}

# Files and folders, in which ~ stands for the user's own folder.
PATHS = (
    "DATA.DATA_PATH",
    "MODEL.PRETRAINED",
    "MODEL.RESUME",
    "TRAIN.TEACHER_MODEL_PATH",
    "TRAIN.CLASS_WEIGHTS",
    "OUTPUT",
)


def _rows(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Key]]:
    for name, row in section.items():
        if isinstance(row, dict):
            yield from _rows(row, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", row if isinstance(row, Key) else Key(row)


ROWS = dict(_rows(KEYS))  # by dotted key
FLAGS = {row.flag[0]: key for key, row in ROWS.items() if row.flag[0]}  # command-line flag -> key
OF_EVALUATION = ("ENGINE", "PRECISION", "TTA", "SAVE_PREDICTIONS")  # used with EVAL alone


def refuse_keys_of_evaluation(opts: Sequence[Any] | None, why: str) -> None:
    """Raises UserError where `opts`, keys and values in turn, would set one that -eval alone uses."""
    for key in list(opts or ())[::2]:
        if key in OF_EVALUATION:
            raise UserError(f"{key} works only with -eval: {why}")
