"""The command line of training and evaluation: argv -> frozen configuration -> processes."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Callable

from paddlevit.commands.parser import Parser, exit_code
from paddlevit.errors import UserError
from paddlevit.runtime import launcher

if TYPE_CHECKING:
    from yacs.config import CfgNode


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """The flags of `argv`; `-flag value`, `-flag=value` and `--flag value` all work. Raises UserError."""
    parser = Parser(description="Train or evaluate a network.")
    flag = parser.flag
    flag("cfg", metavar="FILE", help="yaml file, or the name of a shipped variant such as pit_ti_224")
    flag("dataset", help="imagenet2012 (default), cifar10 or cifar100")
    flag("data_path", metavar="DIR", help="folder of the data set")
    flag("batch_size", type=int, help="images per process and step")
    flag("batch_size_eval", type=int, help="images per process and step of the evaluation")
    flag("image_size", type=int, help="side of the square input image")
    flag("num_classes", type=int, help="number of classes (default: what the data has)")
    flag("accum_iter", type=int, help="batches per optimizer step")
    flag("num_workers", type=int, help="decoding processes per process (-1: chosen by the cores)")
    flag("pretrained", metavar="FILE", help="weights to start from, or to evaluate; of any source")
    flag("reinit_head", action="store_true", help="start with a new classifier, not with that of -pretrained")
    flag("resume", metavar="WHERE", help="a checkpoint, a run's folder, or auto: the newest checkpoint in -output")
    flag("last_epoch", type=int, help="epochs to count as done")
    flag("teacher", help="variant of the teacher (default regnety_160)")
    flag("teacher_model_path", metavar="FILE", help="weights of the teacher")
    flag("output", metavar="DIR", help="folder of the run (default: output/<variant>-<train or eval>-<time>)")
    flag("eval", action="store_true", help="evaluate and stop")
    flag("amp", action="store_true", help="mixed precision")
    flag("amp_dtype", help="float16 (default) or bfloat16")
    flag("device", help="auto (default: a GPU where there is one), gpu or cpu")
    flag("nprocs", type=int, help="processes to start (default: one per visible GPU)")
    flag("max_restarts", type=int, help="times that a run which died, failed or hung is started again (default 0)")
    flag("hang_timeout", type=int, metavar="SECONDS", help="without progress a process counts as hung (0: never)")
    flag("seed", type=int, help="seed of everything random (default 0)")
    flag("opts", nargs="*", action="extend", metavar="KEY VALUE", help="any keys of the configuration")
    return parser.parse_args(argv)


@exit_code
def main(argv: list[str], *, nprocs: int | None = None, distill: bool = False) -> int:
    """Train or evaluate as `argv` says and return the exit code; 2, with a message, after a user's mistake.

    `nprocs` 1 never starts other processes; `distill` trains with a teacher even where the configuration has none.
    """
    config = _configure(argv, distill)
    if nprocs == 1 and config.NPROCS not in (None, 1):
        raise UserError(f"-nprocs {config.NPROCS}: this tool runs one process; main_multi_gpu.py runs several")
    if launcher.launched():
        if config.MAX_RESTARTS and not launcher.watched():
            raise UserError("-max_restarts: another launcher has started these processes; give -max_restarts 0")
        return launcher.take_part(lambda: _start(config), hang_timeout=config.HANG_TIMEOUT)
    from paddlevit.runtime import process

    kind = process.choose_device(config.DEVICE)
    nprocs = nprocs or process.process_count(config.NPROCS, kind)
    if nprocs == 1 and not config.MAX_RESTARTS:
        return _start(config)
    job = launcher.Job(
        command=_command(argv, config),
        nprocs=nprocs,
        kind=kind,
        open_log=lambda: _open_log(Path(config.OUTPUT)),
        max_restarts=config.MAX_RESTARTS,
        hang_timeout=config.HANG_TIMEOUT,
    )
    return launcher.run(job)


def _command(argv: list[str], config: CfgNode) -> Callable[[bool], list[str]]:
    """What each process runs; restarted, it goes on from what the processes before it have saved."""
    folder = Path(config.OUTPUT)
    before = _checkpoints(folder)

    def command(restarted: bool) -> list[str]:
        words = [sys.executable, sys.argv[0], *argv, "-output", config.OUTPUT]
        if restarted and not config.EVAL:
            # Whatever -resume named still counts while the run has saved nothing of its own.
            saved = _checkpoints(folder).items() - before.items()
            resume = "auto" if saved else config.MODEL.RESUME or "auto"
            words += ["-opts", "MODEL.RESUME", resume]
        return words

    return command


def _checkpoints(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("epoch_*.pdstate")}


def _open_log(folder: Path) -> None:
    from paddlevit.runtime import process

    process.setup_logging(folder if folder.is_dir() else None)


def _configure(argv: list[str], distill: bool) -> CfgNode:
    args = parse_args(argv)
    if args.cfg is None:
        raise UserError("-cfg FILE is missing: a yaml file, or the name of a variant such as pit_ti_224")
    from paddlevit.config import get_config, update_config, with_values

    config = update_config(get_config(), args)
    values = {}
    if distill and config.TRAIN.DISTILLATION_TYPE == "none":
        values["TRAIN.DISTILLATION_TYPE"] = "hard"
    if not config.OUTPUT:
        values["OUTPUT"] = _default_output(args.cfg, config)
    return with_values(config, values)


def _default_output(cfg: str, config: CfgNode) -> str:
    resume = Path(config.MODEL.RESUME)
    if config.MODEL.RESUME == "auto":
        raise UserError("-resume auto needs the run's folder: -output DIR")
    if config.MODEL.RESUME:
        return str(resume if resume.is_dir() else resume.parent)
    if launcher.launched():
        raise UserError("several processes need one folder: -output DIR")
    kind = "eval" if config.EVAL else "train"
    return f"./output/{Path(cfg).stem}-{kind}-{time.strftime('%Y%m%d-%H%M%S')}"


def _start(config: CfgNode) -> int:
    from paddlevit.run.train import train, validate
    from paddlevit.runtime import process

    process.setup_logging()
    process.setup(config.DEVICE, config.SEED)
    return validate(config) if config.EVAL else train(config)
