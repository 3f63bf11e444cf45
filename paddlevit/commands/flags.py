"""Flags that several commands share."""

from __future__ import annotations

from paddlevit.commands.parser import Parser


def add_flags(parser: Parser, *, exported: bool = False) -> None:
    """The flags that `classifier.open_classifier` reads; with `exported` those for an exported model too."""
    flag = parser.flag
    weights = parser.add_mutually_exclusive_group(required=True)
    flag("pretrained", group=weights, metavar="FILE", help="the weights, of any source; hf:OWNER/NAME; a variant")
    if exported:
        flag("exported", group=weights, metavar="DIR", help="folder or file of an exported model")
        flag(
            "engine",
            choices=("auto", "paddle", "openvino", "onnx"),
            help="that -pretrained is compiled for (default paddle: it is not; auto: openvino, on a CPU that has it)",
        )
        flag(
            "precision",
            choices=("auto", "f32", "bf16", "int8"),
            default="auto",
            help="auto (default: as exported, or f32), f32, bf16 with -engine openvino; int8 of an exported model",
        )
    flag("weights", metavar="WHICH", help="model (default) or ema, where -pretrained has both")
    flag("cfg", metavar="FILE", help="yaml file, variant, or a run's config.yaml (default: the one beside the weights)")
    flag("labels", metavar="FILE", help="names of the classes, one a line (default: found beside the weights or data)")
    flag("data_path", metavar="DIR", help="the data set, if its classes have the names")
    flag("num_classes", type=int, help="classes of the model (default: as many as there are names)")
    flag("image_size", type=int, help="side of the square input image")
    flag("device", help="auto (default: a GPU where there is one), gpu, cpu, custom:NAME")
    flag("amp", action="store_true", help="mixed precision")
