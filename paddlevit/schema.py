"""The keys of the configuration: defaults, what their values may be, and the flags that set them."""

from __future__ import annotations

import math
from typing import Any

DEFAULTS: dict[str, Any] = {
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
        "ON_ERROR": "stop",  # at a training image that cannot be read; or skip: take the next one that can
        "MAX_BAD": 100,  # images per process that may be skipped
        "INFER_NUM_CLASSES": True,  # MODEL.NUM_CLASSES from the data; false where the user gave it
    },
    "MODEL": {
        "TYPE": "pit",  # the family: hvt, cvt, hrformer, pit, regnet
        "NAME": "",
        "NUM_CLASSES": 1000,  # 0: no head, the network returns features
        "PRETRAINED": "",
        "REINIT_HEAD": False,  # start with a new classifier, not with that of PRETRAINED
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
        "NO_WEIGHT_DECAY": None,  # last parts of names, in place of the model's own (pos_embed, cls_token)
        "GRAD_CLIP": None,  # largest global norm of the gradient; null: not clipped
        "MAX_NONFINITE": 10,  # optimizer steps in a row that may be left out because a gradient is not finite
        "RECOMPUTE": False,  # blocks keep no activations and compute them again: less memory, about a third more time
        "TO_STATIC": False,  # train on a static program of the network
        "SHARD_OPTIMIZER": False,  # every process keeps a part of the optimizer's state only (ZeRO stage 1)
        "LAYER_DECAY": 1.0,  # factor of the learning rate from each layer to the one below it; 1 at the head
        "FREEZE": None,  # names of parameters that stay as they are, as file name patterns; "!..." takes some back
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
        "RESIZER": "auto",  # training images by opencv where it is installed, or pillow: the published pixels, slower
        "FAST_JPEG": True,  # opencv only: decode by simplejpeg where it is installed, 1 level less exact
        "COLOR_JITTER": 0.4,  # only without RAND_AUGMENT and AUTO_AUGMENT
        "RAND_AUGMENT": True,
        "RAND_AUGMENT_LAYERS": 2,
        "RAND_AUGMENT_MAGNITUDE": 9,
        "RAND_AUGMENT_STD": 0.5,
        "AUTO_AUGMENT": False,  # in place of RAND_AUGMENT
        "THREE_AUGMENT": False,  # in place of RAND_AUGMENT: grey, solarized or blurred, and COLOR_JITTER
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
    "MAX_RESTARTS": 0,  # times that a run which died, failed or hung is started again
    "HANG_TIMEOUT": 1800,  # seconds without progress after which a process that was started counts as hung; 0: never
    "EVAL": False,
    "AMP": False,
    "AMP_DTYPE": "float16",
    "AMP_OPT_LEVEL": "O1",
    "SEED": 0,
    "SAVE_FREQ": 1,  # epochs between checkpoints
    "KEEP_LAST": 3,  # checkpoints that stay, beside the best
    "VALIDATE_FREQ": 1,  # epochs between evaluations
    "REPORT_FREQ": 50,  # steps between lines of the log
    "LOG_TO": "none",  # or tensorboard, visualdl: the curves there too, in a folder of that name in the run's
}

# Keys that may be null, and what they hold otherwise.
OPTIONAL: dict[str, Any] = {
    "DATA.BATCH_SIZE_EVAL": 1,
    "MODEL.DISTILLED": False,
    "NPROCS": 1,
    "TRAIN.CUTMIX_MINMAX": [0.0],
    "TRAIN.FREEZE": [""],
    "TRAIN.GRAD_CLIP": 1.0,
    "TRAIN.LINEAR_SCALED_LR": 1,
    "TRAIN.NO_WEIGHT_DECAY": [""],
}

# Files and folders, in which ~ stands for the user's own folder.
PATHS = ("DATA.DATA_PATH", "MODEL.PRETRAINED", "MODEL.RESUME", "TRAIN.TEACHER_MODEL_PATH", "OUTPUT")

CHOICES: dict[str, tuple[str, ...]] = {
    "AMP_DTYPE": ("float16", "bfloat16"),
    "AMP_OPT_LEVEL": ("O0", "O1", "O2"),
    "DATA.DATASET": ("imagenet2012", "cifar10", "cifar100"),
    "DATA.INTERPOLATION": ("bicubic", "bilinear"),
    "DATA.ON_ERROR": ("stop", "skip"),
    "DATA.RESIZE_MODE": ("crop", "squash"),
    "DEVICE": ("auto", "gpu", "cpu"),
    "LOG_TO": ("none", "tensorboard", "visualdl"),
    "TRAIN.CROP": ("random_resized", "padded"),
    "TRAIN.DISTILLATION_TYPE": ("none", "soft", "hard"),
    "TRAIN.LR_SCHEDULE": ("epoch", "previous_epoch", "iteration"),
    "TRAIN.MIXUP_MODE": ("batch", "elem", "pair"),
    "TRAIN.RESIZER": ("auto", "opencv", "pillow"),
    "TRAIN.OPTIMIZER.NAME": ("AdamW",),
    "TRAIN.RANDOM_ERASE_MODE": ("const", "rand", "pixel"),
}

_ONE = (1, math.inf)
_ZERO = (0, math.inf)
_SHARE = (0, 1)
BELOW_ONE = (0, math.nextafter(1.0, 0.0))
ABOVE_ZERO = (math.nextafter(0.0, 1.0), math.inf)
_ABOVE_ZERO_TO_ONE = (ABOVE_ZERO[0], 1)

# Smallest and largest value; of every entry, where the value is a list.
RANGES: dict[str, tuple[float, float]] = {
    "DATA.BATCH_SIZE": _ONE,
    "DATA.BATCH_SIZE_EVAL": _ONE,
    "DATA.CROP_PCT": _ABOVE_ZERO_TO_ONE,
    "DATA.IMAGE_CHANNELS": _ONE,
    "DATA.IMAGE_SIZE": _ONE,
    "DATA.MAX_BAD": _ZERO,
    "HANG_TIMEOUT": _ZERO,
    "KEEP_LAST": _ONE,
    "MAX_RESTARTS": _ZERO,
    "MODEL.ATTENTION_DROPOUT": BELOW_ONE,
    "MODEL.ATTN_DROP_RATE": BELOW_ONE,
    "MODEL.BASE_DIMS": _ONE,
    "MODEL.DEPTH": _ONE,
    "MODEL.DEPTHS": _ONE,
    "MODEL.DIM_EMBED": _ONE,
    "MODEL.DROPOUT": BELOW_ONE,
    "MODEL.DROPPATH": BELOW_ONE,
    "MODEL.DROP_PATH_RATE": BELOW_ONE,
    "MODEL.DROP_RATE": BELOW_ONE,
    "MODEL.EMBED_DIM": _ONE,
    "MODEL.GROUP_WIDTH": _ONE,
    "MODEL.HRT.DROP_PATH_RATE": BELOW_ONE,
    "MODEL.KERNEL_QKV": _ONE,
    "MODEL.MLP_RATIO": ABOVE_ZERO,
    "MODEL.NUM_CLASSES": _ZERO,
    "MODEL.NUM_HEADS": _ONE,
    "MODEL.NUM_STAGES": _ONE,
    "MODEL.PADDING_KV": _ZERO,
    "MODEL.PADDING_Q": _ZERO,
    "MODEL.PATCH_PADDING": _ZERO,
    "MODEL.PATCH_SIZE": _ONE,
    "MODEL.PATCH_STRIDE": _ONE,
    "MODEL.POOL_BLOCK_WIDTH": _ZERO,
    "MODEL.POOL_KERNEL_SIZE": _ONE,
    "MODEL.POOL_STRIDE": _ONE,
    "MODEL.SE_RATIO": ABOVE_ZERO,
    "MODEL.STEM_WIDTH": _ONE,
    "MODEL.STRIDE": _ONE,
    "MODEL.STRIDE_KV": _ONE,
    "MODEL.STRIDE_Q": _ONE,
    "MODEL.WIDTHS": _ONE,
    "NPROCS": _ONE,
    "REPORT_FREQ": _ONE,
    "SAVE_FREQ": _ONE,
    "SEED": (0, 2**31 - 1),
    "TRAIN.ACCUM_ITER": _ONE,
    "TRAIN.BASE_LR": _ZERO,
    "TRAIN.COLOR_JITTER": _ZERO,
    "TRAIN.CROP_PADDING": _ZERO,
    "TRAIN.CUTMIX_ALPHA": _ZERO,
    "TRAIN.CUTMIX_MINMAX": _SHARE,
    "TRAIN.DISTILLATION_ALPHA": _SHARE,
    "TRAIN.DISTILLATION_TAU": ABOVE_ZERO,
    "TRAIN.END_LR": _ZERO,
    "TRAIN.GRAD_CLIP": ABOVE_ZERO,
    "TRAIN.HFLIP": _SHARE,
    "TRAIN.LAST_EPOCH": _ZERO,
    "TRAIN.MAX_NONFINITE": _ONE,
    "TRAIN.LAYER_DECAY": _SHARE,
    "TRAIN.LINEAR_SCALED_LR": _ONE,
    "TRAIN.MIXUP_ALPHA": _ZERO,
    "TRAIN.MIXUP_PROB": _SHARE,
    "TRAIN.MIXUP_SWITCH_PROB": _SHARE,
    "TRAIN.MODEL_EMA_DECAY": _SHARE,
    "TRAIN.NUM_EPOCHS": _ONE,
    "TRAIN.OPTIMIZER.BETAS": BELOW_ONE,
    "TRAIN.OPTIMIZER.EPS": _ZERO,
    "TRAIN.RANDOM_ERASE_COUNT": _ONE,
    "TRAIN.RANDOM_ERASE_PROB": _SHARE,
    "TRAIN.RAND_AUGMENT_LAYERS": _ONE,
    "TRAIN.RAND_AUGMENT_MAGNITUDE": (0, 10),
    "TRAIN.RAND_AUGMENT_STD": _ZERO,
    "TRAIN.REPEATED_AUG": _ONE,
    "TRAIN.SMOOTHING": BELOW_ONE,
    "TRAIN.WARMUP_EPOCHS": _ZERO,
    "TRAIN.WARMUP_START_LR": _ZERO,
    "TRAIN.WEIGHT_DECAY": _ZERO,
    "VALIDATE_FREQ": _ONE,
}

# Command-line flag -> configuration key.
FLAGS: dict[str, str] = {
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
    "max_restarts": "MAX_RESTARTS",
    "hang_timeout": "HANG_TIMEOUT",
    "seed": "SEED",
}
