"""Loaders and preparations, built from the configuration."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Callable

import numpy as np
from PIL import Image
from yacs.config import CfgNode

from paddlevit.data.cifar import open_cifar
from paddlevit.data.classes import Classes, follow, imagenet_classes
from paddlevit.data.dataset import MODES, ImageDataset
from paddlevit.data.decode import Decoding
from paddlevit.data.imagenet_sets import SETS, open_imagenet_set
from paddlevit.data.loader import (
    BatchStream,
    EvalLoader,
    Normalize,
    TrainBatchSampler,
    TrainLoader,
    balanced_shares,
)
from paddlevit.data.mixup import build_erasing
from paddlevit.data.sources import Source, open_imagenet
from paddlevit.data.transforms import build_eval_transform, build_train_transform
from paddlevit.errors import UserError

logger = logging.getLogger(__name__)

_MOST_WORKERS = 8


def open_source(config: CfgNode, split: str, classes: Classes | None = None) -> Source:
    """The images and labels of a split, 'train' or 'val', by the names of `classes`, or of ImageNet's where a model has
    these.
    """
    path = Path(config.DATA.DATA_PATH)
    name = config.DATA.DATASET
    if name.startswith("cifar"):
        source: Source = open_cifar(path, name, split=split)
    else:
        if name in SETS and not config.EVAL:
            raise UserError(f"DATA.DATASET {name} is to evaluate on (-eval), not to train on")
        source = open_imagenet_set(path, name) if name in SETS else open_imagenet(path, split)
        source.decoding = build_decoding(config)
    if classes is None and (config.EVAL or not config.DATA.INFER_NUM_CLASSES):
        classes = imagenet_classes(source.class_names, path, config.MODEL.NUM_CLASSES)
    if classes is not None:
        follow(source, classes, path, split)
    return source


def build_decoding(config: CfgNode) -> Decoding:
    """How image files become pixels, for whoever decodes one by one."""
    return Decoding(upright=config.DATA.EXIF_ORIENTATION == "apply", max_pixels=config.DATA.MAX_PIXELS)


def build_train_loader(
    config: CfgNode, *, rank: int = 0, world_size: int = 1, classes: Classes | None = None
) -> TrainLoader:
    """What process `rank` of `world_size` trains on, with labels by the names of `classes`."""
    data, train = config.DATA, config.TRAIN
    source, transform = _checked_source(config, "train", classes), build_train_transform(config)
    channels = _channels(config)
    dataset = ImageDataset(source, transform, channels=channels)
    if resizer(train.RESIZER) == "opencv":
        from paddlevit.data.opencv import OpenCVDataset

        dataset = OpenCVDataset(source, transform, channels=channels, fast=train.FAST_JPEG)
    shares = balanced_shares(source.labels, train.BALANCE) if train.BALANCE else None
    sampler = TrainBatchSampler(len(source), data.BATCH_SIZE, rank, world_size, config.SEED, train.REPEATED_AUG, shares)
    stream = _stream(config, dataset, data.BATCH_SIZE, world_size=world_size, split="train")
    return TrainLoader(stream, sampler, normalize=_normalize(config), erase=build_erasing(config))


def build_eval_loader(
    config: CfgNode,
    split: str = "val",
    *,
    rank: int = 0,
    world_size: int = 1,
    classes: Classes | None = None,
    most: int | None = None,
) -> EvalLoader:
    """What process `rank` of `world_size` evaluates on, with labels by the names of `classes`; or at most `most` images
    of a split, evenly spread over it.
    """
    source = _checked_source(config, split, classes)
    stride = world_size if most is None else -(-len(source) // most)
    dataset = ImageDataset(source, build_eval_transform(config), channels=_channels(config))
    batch_size = config.DATA.BATCH_SIZE_EVAL or config.DATA.BATCH_SIZE
    stream = _stream(config, dataset, batch_size, world_size=world_size, split=split)
    return EvalLoader(stream, batch_size, normalize=_normalize(config), rank=rank, world_size=stride)


def build_preparation(config: CfgNode) -> tuple[Callable[[Image.Image], np.ndarray], Normalize]:
    """For images that come one by one: from a decoded one to the pixels uint8 [H, W, C] that evaluation sees, and from
    a stack of those to what the model takes.
    """
    mode, transform = MODES[_channels(config)], build_eval_transform(config)

    def prepare(image: Image.Image) -> np.ndarray:
        return transform(image if image.mode == mode else image.convert(mode), None)

    return prepare, _normalize(config)


def _checked_source(config: CfgNode, split: str, classes: Classes | None) -> Source:
    source = open_source(config, split, classes)
    num_classes = config.MODEL.NUM_CLASSES
    if num_classes and source.labels.max() >= num_classes:
        i = int(source.labels.argmax())
        raise UserError(
            f"{source.label_place(i)}: label {source.label(i)}, but MODEL.NUM_CLASSES is {num_classes}, so labels go "
            f"from 0 to {num_classes - 1}; the data set has {source.num_classes} classes (-num_classes)"
        )
    return source


def resizer(wanted: str) -> str:
    """'opencv' or 'pillow', for TRAIN.RESIZER auto, opencv or pillow."""
    if wanted == "pillow":
        return wanted
    try:
        import cv2
    except ImportError as error:  # also where a system library that it needs is missing
        if wanted == "opencv":
            raise UserError(f"TRAIN.RESIZER is opencv, but: {error} (pip install opencv-python-headless)") from None
        logger.info(
            "Pillow makes the training images, half as fast as OpenCV (pip install opencv-python-headless simplejpeg)"
        )
        return "pillow"
    logger.info("OpenCV %s makes the training images; TRAIN.RESIZER pillow gives the published pixels", cv2.__version__)
    return "opencv"


def _channels(config: CfgNode) -> int:
    channels = config.DATA.IMAGE_CHANNELS
    if channels not in (1, 3):
        raise UserError(f"DATA.IMAGE_CHANNELS must be 1 (grey) or 3, got {channels}")
    return channels


def _stream(config: CfgNode, dataset: ImageDataset, batch_size: int, *, world_size: int, split: str) -> BatchStream:
    data = config.DATA
    workers = num_workers(data.NUM_WORKERS, int(os.environ.get("PADDLE_LOCAL_SIZE", world_size)))
    shape = (batch_size, data.IMAGE_SIZE, data.IMAGE_SIZE, data.IMAGE_CHANNELS)
    max_bad = data.MAX_BAD if split == "train" and data.ON_ERROR == "skip" else 0
    return BatchStream(dataset, shape, num_workers=workers, max_bad=max_bad)


def _normalize(config: CfgNode) -> Normalize:
    data = config.DATA
    for key in ("IMAGENET_MEAN", "IMAGENET_STD"):
        if len(data[key]) != 3:
            raise UserError(f"DATA.{key} must have three numbers, got {list(data[key])}")
    if data.IMAGE_CHANNELS == 1:
        return Normalize([float(np.mean(data.IMAGENET_MEAN))], [float(np.mean(data.IMAGENET_STD))])
    return Normalize(data.IMAGENET_MEAN, data.IMAGENET_STD)


def num_workers(wanted: int, processes: int) -> int:
    """Workers for each of `processes` on this machine; -1: one per core that is free for it, at most 8, and none where
    there is one core only.
    """
    if sys.platform != "linux":
        return 0  # workers are forked, which elsewhere is impossible or unsafe beside the threads of Paddle
    cores = len(os.sched_getaffinity(0))
    if wanted >= 0:
        if wanted * processes > cores:
            logger.warning("DATA.NUM_WORKERS %d x %d processes are more than the %d cores", wanted, processes, cores)
        return wanted
    free = cores // processes
    return min(free, _MOST_WORKERS) if free > 1 else 0
