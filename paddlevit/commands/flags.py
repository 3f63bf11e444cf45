"""Flags that several commands share."""

from __future__ import annotations

from paddlevit.commands.parser import Parser


def add_flags(parser: Parser) -> None:
    """The flags that `classifier.configure` reads."""
    flag = parser.flag
    flag("cfg", metavar="FILE", help="yaml file, variant, or a run's config.yaml (default: the one beside the weights)")
    flag("pretrained", metavar="FILE", help="the weights; of any source")
    flag("labels", metavar="FILE", help="names of the classes, one a line (default: found beside the weights or data)")
    flag("data_path", metavar="DIR", help="the data set, if its classes have the names")
    flag("num_classes", type=int, help="classes of the network (default: as many as there are names)")
    flag("image_size", type=int, help="side of the square input image")
    flag("device", help="auto (default: a GPU where there is one), gpu or cpu")
    flag("amp", action="store_true", help="mixed precision")


def add_exported_flag(parser: Parser) -> None:
    """The flag that `exported.configure_exported` reads besides those of `add_flags`."""
    parser.flag("exported", metavar="DIR", help="what export_model.py wrote, a folder or its file, for -pretrained")
