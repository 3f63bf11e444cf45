"""One run put together from its parts: training, or evaluation. The only file that sees every room."""

import contextlib
import functools
import json
import logging
import math
import signal
from pathlib import Path
from typing import Any, Callable, ContextManager, Dict, List, Optional, Tuple

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from yacs.config import CfgNode

from paddlevit import checkpoint, runtime
from paddlevit.config import get_config, with_values
from paddlevit.data import EvalLoader, TrainLoader, build_eval_loader, build_train_loader, open_source
from paddlevit.data.mixup import build_mixup
from paddlevit.ema import ModelEma
from paddlevit.engine import Stopped, Trainer, evaluate
from paddlevit.errors import UserError
from paddlevit.journal import Journal, progress
from paddlevit.models import build_model
from paddlevit.objectives import Distilled, Objective, Supervised
from paddlevit.optim import build_lr_schedule, build_optimizer, decay_split
from paddlevit.report import Predictions, write_report
from paddlevit.weights import load_weights, read_state_dict

logger = logging.getLogger(__name__)


def train(config: CfgNode) -> int:
    """Train as `config` says, or go on with an earlier run; 0, or 128 + the signal that stopped it after saving."""
    folder = _open_folder(config)
    resumed = _resumed(config, folder)
    config = _with_classes(config, "train")
    ranks = {"rank": runtime.rank(), "world_size": runtime.world_size()}
    train_loader, eval_loader = build_train_loader(config, **ranks), build_eval_loader(config, **ranks)
    trainer = build_trainer(config, train_loader.steps_per_epoch, pretrained=resumed is None)
    if resumed is not None:
        _restore(trainer, resumed, folder)
    if runtime.is_main():
        saved = with_values(config, {"MODEL.RESUME": ""})
        checkpoint.write_text(folder / "config.yaml", saved.dump())
    journal = Journal(
        folder / "metrics.jsonl",
        report_freq=config.REPORT_FREQ,
        num_epochs=config.TRAIN.NUM_EPOCHS,
        steps_per_epoch=train_loader.steps_per_epoch,
        images_per_step=train_loader.batch_size * runtime.world_size(),
    )
    journal.rewind(trainer.epoch, trainer.step)
    _log_start(config, trainer, train_loader, eval_loader)
    try:
        with _stop_signals(trainer):
            _epochs(config, trainer, train_loader, eval_loader, journal)
    except Stopped as stopped:
        _save(folder, trainer, config.KEEP_LAST)
        logger.info("stopped by %s after saving; -resume auto goes on", signal.Signals(stopped.signum).name)
        return 128 + stopped.signum
    if not trainer.best:  # nothing was left to train
        _evaluate_epoch(config, trainer, eval_loader, journal)
    _finish(config, trainer.best, eval_loader, journal)
    return 0


def validate(config: CfgNode) -> int:
    """Evaluate the weights that `config` names on the validation images and write eval.json; 0."""
    if not config.MODEL.PRETRAINED or config.MODEL.RESUME:
        raise UserError("-eval needs the weights to evaluate by -pretrained FILE, and does not take -resume")
    folder = _open_folder(config)
    config = _with_classes(config, "val")
    loader = build_eval_loader(config, rank=runtime.rank(), world_size=runtime.world_size())
    model = build_model(config)
    _load_pretrained(config, model)
    result = evaluate(model, progress(loader, len(loader), "evaluation"), autocast=_autocast(config))
    logger.info(
        "top-1 %.3f %%, top-5 %.3f %%, loss %.4f on %d images",
        *(result[k] for k in ("acc1", "acc5", "loss", "num_images")),
    )
    if runtime.is_main():
        record = {**result, "weights": config.MODEL.PRETRAINED}
        checkpoint.write_text(folder / "eval.json", json.dumps(record, indent=1) + "\n")
        if not (folder / "config.yaml").exists():  # a training run's stays
            checkpoint.write_text(folder / "config.yaml", config.dump())
        logger.info("written to %s", folder / "eval.json")
    return 0


def build_trainer(config: CfgNode, steps_per_epoch: int, *, pretrained: bool = True) -> Trainer:
    """The trainer of `config`, with the weights that it names unless `pretrained` is false."""
    paddle.seed(config.SEED)
    model = build_model(config)
    if config.MODEL.PRETRAINED and pretrained:
        _load_pretrained(config, model)
    images_per_step = config.DATA.BATCH_SIZE * config.TRAIN.ACCUM_ITER * runtime.world_size()
    ema = None
    if config.TRAIN.MODEL_EMA:
        ema = ModelEma(model, decay=config.TRAIN.MODEL_EMA_DECAY, warmup=config.TRAIN.MODEL_EMA_WARMUP)
    trainer = Trainer(
        model=model,
        network=paddle.DataParallel(model) if runtime.world_size() > 1 else model,
        objective=_objective(config),
        mixup=build_mixup(config),
        optimizer=build_optimizer(config, model),
        lr_at=build_lr_schedule(config, images_per_step),
        steps_per_epoch=steps_per_epoch,
        accum_iter=config.TRAIN.ACCUM_ITER,
        seed=config.SEED,
        ema=ema,
        scaler=paddle.amp.GradScaler(enable=config.AMP and config.AMP_DTYPE == "float16"),
        autocast=_autocast(config),
    )
    trainer.epoch = config.TRAIN.LAST_EPOCH
    return trainer


def _epochs(
    config: CfgNode, trainer: Trainer, train_loader: TrainLoader, eval_loader: EvalLoader, journal: Journal
) -> None:
    """Train until the last epoch, evaluating and saving on the way."""
    folder = journal.path.parent
    while trainer.epoch < config.TRAIN.NUM_EPOCHS:
        journal.start_epoch(trainer.epoch + 1, trainer.step)
        try:
            trainer.train_epoch(
                train_loader.epoch(trainer.epoch, trainer.step),
                lambda loss, waited: journal.step(loss, waited, trainer.lr),
            )
        finally:
            journal.end_epoch()
        last = trainer.epoch == config.TRAIN.NUM_EPOCHS
        if last or trainer.epoch % config.VALIDATE_FREQ == 0:
            _evaluate_epoch(config, trainer, eval_loader, journal)
        if last or trainer.epoch % config.SAVE_FREQ == 0:
            _save(folder, trainer, config.KEEP_LAST)
        if not last:
            trainer.check_stop()


def _evaluate_epoch(config: CfgNode, trainer: Trainer, loader: EvalLoader, journal: Journal) -> None:
    """Evaluate the model and its EMA; where one is better than any before, save it as best.pdparams."""
    path = _best_path(journal.path.parent)
    models = {"model": trainer.model}
    if trainer.ema is not None:
        models["ema"] = trainer.ema.model
    for weights, model in models.items():
        result = evaluate(model, progress(loader, len(loader), "validation"), autocast=_autocast(config))
        journal.evaluation(trainer.epoch, weights, result)
        if result["acc1"] > trainer.best.get("acc1", -1.0):
            if runtime.is_main():
                checkpoint.write_weights(path, model.state_dict())
            trainer.best = {"acc1": result["acc1"], "epoch": trainer.epoch, "weights": weights}
            trainer.best["sha256"] = checkpoint.sha256(path) if runtime.is_main() else ""


def _best_path(folder: Path) -> Path:
    return folder / "best.pdparams"


def _finish(config: CfgNode, best: Dict[str, Any], loader: EvalLoader, journal: Journal) -> None:
    """Evaluate the saved best weights once more, as a user would, and write the report."""
    runtime.barrier()
    folder = journal.path.parent
    model = build_model(config)
    load_weights(model, _best_path(folder))
    outputs: List[Tuple[Tensor, Tensor]] = []
    result = evaluate(
        model,
        progress(loader, len(loader), "evaluating the best"),
        autocast=_autocast(config),
        on_batch=lambda logits: outputs.append(_top1(logits)),
    )
    journal.evaluation(best["epoch"], best["weights"], result, best=True)
    predictions = _predictions(loader, outputs)
    if runtime.is_main():
        report = write_report(folder, predictions)
        logger.info("best weights: %s (%s, epoch %d)", _best_path(folder), best["weights"], best["epoch"])
        logger.info("report: %s", report)


def _top1(logits: Tensor) -> Tuple[Tensor, Tensor]:
    return F.softmax(logits.astype("float32")).max(axis=-1), logits.argmax(axis=-1)


def _predictions(loader: EvalLoader, outputs: List[Tuple[Tensor, Tensor]]) -> Predictions:
    """What was predicted for every validation image, gathered from all processes."""
    confidence = np.zeros(loader.num_images, dtype="float32")
    predicted = np.zeros(loader.num_images, dtype="int64")
    if outputs:
        confidence[loader.indices] = np.concatenate([values.numpy() for values, _ in outputs])
        predicted[loader.indices] = np.concatenate([classes.numpy() for _, classes in outputs])
    source = loader.source
    return Predictions(
        labels=np.asarray([source.label(i) for i in range(loader.num_images)], dtype="int64"),
        predicted=runtime.all_reduce_sum(paddle.to_tensor(predicted)).numpy(),
        confidence=runtime.all_reduce_sum(paddle.to_tensor(confidence)).numpy(),
        class_names=loader.class_names,
        names=source.name,
        thumbnail=loader.thumbnail,
    )


def _objective(config: CfgNode) -> Objective:
    kind = config.TRAIN.DISTILLATION_TYPE
    if kind == "none":
        return Supervised()
    if not config.TRAIN.TEACHER_MODEL_PATH:
        raise UserError(f"TRAIN.DISTILLATION_TYPE is {kind}: name the teacher's weights with -teacher_model_path FILE")
    size = ["DATA.IMAGE_SIZE", config.DATA.IMAGE_SIZE, "MODEL.NUM_CLASSES", config.MODEL.NUM_CLASSES]
    teacher = build_model(get_config(config.TRAIN.TEACHER_MODEL, size))
    load_weights(teacher, config.TRAIN.TEACHER_MODEL_PATH)
    return Distilled(teacher, kind=kind, alpha=config.TRAIN.DISTILLATION_ALPHA, tau=config.TRAIN.DISTILLATION_TAU)


def _autocast(config: CfgNode) -> Callable[[], ContextManager]:
    return functools.partial(
        paddle.amp.auto_cast, enable=config.AMP, dtype=config.AMP_DTYPE, level=config.AMP_OPT_LEVEL
    )


def _with_classes(config: CfgNode, split: str) -> CfgNode:
    """`config` with the number of classes that the data has, where the user gave none."""
    if not config.DATA.INFER_NUM_CLASSES:
        return config
    num_classes = open_source(config, split).num_classes
    return with_values(config, {"MODEL.NUM_CLASSES": num_classes, "DATA.INFER_NUM_CLASSES": False})


def _load_pretrained(config: CfgNode, model: nn.Layer) -> None:
    reinit = type(model).head_prefixes if config.MODEL.REINIT_HEAD else ()
    report = load_weights(model, config.MODEL.PRETRAINED, reinit=reinit)
    logger.info("weights: %s", report)


def _open_folder(config: CfgNode) -> Path:
    """The run's folder, made if need be, with the log going there; refused where another run's checkpoints are."""
    folder = Path(config.OUTPUT)
    taken = not config.EVAL and not config.MODEL.RESUME and next(folder.glob("epoch_*.pd*"), None)
    if taken:
        raise UserError(
            f"-output {folder} already holds a run ({taken.name}): go on with it by -resume auto, or name another "
            "folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        runtime.setup_logging(folder)
    except OSError as error:
        raise UserError(f"-output {folder} cannot be written: {error.strerror}") from None
    return folder


def _resumed(config: CfgNode, folder: Path) -> Optional[Dict[str, Any]]:
    """The state to go on from, or None for a fresh start."""
    if not config.MODEL.RESUME:
        return None
    path = checkpoint.newest(folder) if config.MODEL.RESUME == "auto" else checkpoint.find(Path(config.MODEL.RESUME))
    if path is None:
        logger.info("-resume auto: no checkpoint in %s, starting anew", folder)
        return None
    logger.info("going on from %s", path)
    return {**checkpoint.load(path, read_state_dict), "path": path}


def _restore(trainer: Trainer, resumed: Dict[str, Any], folder: Path) -> None:
    """Put a resumed state into the trainer and make `folder` look as it did then."""
    path = resumed["path"]
    try:
        load_weights(trainer.model, resumed["model"])
        if trainer.ema is not None:
            load_weights(trainer.ema.model, resumed["ema"] or resumed["model"])
    except UserError as error:
        raise UserError(
            f"{path.with_suffix('.pdparams')} is of another network than the configuration's: {error}"
        ) from None
    trainer.load_state(resumed["optimizer"], resumed["progress"])
    if runtime.is_main():
        _restore_best(trainer, _best_path(path.parent), _best_path(folder))
        if path.parent.resolve() == folder.resolve():
            for stem in checkpoint.drop_later(path):
                logger.warning("%s came after %s and is withdrawn", stem, path.stem)
    runtime.barrier()


def _restore_best(trainer: Trainer, theirs: Path, ours: Path) -> None:
    """Keep the best weights that the resumed state knows, wherever they are, or forget about them."""
    known = trainer.best.get("sha256")
    if not known or checkpoint.sha256(ours) == known:
        return
    if checkpoint.sha256(theirs) == known:
        checkpoint.copy_file(theirs, ours)
    else:
        logger.info("the best weights of that time, top-1 %.2f %%, are gone: the next ones count", trainer.best["acc1"])
        trainer.best = {}


def _save(folder: Path, trainer: Trainer, keep: int) -> None:
    if runtime.is_main():
        logger.info("saved %s", checkpoint.save(folder, trainer.state(), keep=keep).with_suffix(""))
    runtime.barrier()


@contextlib.contextmanager
def _stop_signals(trainer: Trainer):
    """While training, SIGTERM and SIGINT ask the trainer to stop after its step; a second one ends it at once."""

    def ask(signum: int, frame: Any) -> None:
        trainer.stop_signal = signum
        signal.signal(signum, previous[signum])

    previous = {signum: signal.signal(signum, ask) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _log_start(config: CfgNode, trainer: Trainer, train_loader: TrainLoader, eval_loader: EvalLoader) -> None:
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
