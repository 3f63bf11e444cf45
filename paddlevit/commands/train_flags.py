"""The flags of train, eval and distill, which are the same, in the groups that -h shows."""

from __future__ import annotations

import functools
from typing import Callable

from paddlevit.commands.parser import Parser

_SYNONYMS = {"config": "cfg", "data_set": "dataset"}  # official HVT's
_MEANT = {  # other projects' names: our flag or key
    **dict.fromkeys(("ngpus", "gpus", "num_gpus", "gpu_ids", "devices", "nproc", "nproc_per_node"), "nprocs"),
    **dict.fromkeys(("model", "arch"), "cfg"),
    **dict.fromkeys(("data_dir", "dataset_dir"), "data_path"),
    **dict.fromkeys(("input_size", "img_size"), "image_size"),
    **dict.fromkeys(("checkpoint", "finetune", "init_checkpoint"), "pretrained"),
    **dict.fromkeys(("j", "workers"), "num_workers"),
    "learning_rate": "lr",
    "start_epoch": "last_epoch",
    "teacher_path": "teacher_model_path",
    **dict.fromkeys(("log_interval", "print_freq"), "REPORT_FREQ"),
    **dict.fromkeys(("opt", "optimizer"), "TRAIN.OPTIMIZER.NAME"),
    "min_lr": "TRAIN.END_LR",
    "mixup": "TRAIN.MIXUP_ALPHA",
    "reprob": "TRAIN.RANDOM_ERASE_PROB",
    "sched": "TRAIN.LR_DECAY",
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


def train_parser(command: str) -> Parser:
    """What reads the flags of "train", "eval" or "distill"."""
    parser = Parser(
        description="Train or evaluate a model.",
        usage="%(prog)s -cfg VARIANT -data_path DIR [flags]",
        examples=_EXAMPLES[command],
        synonyms=_SYNONYMS,
        meant=_MEANT,
    )
    parser.flag("cfg", action="append", metavar="FILE", help="yaml file, or the name of a variant such as pit_ti_224")
    parser.flag(
        "output",
        metavar="DIR",
        help="folder of the run (default: output/<variant>-<train or eval>-<time>; the run that is evaluated)",
    )
    parser.opts()
    for title, add in _GROUPS.items():
        add(functools.partial(parser.flag, group=parser.add_argument_group(title)))
    return parser


def _of_data(flag: Callable[..., None]) -> None:
    names = "imagenet2012 (default; or folder: images of your own), cifar10, cifar100, imagenet-v2 and so on"
    flag("dataset", metavar="NAME", help=names)
    flag("data_path", metavar="DIR", help="folder of the data set")
    flag("batch_size", type=int, help="images per process and step")
    flag("batch_size_eval", type=int, help="images per process and step of the evaluation")
    flag("image_size", type=int, help="side of the square input image")
    flag("num_classes", type=int, help="number of classes (default: what the data has)")
    flag("num_workers", type=int, help="decoding processes per process (-1: chosen by the cores)")


def _of_training(flag: Callable[..., None]) -> None:
    recipes = "official (default), finetune: for few images of one's own, or probe: a linear classifier in seconds"
    flag("recipe", choices=("official", "finetune", "probe"), help=recipes)
    flag("epochs", type=int, help="epochs to train")
    flag("lr", type=float, help="TRAIN.BASE_LR, scaled by the images of a step where the recipe does so")
    flag("warmup_epochs", type=float, help="epochs in which the learning rate rises")
    flag("weight_decay", type=float, help="weight decay")
    flag("drop_path", type=float, help="stochastic depth of the deepest block")
    flag("freeze", nargs="+", metavar="PATTERN", help="parameters that stay as they are, such as 'patch_embed*'")
    flag("patience", type=int, help="epochs without a better validation (TRAIN.BEST_BY) after which training ends")
    flag("accum_iter", type=int, help="batches per optimizer step")
    flag("amp", action="store_true", help="mixed precision")
    flag("amp_dtype", metavar="TYPE", help="float16 (default) or bfloat16")
    flag("seed", type=int, help="seed of everything random (default 0)")


def _of_weights(flag: Callable[..., None]) -> None:
    sources = "weights to start from, or to evaluate: a file of any source, hf:OWNER/NAME, a variant, or official"
    flag("pretrained", metavar="FILE", help=sources)
    flag("weights", metavar="WHICH", help="model (default) or ema, where -pretrained has both")
    flag("reinit_head", action="store_true", help="start with a new classifier, not with that of -pretrained")
    where = "checkpoint, run's folder, or auto: the newest in -output (-eval: the weights)"
    flag("resume", metavar="WHERE", help=where)
    flag("last_epoch", type=int, help="completed epochs; training starts after them")
    flag("teacher", metavar="VARIANT", help="the teacher (default regnety_160)")
    flag("teacher_model_path", metavar="FILE", help="weights of the teacher (default: ./<teacher>.pdparams)")


def _of_evaluation(flag: Callable[..., None]) -> None:
    flag("eval", action="store_true", help="evaluate and stop")
    flag("engine", metavar="NAME", help="-eval by paddle (default), openvino, onnx, or auto: openvino on a CPU with it")
    flag("precision", metavar="TYPE", help="of -engine: auto or f32 (default), or bf16 or int8 with openvino")
    flag("tta", metavar="NAME", help="-eval with test-time augmentation: none (default), flip or shift")


def _of_processes(flag: Callable[..., None]) -> None:
    flag("device", metavar="NAME", help="auto (default: a GPU where there is one), gpu, cpu, custom:NAME")
    flag("nprocs", type=int, help="processes to start (default: one per visible GPU)")
    flag("max_restarts", type=int, help="times that a run which died, failed or hung is started again (default 0)")
    flag("hang_timeout", type=int, metavar="SECONDS", help="without progress a process counts as hung (0: never)")


_GROUPS: dict[str, Callable[[Callable[..., None]], None]] = {
    "data": _of_data,
    "training": _of_training,
    "weights": _of_weights,
    "evaluation": _of_evaluation,
    "processes": _of_processes,
}
