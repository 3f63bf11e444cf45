"""The parts of a run, made from the configuration."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import numpy as np
import paddle
from paddle import Tensor, nn
from yacs.config import CfgNode

from paddlevit.config import get_config, with_values
from paddlevit.data import EvalLoader, TrainLoader, open_source
from paddlevit.data.classes import Classes, changes_since_run, classes_beside, folder_of, refuse_difference
from paddlevit.data.index import text_lines
from paddlevit.data.loader import balanced_shares
from paddlevit.data.mixup import build_mixup
from paddlevit.data.sources import Source
from paddlevit.errors import UserError
from paddlevit.layers import learnable
from paddlevit.models import autocast, build_model
from paddlevit.run.probe import fit_heads
from paddlevit.runtime import process
from paddlevit.training.ema import ModelEma
from paddlevit.training.engine import Trainer
from paddlevit.training.gradients import LossScale
from paddlevit.training.objectives import (
    Distilled,
    Objective,
    Renormalized,
    Supervised,
    binary_cross_entropy,
    soft_cross_entropy,
)
from paddlevit.training.optim import Shards, build_optimizer, decay_split, freeze, layer_rates
from paddlevit.training.recompute import recompute_blocks
from paddlevit.training.schedule import build_lr_schedule, peak_lr
from paddlevit.weights import WeightsError, load_weights
from paddlevit.weights.hub import official

logger = logging.getLogger(__name__)


def build_trainer(
    config: CfgNode, steps_per_epoch: int, *, pretrained: bool = True, labels: np.ndarray | None = None
) -> Trainer:
    """The trainer of `config`, with the weights that it names unless `pretrained` is false. Raises UserError.

    TRAIN.CLASS_WEIGHTS balanced needs the `labels` of the training images.
    """
    train, processes = config.TRAIN, process.world_size()
    if train.LAST_EPOCH > train.NUM_EPOCHS:
        raise UserError(
            f"TRAIN.LAST_EPOCH must be at most TRAIN.NUM_EPOCHS, {train.NUM_EPOCHS}, got {train.LAST_EPOCH}"
        )
    model = _starting_model(config, pretrained=pretrained)
    ema = ModelEma(model, decay=train.MODEL_EMA_DECAY, warmup=train.MODEL_EMA_WARMUP) if train.MODEL_EMA else None
    trainable = {name: param for name, param in model.named_parameters() if not param.stop_gradient}
    shards = Shards(trainable if train.SHARD_OPTIMIZER and processes > 1 else None)
    optimizer = build_optimizer(config, model, steps=shards.steps)
    if config.AMP and config.AMP_OPT_LEVEL == "O2":
        _to_half_precision(model, optimizer, config.AMP_DTYPE)
    accum_iter = min(train.ACCUM_ITER, steps_per_epoch)  # a step ends with its epoch
    images_per_step = config.DATA.BATCH_SIZE * processes * accum_iter
    return Trainer(
        model=model,
        forward=_forward(config, model),
        objective=_objective(config, labels),
        mixup=build_mixup(config),
        optimizer=optimizer,
        lr_at=build_lr_schedule(config, images_per_step),
        steps_per_epoch=steps_per_epoch,
        accum_iter=accum_iter,
        seed=config.SEED,
        ema=ema,
        grad_clip=train.GRAD_CLIP,
        shards=shards,
        loss_scale=LossScale(dynamic=config.AMP and config.AMP_DTYPE == "float16"),
        max_nonfinite=train.MAX_NONFINITE,
        autocast=autocast(config),
        fixed=_fixed(config, accum_iter, steps_per_epoch),
        epoch=train.LAST_EPOCH,
    )


def _starting_model(config: CfgNode, *, pretrained: bool) -> nn.Layer:
    """The model, with the weights and the classifier that the run starts from, and frozen as TRAIN.FREEZE says."""
    paddle.seed(config.SEED)
    model = build_model(config)
    if config.MODEL.PRETRAINED and pretrained:
        load_pretrained(config, model)
    if config.TRAIN.PROBE != "none" and pretrained:
        if not (config.MODEL.PRETRAINED and config.MODEL.REINIT_HEAD):
            what = f"-recipe finetune and probe (TRAIN.PROBE {config.TRAIN.PROBE}) start from weights"
            raise UserError(f"{what}: -pretrained FILE -reinit_head; to train from scratch, leave -recipe out")
        fit_heads(config, model)
    freeze(model, config.TRAIN.FREEZE or ())
    return model


def _fixed(config: CfgNode, accum_iter: int, steps_per_epoch: int) -> dict[str, Any]:
    """What must be the same where a run is resumed in the middle of an epoch."""
    return {
        "SEED": config.SEED,
        "TRAIN.REPEATED_AUG": config.TRAIN.REPEATED_AUG,
        "TRAIN.BALANCE": config.TRAIN.BALANCE,
        "TRAIN.ACCUM_ITER": accum_iter,
        "DATA.BATCH_SIZE x processes": config.DATA.BATCH_SIZE * process.world_size(),
        "the number of batches per epoch": steps_per_epoch,
    }


def _forward(config: CfgNode, model: nn.Layer) -> Callable:
    """What the objective calls in training; evaluation and checkpoints use `model` itself."""
    several = process.world_size() > 1
    if config.TRAIN.RECOMPUTE:
        recompute_blocks(model)
    if not config.TRAIN.TO_STATIC:
        return paddle.DataParallel(model) if several else model
    for key, given in (("NPROCS above 1", several), ("TRAIN.RECOMPUTE True", config.TRAIN.RECOMPUTE)):
        if given:
            raise UserError(f"TRAIN.TO_STATIC True cannot be combined with {key}")
    # Several threads would draw random numbers in another order in every run.
    paddle.set_flags({"FLAGS_new_executor_serial_run": True})
    return paddle.jit.to_static(model.forward, full_graph=True)


def _to_half_precision(model: nn.Layer, optimizer: paddle.optimizer.Optimizer, dtype: str) -> None:
    """Weights in half precision, with a copy in float32 that the optimizer steps; gradients in float32.

    Paddle's save_dtype would make copies of what state_dict returns: weights that are loaded into it would be lost.
    """
    paddle.amp.decorate(model, optimizer, level="O2", dtype=dtype, master_weight=True, master_grad=True)


def _teacher(config: CfgNode) -> nn.Layer:
    """The model to learn from, for the images and classes of `config`."""
    same = ["DATA.IMAGE_SIZE", config.DATA.IMAGE_SIZE, "DATA.IMAGE_CHANNELS", config.DATA.IMAGE_CHANNELS]
    own = get_config(config.TRAIN.TEACHER_MODEL, [*same, "MODEL.NUM_CLASSES", config.MODEL.NUM_CLASSES])
    teacher = build_model(own)
    try:
        report = load_weights(teacher, config.TRAIN.TEACHER_MODEL_PATH)
    except UserError as error:
        only_head = isinstance(error, WeightsError) and error.reinit
        must = f" must be trained on the same {config.MODEL.NUM_CLASSES} classes" if only_head else ""
        what = f"the teacher (-teacher {config.TRAIN.TEACHER_MODEL}, -teacher_model_path)"
        raise UserError(f"{what}{must}: {error}") from None
    logger.info("teacher %s: %s", config.TRAIN.TEACHER_MODEL, report)
    of_its_run = folder_of(config.TRAIN.TEACHER_MODEL_PATH) / "config.yaml"
    own = get_config(of_its_run) if of_its_run.is_file() else own
    theirs, ours = ((c.DATA.IMAGENET_MEAN, c.DATA.IMAGENET_STD) for c in (own, config))
    return teacher if theirs == ours else Renormalized(teacher, given=ours, own=theirs)


def _objective(config: CfgNode, labels: np.ndarray | None) -> Objective:
    train, weights = config.TRAIN, _class_weights(config, labels)
    if train.DISTILLATION_TYPE == "none":
        return Supervised(weights, binary_cross_entropy if train.LOSS == "bce" else soft_cross_entropy)
    if train.LOSS != "cross_entropy":
        distillation = f"TRAIN.DISTILLATION_TYPE {train.DISTILLATION_TYPE}"
        raise UserError(f"TRAIN.LOSS {train.LOSS} cannot be combined with {distillation}")
    how = {"kind": train.DISTILLATION_TYPE, "alpha": train.DISTILLATION_ALPHA, "tau": train.DISTILLATION_TAU}
    return Distilled(_teacher(config), **how, class_weights=weights)


def _class_weights(config: CfgNode, labels: np.ndarray | None) -> Tensor | None:
    """TRAIN.CLASS_WEIGHTS, float32 [K]; balanced: images / (classes x images of the class), so that the mean is 1."""
    how, num_classes = config.TRAIN.CLASS_WEIGHTS, config.MODEL.NUM_CLASSES
    if how == "none":
        return None
    if how == "balanced":
        assert labels is not None
        counts = np.bincount(labels, minlength=num_classes)
        weights = np.where(counts > 0, len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1)), 0.0)
    else:
        lines = text_lines(Path(how)).values()
        try:
            weights = np.array([float(line) for line in lines])
        except ValueError as error:
            raise UserError(f"TRAIN.CLASS_WEIGHTS {how}: every line must be a number, {error}") from None
        if len(weights) != num_classes or not (np.isfinite(weights) & (weights >= 0)).all() or not weights.any():
            must = f"it must hold one number of 0 or more for each of {num_classes} classes, not all of them 0"
            got = f"got {len(weights)}, the smallest {weights.min(initial=0):g}"
            raise UserError(f"TRAIN.CLASS_WEIGHTS {how}: {must}, {got}")
    if config.TRAIN.BALANCE:
        logger.warning("TRAIN.CLASS_WEIGHTS and TRAIN.BALANCE are both on: rare classes are weighted twice")
    logger.info("class weights (TRAIN.CLASS_WEIGHTS %s): %.3g to %.3g", how, weights.min(), weights.max())
    return paddle.to_tensor(weights.astype("float32"))


def known_classes(config: CfgNode, resumed: Path | None) -> Classes | None:
    """The classes of the weights that a run starts from, which is the checkpoint `resumed` or MODEL.PRETRAINED."""
    if resumed is not None:
        classes, advice = classes_beside(resumed), "resume with the same classes, or start another run with -pretrained"
    else:
        keeps_head = config.MODEL.PRETRAINED and not config.MODEL.REINIT_HEAD
        classes = classes_beside(config.MODEL.PRETRAINED) if keeps_head else None
        advice = "-reinit_head starts with a new classifier"
    if classes is None or config.EVAL:
        return classes
    return classes._replace(advice=f"\n{advice}", whole=config.DATA.INFER_NUM_CLASSES)


def with_classes(config: CfgNode, split: str, classes: Classes | None) -> tuple[CfgNode, Classes | None]:
    """`config` with the number of classes, where the user gave none: that of the data, or of weights to evaluate; and
    `classes`, the weights', unless there are more or fewer of them, which loading the weights complains about.
    """
    if not config.DATA.INFER_NUM_CLASSES:
        return config, classes
    known = len(classes.names) if classes else 0
    num_classes = known if known and config.EVAL else open_source(config, split).num_classes
    config = with_values(config, {"MODEL.NUM_CLASSES": num_classes, "DATA.INFER_NUM_CLASSES": False})
    if classes and num_classes != known:
        logger.warning("%s names %d classes, the data has %d", classes.where, known, num_classes)
        return config, None
    return config, classes


def check_teacher(config: CfgNode, classes: Sequence[str]) -> None:
    """Raises UserError where the teacher's classes are called otherwise than `classes`, the student's."""
    theirs = config.TRAIN.DISTILLATION_TYPE != "none" and classes_beside(config.TRAIN.TEACHER_MODEL_PATH)
    if theirs:
        advice = "\nthe teacher must be trained on the same classes"
        refuse_difference(theirs._replace(advice=advice), Classes(classes, config.DATA.DATA_PATH))


def load_pretrained(config: CfgNode, model: nn.Layer) -> None:
    """Fill `model` from the file MODEL.PRETRAINED, but for its classifier where MODEL.REINIT_HEAD is set."""
    reinit = type(model).head_prefixes if config.MODEL.REINIT_HEAD else ()
    try:
        file = official(config.MODEL.PRETRAINED, config.MODEL.NAME)
        report = load_weights(model, file, which=config.MODEL.WEIGHTS, reinit=reinit)
    except WeightsError as error:
        hint = "\n-reinit_head starts with a new classifier" if error.reinit and not config.EVAL else ""
        raise UserError(f"{error}{hint}") from None
    logger.info("weights: %s", report)
    tell = logger.info if reinit else logger.warning  # fine-tuning may well see images otherwise
    for line in changes_since_run(config.MODEL.PRETRAINED, config):
        tell("%s", line)


def log_start(config: CfgNode, trainer: Trainer, train_loader: TrainLoader, eval_loader: EvalLoader) -> None:
    """Log what a person should check before waiting for days."""
    classes, size = config.MODEL.NUM_CLASSES, config.DATA.IMAGE_SIZE
    logger.info(
        f"{config.MODEL.NAME or config.MODEL.TYPE}: {_count(learnable(trainer.model)) / 1e6:.2f} M parameters, "
        f"{classes} classes, images of {size} x {size}, on {paddle.device.get_device()}"
    )
    if config.TRAIN.TEACHER_MODEL_PATH and config.TRAIN.DISTILLATION_TYPE == "none":
        logger.warning("TRAIN.TEACHER_MODEL_PATH is not used: TRAIN.DISTILLATION_TYPE is none")
    logger.info(f"data: {train_loader.num_images} images to train on, {eval_loader.num_images} to validate")
    if config.TRAIN.BALANCE:
        shares, of = balanced_shares(train_loader.source.labels, config.TRAIN.BALANCE), config.TRAIN.BALANCE
        logger.info(f"TRAIN.BALANCE {of:g}: an epoch has an image {shares.min():.3g} to {shares.max():.3g} times")
    compare_count(config, train_loader.source)
    if config.TRAIN.PROBE != "only":
        _log_optimizer(config, trainer)


def compare_count(config: CfgNode, source: Source) -> None:
    """Warn where the model has more classes than the data, and nothing known of either gives other labels.

    Raises UserError for a model without a head.
    """
    if not config.MODEL.NUM_CLASSES:
        raise UserError("MODEL.NUM_CLASSES is 0: a model without a head has no classes to predict")
    if source.num_classes != config.MODEL.NUM_CLASSES:
        said = f"MODEL.NUM_CLASSES is {config.MODEL.NUM_CLASSES}, the data has {source.num_classes} classes"
        logger.warning(f"{said}: labels are used unchanged")


def _log_optimizer(config: CfgNode, trainer: Trainer) -> None:
    train, batch, accum, world = config.TRAIN, config.DATA.BATCH_SIZE, trainer.accum_iter, process.world_size()
    peak = peak_lr(trainer.lr_at, train.NUM_EPOCHS, trainer.steps_per_epoch, accum)
    scaling = "not scaled" if train.LINEAR_SCALED_LR is None else f"for {train.LINEAR_SCALED_LR} images"
    logger.info(
        f"effective batch: {batch * accum * world} images ({batch} x accum_iter {accum} x {world} processes); "
        f"peak learning rate {peak:.3e} (TRAIN.BASE_LR {train.BASE_LR:g}, {scaling})"
    )
    if accum < train.ACCUM_ITER:
        logger.warning(f"TRAIN.ACCUM_ITER {train.ACCUM_ITER} is capped at {accum}, the batches of an epoch")
    if train.LAYER_DECAY != 1.0:
        stem = min(layer_rates(trainer.model, train.LAYER_DECAY).values())
        logger.info(f"learning rate x {train.LAYER_DECAY:g} from each layer to the one below: x {stem:.3g} at the stem")
    if train.WARMUP_EPOCHS > train.NUM_EPOCHS:
        longer = f"TRAIN.WARMUP_EPOCHS {train.WARMUP_EPOCHS:g} is more than TRAIN.NUM_EPOCHS {train.NUM_EPOCHS}"
        logger.warning(f"{longer}: the learning rate does not reach TRAIN.BASE_LR")
    decayed, spared = decay_split(trainer.model, train.NO_WEIGHT_DECAY)
    names = sorted({name.rsplit(".", 1)[-1] for name, param in spared.items() if param.ndim > 1})
    logger.info(
        f"weight decay {train.WEIGHT_DECAY:g} on {len(decayed)} tensors ({_count(decayed):,} parameters), none on "
        f"{len(spared)} ({_count(spared):,}): {', '.join(['norms', 'biases', *names])}"
    )
    frozen = {name: param for name, param in learnable(trainer.model).items() if param.stop_gradient}
    if frozen:
        logger.info(f"frozen by TRAIN.FREEZE: {len(frozen)} tensors ({_count(frozen):,} parameters)")


def _count(params: dict[str, Tensor]) -> int:
    return sum(math.prod(param.shape) for param in params.values())
