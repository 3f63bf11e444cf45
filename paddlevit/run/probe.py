"""A classifier fitted to the features of the frozen body: a linear probe, with which fine-tuning can start."""

from __future__ import annotations

import logging
import time

import numpy as np
import paddle
from paddle import nn
from yacs.config import CfgNode

from paddlevit.data import build_eval_loader
from paddlevit.errors import UserError
from paddlevit.linear_probe import logistic_regression
from paddlevit.runtime import process
from paddlevit.runtime.launcher import heartbeat
from paddlevit.training.journal import progress

logger = logging.getLogger(__name__)

_ROWS = 1 << 16  # of the features, which a device holds at a time


def fit_heads(config: CfgNode, model: nn.Layer) -> None:
    """Give each head of `model` the weights that classify the training images by what it sees of them.

    Images are as in evaluation, and mirrored too where training mirrors them. All processes call this, and compute the
    features of a share each.
    """
    prefixes = type(model).head_prefixes
    layers = [layer for name, layer in model.named_sublayers() if f"{name}.".startswith(prefixes)]
    heads = [layer for layer in layers if isinstance(layer, nn.Linear)]
    if not heads:
        raise UserError(f"TRAIN.PROBE {config.TRAIN.PROBE} needs a model with a head, MODEL.NUM_CLASSES is 0")
    begun = time.monotonic()
    features, labels = _features(config, model, heads)
    for head, seen in zip(heads, features):
        weight, bias = logistic_regression(seen, labels, config.MODEL.NUM_CLASSES, on_step=heartbeat)
        head.weight.set_value(weight)
        head.bias.set_value(bias)
    what = f"{len(labels):,} features of the frozen body"
    logger.info(f"new classifier, fitted to {what} (linear probe) in {time.monotonic() - begun:.0f} s")


def _features(config: CfgNode, model: nn.Layer, heads: list[nn.Linear]) -> tuple[list[np.ndarray], np.ndarray]:
    """What each head sees of the training images, float32 [N, D], and their labels [N]."""
    loader = build_eval_loader(config, "train", rank=process.rank(), world_size=process.world_size())
    mirrored = [False, True] if config.TRAIN.HFLIP else [False]
    size = len(mirrored) * loader.num_images
    labels = np.zeros([loader.num_images], "int64")  # as read: an image may have been replaced
    features = [np.zeros([size, head.weight.shape[0]], "float32") for head in heads]
    seen: list[np.ndarray] = []
    hooks = [head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numpy())) for head in heads]
    model.eval()
    done = 0
    with paddle.no_grad():
        for images, true in progress(loader, len(loader), "features"):
            heartbeat()
            rows = loader.indices[done : done + len(images)]
            labels[rows] = true.numpy()
            for copy, flip in enumerate(mirrored):
                seen.clear()
                model(images.flip([3]) if flip else images)
                for array, values in zip(features, seen):
                    array[copy * loader.num_images + rows] = values
            done += len(images)
    model.train()
    for hook in hooks:
        hook.remove()
    for array in (*features, labels):
        for part in np.split(array, range(_ROWS, len(array), _ROWS)):
            part[...] = process.all_reduce_sum(paddle.to_tensor(part)).numpy()
    return features, np.tile(labels, len(mirrored))
