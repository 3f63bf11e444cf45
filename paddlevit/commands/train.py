"""The command line of training and evaluation: argv -> frozen configuration -> processes."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple

from yacs.config import CfgNode

from paddlevit.commands.parser import Parser, exit_code
from paddlevit.config import HEAD, find_variant, get_config, update_config, variant_names, with_values
from paddlevit.errors import UserError, path_mistakes
from paddlevit.runtime import launcher
from paddlevit.schema import refuse_keys_of_evaluation

logger = logging.getLogger(__name__)

_DATASETS = {"IMNET": "imagenet2012", "folder": "imagenet2012", "CIFAR": "cifar100"}  # official HVT's, and of one's own
_FETCH = "curl -L -o regnety_160.pdparams https://dl.fbaipublicfiles.com/deit/regnety_160-a5fe301d.pth"

_GROUPS = {
    "data": "dataset data_path batch_size batch_size_eval image_size num_classes num_workers",
    "training": "recipe epochs lr warmup_epochs weight_decay drop_path freeze patience accum_iter amp amp_dtype seed",
    "weights": "pretrained weights reinit_head resume last_epoch teacher teacher_model_path",
    "evaluation": "eval engine precision tta",
    "processes": "device nprocs max_restarts hang_timeout",
}
_MEANT = {  # our flags and keys, and what other projects call them
    "nprocs": "ngpus gpus num_gpus gpu_ids devices nproc nproc_per_node",
    "cfg": "model arch",
    "data_path": "data_dir dataset_dir",
    "image_size": "input_size img_size",
    "pretrained": "checkpoint finetune init_checkpoint",
    "num_workers": "j workers",
    "lr": "learning_rate",
    "last_epoch": "start_epoch",
    "teacher_model_path": "teacher_path",
    "REPORT_FREQ": "log_interval print_freq",
    "TRAIN.OPTIMIZER.NAME": "opt optimizer",
    "TRAIN.END_LR": "min_lr",
    "TRAIN.MIXUP_ALPHA": "mixup",
    "TRAIN.RANDOM_ERASE_PROB": "reprob",
    "TRAIN.LR_DECAY": "sched",
}
_EXAMPLES = {
    "train": (
        "-cfg pit_ti_224 -data_path data/imagenet -batch_size 256 -output output/pit_ti",
        "-cfg pit_ti_224 -data_path data/imagenet -output output/pit_ti -resume auto",
        "-recipe finetune -pretrained pit_s_224 -data_path data/flowers -output output/flowers",
    ),
    "eval": (
        "-cfg pit_b_224 -data_path data/imagenet -pretrained pit_b_224.pdparams",
        "-pretrained output/flowers/best.pdparams",
        "-cfg hrt_small -data_path data/imagenet -pretrained hrt_small.pth -amp -nprocs 4",
    ),
    "distill": (
        "-cfg pit_s_distilled_224 -data_path data/imagenet -teacher_model_path regnety_160.pdparams",
        "-cfg pit_distilled_digits -data_path data/digits -teacher_model_path output/teacher/best.pdparams",
    ),
}


def _parser(command: str) -> Parser:
    parser = Parser(
        description="Train or evaluate a model.",
        usage="%(prog)s -cfg VARIANT -data_path DIR [flags]",
        examples=_EXAMPLES[command],
        synonyms={"config": "cfg", "data_set": "dataset"},  # official HVT's
        meant={other: ours for ours, others in _MEANT.items() for other in others.split()},
    )
    parser.flag("cfg", action="append")
    parser.flag("output")
    parser.opts()
    for title, names in _GROUPS.items():
        parser.flags(names, title)
    return parser


def parse_args(argv: Sequence[str], command: str = "train") -> argparse.Namespace:
    """The flags of `argv`, as `paddlevit train`, `eval` or `distill` understand them. Raises UserError."""
    args = _parser(command).parse_args(argv)
    named = args.cfg or [None]
    if len(set(named)) > 1 and not launcher.launched():  # a launcher adds what it has found
        raise UserError(f"-cfg is given twice, as {' and as '.join(named)}")
    args.cfg = named[-1]
    args.eval = args.eval or command == "eval"
    for name in ("engine", "precision", "tta"):
        if getattr(args, name) is not None and not args.eval:
            raise UserError(f"-{name} {getattr(args, name)} works only with -eval")
    if args.eval and args.weights is None:
        args.weights = "model"  # a run's own config.yaml says which it started from
    if args.eval and args.resume:  # as official HVT and HRFormer have it
        if args.pretrained:
            given = f"-pretrained {args.pretrained} and -resume {args.resume}"
            raise UserError(f"-eval: name the weights once, got {given}")
        if args.resume == "auto":
            raise UserError("-eval: -resume auto is for training; name the weights with -pretrained FILE")
        args.pretrained, args.resume = args.resume, None
    if args.cfg is None and args.pretrained not in (None, "official"):
        from paddlevit.classifier import config_beside

        args.cfg = str(config_beside(args.pretrained))
        if Path(args.cfg).name == "config.yaml" and not args.eval:  # of another run, whose keys are not taken
            args.cfg = get_config(args.cfg).MODEL.NAME or args.cfg
        elif Path(args.cfg).name == "config.yaml":  # which may name a folder that the run is no longer in
            args.output = args.output or str(Path(args.cfg).parent)
    if args.eval and args.cfg and _of_a_run(Path(args.cfg)):  # which says how that one was started
        started = {"nprocs": ["NPROCS", "null"], "max_restarts": ["MAX_RESTARTS", "0"]}
        args.opts = [*(word for flag in started if getattr(args, flag) is None for word in started[flag]), *args.opts]
    if args.cfg is None:
        raise UserError("-cfg FILE is missing: a yaml file, a variant like pit_ti_224, or a resumed run's config.yaml")
    return args


def _of_a_run(cfg: Path) -> bool:
    return cfg.is_file() and cfg.read_bytes().startswith(HEAD.encode())


@exit_code
def main(argv: list[str], *, nprocs: int | None = None, command: str = "train") -> int:
    """Do what `argv` says and return the exit code; 2, with a message, after a user's mistake.

    `command` is train, eval, or distill, which trains with a teacher even where the configuration has none; `nprocs` 1
    never starts other processes.
    """
    args = parse_args(argv, command)
    config = _configure(args, distill=command == "distill")
    if nprocs == 1 and config.NPROCS not in (None, 1):
        raise UserError(f"NPROCS is {config.NPROCS} (-nprocs): this tool runs one process, main_multi_gpu.py several")
    if launcher.launched():
        if not config.OUTPUT:
            raise UserError("several processes (PADDLE_TRAINER_ID is in the environment) need one folder: -output DIR")
        if config.MAX_RESTARTS and launcher.LAUNCHER not in os.environ:
            raise UserError("-max_restarts: another launcher has started these processes; give -max_restarts 0")
        return launcher.take_part(lambda: _start(config), hang_timeout=config.HANG_TIMEOUT)
    from paddlevit.runtime import process

    kind = process.choose_device(config.DEVICE)
    nprocs = nprocs or process.process_count(config.NPROCS, kind)
    config = _with_folder(config, args.cfg)
    if nprocs == 1 and not config.MAX_RESTARTS:
        return _start(config)
    folder = Path(config.OUTPUT)
    return launcher.run(
        _again([command, *argv, "-cfg", args.cfg, "-output", config.OUTPUT], config),
        nprocs,
        kind=kind,
        open_log=lambda: process.setup_logging(folder if folder.is_dir() else None),
        restarts=config.MAX_RESTARTS,
    )


class Trained(NamedTuple):
    """What a finished run has left: its folder, best weights and report, and the metrics of those weights."""

    folder: Path
    best: Path
    report: Path
    metrics: dict[str, Any]  # acc1, acc5 (percent), loss, epoch, num_images, ...


def train(
    cfg: str | Path | None = None,
    data_path: str | Path | None = None,
    *,
    output: str | Path | None = None,
    opts: Mapping[str, Any] | Sequence[Any] | None = None,
    **flags: Any,
) -> Trained:
    """Train as `paddlevit train` does, in this process and its main thread; the log goes to standard output too.

    `flags` are those of the command: `epochs=20`, `recipe="finetune"`, `pretrained="pit_ti_224"`. `opts` are
    other keys, such as `{"TRAIN.LAYER_DECAY": 0.75}`, or a list as in `get_config`. With `teacher_model_path` it
    distils. Raises UserError; once the run is saved, KeyboardInterrupt after Ctrl-C and SystemExit after SIGTERM.
    """
    from paddlevit.metrics import read_metrics
    from paddlevit.runtime import process

    with path_mistakes():
        args = parse_args(_words({"cfg": cfg, "data_path": data_path, "output": output, **flags}))
        args.opts = [*itertools.chain.from_iterable(opts.items())] if isinstance(opts, Mapping) else list(opts or ())
        config = _configure(args, distill=args.teacher_model_path is not None)
        if config.EVAL or config.NPROCS not in (None, 1) or config.MAX_RESTARTS:
            raise UserError("paddlevit.train trains in one process: eval, nprocs and max_restarts are the command's")
        if launcher.launched() or threading.current_thread() is not threading.main_thread():
            raise UserError("paddlevit.train runs in the main thread of a process that no launcher started")
        process.choose_device(config.DEVICE)  # or a mistake would leave an empty folder
        config = _with_folder(config, args.cfg)
        try:
            code = _start(config)
        finally:
            process.setup_logging()  # what this process says from now on is not of this run
    if code:
        raise KeyboardInterrupt if code == 128 + signal.SIGINT else SystemExit(code)
    folder = Path(config.OUTPUT)
    lines, _ = read_metrics(folder / "metrics.jsonl")
    return Trained(folder, folder / "best.pdparams", folder / "report.html", lines[-1])


def _words(flags: Mapping[str, Any]) -> list[str]:
    """What a command line would have for `flags`."""
    words: list[str] = []
    for name, value in flags.items():
        if isinstance(value, Mapping):
            raise UserError(f"{name} must be a name, a path, a number or a list, got a {type(value).__name__}")
        if isinstance(value, (list, tuple)):
            words += [f"-{name}", *map(str, value)]
        elif value is not None and value is not False:
            words.append(f"-{name}" if value is True else f"-{name}={value}")
    return words


def _again(words: Sequence[str], config: CfgNode) -> Callable[[bool], list[str]]:
    """What each process runs, `paddlevit` with `words`; restarted, it resumes what those before it have saved."""
    program = str(Path(__file__).resolve().parents[1] / "__main__.py")
    folder = Path(config.OUTPUT)

    def checkpoints() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in folder.glob("epoch_*.pdstate")}

    before = checkpoints()

    def command(restarted: bool) -> list[str]:
        resume: list[str] = []
        if restarted and not config.EVAL:
            # Whatever -resume named still counts while the run has saved nothing of its own.
            saved = checkpoints().items() - before.items()
            resume = ["-opts", "MODEL.RESUME", "auto" if saved else config.MODEL.RESUME or "auto"]
        return [sys.executable, program, *words, *resume]

    return command


def _configure(args: argparse.Namespace, *, distill: bool) -> CfgNode:
    """The configuration that `args` mean; names of other projects in `args` become ours."""
    if not os.path.isfile(args.cfg):
        args.cfg = find_variant(args.cfg)
        if args.dataset == "CIFAR":
            args.cfg = _cifar_variant(args.cfg)
    args.dataset = _DATASETS.get(args.dataset, args.dataset)
    if args.drop_path is not None:
        args.opts = [*_drop_path(args), *args.opts]
    config = update_config(get_config(), args)
    if not config.EVAL:
        refuse_keys_of_evaluation(args.opts, "training does not use it")
    values: dict[str, Any] = {}
    if not config.OUTPUT and config.MODEL.RESUME:
        values["OUTPUT"] = _resumed_folder(config.MODEL.RESUME)
    distilled = config.TRAIN.DISTILLATION_TYPE != "none"
    if distill and not distilled:
        values["TRAIN.DISTILLATION_TYPE"] = "hard"
    if (distill or distilled) and not (config.TRAIN.TEACHER_MODEL_PATH or config.EVAL):
        values["TRAIN.TEACHER_MODEL_PATH"] = _default_teacher(config)
    return with_values(config, values)


def _cifar_variant(name: str) -> str:
    """The variant for CIFAR-100 of the one called `name`, or that one: official HVT has one file for both."""
    for variant in variant_names("*_cifar100"):
        if name.startswith(variant[: -len("cifar100")]) and name != variant:
            logger.warning("-data_set CIFAR: taking the variant %s", variant)
            return variant
    return name


def _drop_path(args: argparse.Namespace) -> list[Any]:
    """The option that -drop_path means: a family's own key. Where stages have rates of their own, that of the last."""
    if not 0 <= args.drop_path < 1:
        raise UserError(f"-drop_path must be >= 0 and < 1, got {args.drop_path}")
    model, prefix = get_config(args.cfg, args.opts).MODEL, "MODEL"
    if "HRT" in model:
        model, prefix = model.HRT, "MODEL.HRT"
    key = next((key for key in ("DROPPATH", "DROP_PATH_RATE") if key in model), None)
    if key is None:
        raise UserError(f"-drop_path {args.drop_path}: {model.TYPE} has no stochastic depth")
    rates = [*model[key][:-1], args.drop_path] if isinstance(model[key], list) else args.drop_path
    return [f"{prefix}.{key}", rates]


def _default_teacher(config: CfgNode) -> str:
    """The weights of the teacher where no flag names them."""
    path = f"./{Path(config.TRAIN.TEACHER_MODEL).stem}.pdparams"
    if Path(path).is_file():
        return path
    fetch = f"; this fetches DeiT's:\n  {_FETCH}" if config.TRAIN.TEACHER_MODEL == "regnety_160" else ""
    raise UserError(f"there is no {path}: name the teacher's weights with -teacher_model_path FILE{fetch}")


def _resumed_folder(resume: str) -> str:
    if resume == "auto":
        raise UserError("-resume auto needs the run's folder: -output DIR")
    return resume if Path(resume).is_dir() else str(Path(resume).parent)


def _with_folder(config: CfgNode, cfg: str) -> CfgNode:
    """`config`, with a new folder ./output/<cfg>-<train or eval>-<time> where it names none.

    Jobs that start in the same second get folders of their own.
    """
    if config.OUTPUT:
        return config
    kind = "eval" if config.EVAL else "train"
    stem = f"./output/{Path(cfg).stem}-{kind}-{time.strftime('%Y%m%d-%H%M%S')}"
    for folder in itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2))):
        with path_mistakes(), contextlib.suppress(FileExistsError):
            os.makedirs(folder)
            return with_values(config, {"OUTPUT": folder})
    raise AssertionError("there are more numbers")


def _start(config: CfgNode) -> int:
    from paddlevit.run.evaluation import validate
    from paddlevit.run.train import train
    from paddlevit.runtime import process

    process.setup_logging()
    process.setup(config.DEVICE, config.SEED)
    return validate(config) if config.EVAL else train(config)
