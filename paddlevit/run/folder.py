"""The run's folder: opened, saved into, and gone on from."""

import logging
from pathlib import Path
from typing import Any, Dict, Optional

from yacs.config import CfgNode

from paddlevit import checkpoint, runtime
from paddlevit.engine import Trainer
from paddlevit.errors import UserError
from paddlevit.weights import load_weights, read_state_dict

logger = logging.getLogger(__name__)


def open_folder(config: CfgNode) -> Path:
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
    runtime.barrier()  # the log of rank 0 is open
    if not runtime.agree(str((folder / "log.txt").is_file())):
        raise UserError(f"-output {folder}: the processes see different folders; machines must share the run's")
    return folder


def best_path(folder: Path) -> Path:
    return folder / "best.pdparams"


def save(folder: Path, trainer: Trainer, keep: int) -> None:
    """Write a checkpoint; all processes come back together."""
    if runtime.is_main() or trainer.shards is not None:
        state = trainer.state()
    if runtime.is_main():
        logger.info("saved %s", checkpoint.save(folder, state, keep=keep).with_suffix(""))
    runtime.barrier()


def resumed_state(config: CfgNode, folder: Path) -> Optional[Dict[str, Any]]:
    """The state to go on from, or None for a fresh start."""
    if not config.MODEL.RESUME:
        return None
    path = checkpoint.newest(folder) if config.MODEL.RESUME == "auto" else checkpoint.find(Path(config.MODEL.RESUME))
    if not runtime.agree(str(path)):
        raise UserError(f"-resume {config.MODEL.RESUME}: the processes see different checkpoints (here {path})")
    if path is None:
        logger.info("-resume auto: no checkpoint in %s, starting anew", folder)
        return None
    logger.info("going on from %s", path)
    return {**checkpoint.load(path, read_state_dict), "path": path}


def restore(trainer: Trainer, resumed: Dict[str, Any], folder: Path) -> None:
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
        _restore_best(trainer, best_path(path.parent), best_path(folder))
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
