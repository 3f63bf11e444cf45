"""The parts of a run, made from the configuration."""

from __future__ import annotations

import functools
import logging
from contextlib import AbstractContextManager
from typing import Callable

import paddle
from paddle import nn
from yacs.config import CfgNode

from paddlevit.config import get_config, with_values
from paddlevit.data import open_source
from paddlevit.data.mixup import build_mixup
from paddlevit.errors import UserError
from paddlevit.models import build_model
from paddlevit.runtime import process
from paddlevit.training.ema import ModelEma
from paddlevit.training.engine import Trainer
from paddlevit.training.gradients import LossScale
from paddlevit.training.objectives import Distilled, Objective, Renormalized, Supervised
from paddlevit.training.optim import build_optimizer, freeze
from paddlevit.training.recompute import recompute_blocks
from paddlevit.training.schedule import build_lr_schedule
from paddlevit.training.sharding import Shards
from paddlevit.weights import load_weights

logger = logging.getLogger(__name__)


def build_trainer(config: CfgNode, steps_per_epoch: int, *, pretrained: bool = True) -> Trainer:
    """The trainer of `config`, with the weights that it names unless `pretrained` is false. Raises UserError."""
    if config.TRAIN.LAST_EPOCH > config.TRAIN.NUM_EPOCHS:
        raise UserError(
            f"TRAIN.LAST_EPOCH is {config.TRAIN.LAST_EPOCH} (-last_epoch), allowed: 0 to TRAIN.NUM_EPOCHS, which is "
            f"{config.TRAIN.NUM_EPOCHS}"
        )
    paddle.seed(config.SEED)
    model = build_model(config)
    if config.MODEL.PRETRAINED and pretrained:
        load_pretrained(config, model)
    freeze(model, config.TRAIN.FREEZE or ())
    accum_iter = min(config.TRAIN.ACCUM_ITER, steps_per_epoch)  # a step ends with its epoch
    images_per_step = config.DATA.BATCH_SIZE * accum_iter * process.world_size()
    ema = None
    if config.TRAIN.MODEL_EMA:
        ema = ModelEma(model, decay=config.TRAIN.MODEL_EMA_DECAY, warmup=config.TRAIN.MODEL_EMA_WARMUP)
    shards = None
    if config.TRAIN.SHARD_OPTIMIZER and process.world_size() > 1:
        shards = Shards({name: param for name, param in model.named_parameters() if not param.stop_gradient})
    optimizer = build_optimizer(config, model, own=shards.own() if shards else None)
    if config.AMP and config.AMP_OPT_LEVEL == "O2":
        _to_half_precision(model, optimizer, config.AMP_DTYPE)
    trainer = Trainer(
        model=model,
        network=_network(config, model),
        objective=_objective(config),
        mixup=build_mixup(config),
        optimizer=optimizer,
        lr_at=build_lr_schedule(config, images_per_step),
        steps_per_epoch=steps_per_epoch,
        accum_iter=accum_iter,
        seed=config.SEED,
        ema=ema,
        grad_clip=config.TRAIN.GRAD_CLIP,
        shards=shards,
        loss_scale=LossScale(dynamic=config.AMP and config.AMP_DTYPE == "float16"),
        max_nonfinite=config.TRAIN.MAX_NONFINITE,
        autocast=autocast(config),
    )
    trainer.epoch = config.TRAIN.LAST_EPOCH
    return trainer


def _network(config: CfgNode, model: nn.Layer) -> Callable:
    """What the objective calls in training; evaluation and checkpoints go on with `model` itself."""
    if config.TRAIN.RECOMPUTE:
        recompute_blocks(model)
    if not config.TRAIN.TO_STATIC:
        return paddle.DataParallel(model) if process.world_size() > 1 else model
    for key, given in (("NPROCS above 1", process.world_size() > 1), ("TRAIN.RECOMPUTE True", config.TRAIN.RECOMPUTE)):
        if given:
            raise UserError(f"TRAIN.TO_STATIC True does not work with {key}: leave one of them out")
    # Several threads would draw random numbers in another order in every run.
    paddle.set_flags({"FLAGS_new_executor_serial_run": True})
    return paddle.jit.to_static(model.forward, full_graph=True)


def _to_half_precision(model: nn.Layer, optimizer: paddle.optimizer.Optimizer, dtype: str) -> None:
    """Weights in half precision, with a copy in float32 that the optimizer steps; gradients in float32.

    Paddle's save_dtype would make copies of what state_dict returns: weights that are loaded into it would be lost.
    """
    paddle.amp.decorate(model, optimizer, level="O2", dtype=dtype, master_weight=True, master_grad=True)


def _teacher(config: CfgNode) -> nn.Layer:
    """The network to learn from, for the images and classes of `config`."""
    same = ["DATA.IMAGE_SIZE", config.DATA.IMAGE_SIZE, "DATA.IMAGE_CHANNELS", config.DATA.IMAGE_CHANNELS]
    own = get_config(config.TRAIN.TEACHER_MODEL, [*same, "MODEL.NUM_CLASSES", config.MODEL.NUM_CLASSES])
    teacher = build_model(own)
    try:
        report = load_weights(teacher, config.TRAIN.TEACHER_MODEL_PATH)
    except UserError as error:
        raise UserError(
            f"the teacher (-teacher {config.TRAIN.TEACHER_MODEL}, -teacher_model_path) must be trained on the same "
            f"{config.MODEL.NUM_CLASSES} classes: {error}"
        ) from None
    logger.info("teacher %s: %s", config.TRAIN.TEACHER_MODEL, report)
    theirs, ours = ((c.DATA.IMAGENET_MEAN, c.DATA.IMAGENET_STD) for c in (own, config))
    return teacher if theirs == ours else Renormalized(teacher, given=ours, own=theirs)


def _objective(config: CfgNode) -> Objective:
    kind = config.TRAIN.DISTILLATION_TYPE
    if kind == "none":
        return Supervised()
    if not config.TRAIN.TEACHER_MODEL_PATH:
        raise UserError(f"TRAIN.DISTILLATION_TYPE is {kind}: name the teacher's weights with -teacher_model_path FILE")
    return Distilled(
        _teacher(config), kind=kind, alpha=config.TRAIN.DISTILLATION_ALPHA, tau=config.TRAIN.DISTILLATION_TAU
    )


def check_amp(config: CfgNode) -> None:
    """Say that -amp does nothing on a CPU, and refuse a precision that the GPU does not have."""
    if config.AMP and not process.half_precision(config.AMP_DTYPE):
        logger.warning("-amp does nothing on a CPU: computing in float32")


def autocast(config: CfgNode) -> Callable[[], AbstractContextManager]:
    """The context for forward passes; nothing on a CPU, where Paddle would warn that it does nothing."""
    enable = config.AMP and process.half_precision(config.AMP_DTYPE)
    return functools.partial(paddle.amp.auto_cast, enable=enable, dtype=config.AMP_DTYPE, level=config.AMP_OPT_LEVEL)


def with_classes(config: CfgNode, split: str) -> CfgNode:
    """`config` with the number of classes that the data has, where the user gave none."""
    if not config.DATA.INFER_NUM_CLASSES:
        return config
    num_classes = open_source(config, split).num_classes
    return with_values(config, {"MODEL.NUM_CLASSES": num_classes, "DATA.INFER_NUM_CLASSES": False})


def load_pretrained(config: CfgNode, model: nn.Layer) -> None:
    """Fill `model` from the file MODEL.PRETRAINED, but for its classifier where MODEL.REINIT_HEAD is set."""
    reinit = type(model).head_prefixes if config.MODEL.REINIT_HEAD else ()
    report = load_weights(model, config.MODEL.PRETRAINED, reinit=reinit)
    logger.info("weights: %s", report)
