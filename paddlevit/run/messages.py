"""What the log says at the start of a run."""

import logging
import math

import paddle
from yacs.config import CfgNode

from paddlevit import runtime
from paddlevit.data import EvalLoader, TrainLoader
from paddlevit.engine import Trainer
from paddlevit.optim import decay_split

logger = logging.getLogger(__name__)


def log_start(config: CfgNode, trainer: Trainer, train_loader: TrainLoader, eval_loader: EvalLoader) -> None:
    """What a person should check before waiting for days."""
    decayed, left = decay_split(trainer.model, config.TRAIN.NO_WEIGHT_DECAY)
    decayed_count, left_count = (sum(math.prod(p.shape) for p in group.values()) for group in (decayed, left))
    world = runtime.world_size()
    batch = config.DATA.BATCH_SIZE * config.TRAIN.ACCUM_ITER * world
    logger.info(
        "%s: %.2f M parameters, %d classes, images of %d x %d, on %s",
        config.MODEL.NAME or config.MODEL.TYPE,
        (decayed_count + left_count) / 1e6,
        config.MODEL.NUM_CLASSES,
        config.DATA.IMAGE_SIZE,
        config.DATA.IMAGE_SIZE,
        paddle.device.get_device(),
    )
    if config.AMP and paddle.device.get_device() == "cpu":
        logger.warning("-amp does nothing on a CPU: training in float32")
    if config.TRAIN.TEACHER_MODEL_PATH and config.TRAIN.DISTILLATION_TYPE == "none":
        logger.warning("TRAIN.TEACHER_MODEL_PATH is not used: TRAIN.DISTILLATION_TYPE is none")
    logger.info("data: %d images to train on, %d to validate", train_loader.num_images, eval_loader.num_images)
    if train_loader.source.num_classes != config.MODEL.NUM_CLASSES:
        logger.warning(
            "MODEL.NUM_CLASSES is %d, the data has %d classes",
            config.MODEL.NUM_CLASSES,
            train_loader.source.num_classes,
        )
    logger.info(
        "effective batch: %d images (%d x accum_iter %d x %d processes); peak learning rate %.3e",
        batch,
        config.DATA.BATCH_SIZE,
        config.TRAIN.ACCUM_ITER,
        world,
        max(trainer.lr_at(tenth / 10) for tenth in range(10 * config.TRAIN.NUM_EPOCHS)),
    )
    logger.info(
        "weight decay %g on %d tensors (%.2f M parameters), none on %d (%.3f M): norms, biases%s",
        config.TRAIN.WEIGHT_DECAY,
        len(decayed),
        decayed_count / 1e6,
        len(left),
        left_count / 1e6,
        "".join(f", {name}" for name in config.TRAIN.NO_WEIGHT_DECAY),
    )
