"""What the log says at the start of a run."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable

import paddle
from paddle import Tensor
from yacs.config import CfgNode

from paddlevit.data import EvalLoader, TrainLoader
from paddlevit.layers import learnable
from paddlevit.runtime import process
from paddlevit.training.engine import Trainer
from paddlevit.training.optim import decay_split, layer_rates
from paddlevit.training.schedule import peak_lr

logger = logging.getLogger(__name__)


def log_start(config: CfgNode, trainer: Trainer, train_loader: TrainLoader, eval_loader: EvalLoader) -> None:
    """What a person should check before waiting for days."""
    logger.info(
        "%s: %.2f M parameters, %d classes, images of %d x %d, on %s",
        config.MODEL.NAME or config.MODEL.TYPE,
        _count(learnable(trainer.model).values()) / 1e6,
        config.MODEL.NUM_CLASSES,
        config.DATA.IMAGE_SIZE,
        config.DATA.IMAGE_SIZE,
        paddle.device.get_device(),
    )
    if config.TRAIN.TEACHER_MODEL_PATH and config.TRAIN.DISTILLATION_TYPE == "none":
        logger.warning("TRAIN.TEACHER_MODEL_PATH is not used: TRAIN.DISTILLATION_TYPE is none")
    logger.info("data: %d images to train on, %d to validate", train_loader.num_images, eval_loader.num_images)
    if train_loader.source.num_classes != config.MODEL.NUM_CLASSES:
        logger.warning(
            "MODEL.NUM_CLASSES is %d, the data has %d classes",
            config.MODEL.NUM_CLASSES,
            train_loader.source.num_classes,
        )
    _log_optimizer(config, trainer)


def _log_optimizer(config: CfgNode, trainer: Trainer) -> None:
    train, world = config.TRAIN, process.world_size()
    reference = train.LINEAR_SCALED_LR
    logger.info(
        "effective batch: %d images (%d x accum_iter %d x %d processes); peak learning rate %.3e (TRAIN.BASE_LR %g%s)",
        config.DATA.BATCH_SIZE * trainer.accum_iter * world,
        config.DATA.BATCH_SIZE,
        trainer.accum_iter,
        world,
        peak_lr(trainer.lr_at, train.NUM_EPOCHS, trainer.steps_per_epoch, trainer.accum_iter),
        train.BASE_LR,
        ", not scaled" if reference is None else f" for {reference} images",
    )
    if trainer.accum_iter < train.ACCUM_ITER:
        logger.warning("TRAIN.ACCUM_ITER %d: an epoch has only %d batches", train.ACCUM_ITER, trainer.accum_iter)
    if train.LAYER_DECAY != 1.0:
        lowest = min(layer_rates(trainer.model, train.LAYER_DECAY).values())
        logger.info(
            "learning rate x %g from each layer to the one below it: x %.3g at the stem", train.LAYER_DECAY, lowest
        )
    if train.WARMUP_EPOCHS > train.NUM_EPOCHS:
        logger.warning(
            "the warm-up (TRAIN.WARMUP_EPOCHS %g) is longer than the run (TRAIN.NUM_EPOCHS %d): the rate never peaks",
            train.WARMUP_EPOCHS,
            train.NUM_EPOCHS,
        )
    decayed, left = decay_split(trainer.model, train.NO_WEIGHT_DECAY)
    spared = sorted({name.rsplit(".", 1)[-1] for name, param in left.items() if param.ndim > 1})
    logger.info(
        "weight decay %g on %d tensors (%s parameters), none on %d (%s): %s",
        train.WEIGHT_DECAY,
        len(decayed),
        f"{_count(decayed.values()):,}",
        len(left),
        f"{_count(left.values()):,}",
        ", ".join(["norms", "biases", *spared]),
    )
    frozen = [param for param in learnable(trainer.model).values() if param.stop_gradient]
    if frozen:
        logger.info("frozen by TRAIN.FREEZE: %d tensors (%s parameters)", len(frozen), f"{_count(frozen):,}")


def _count(params: Iterable[Tensor]) -> int:
    return sum(math.prod(param.shape) for param in params)
