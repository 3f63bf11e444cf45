"""Every family, by the name that MODEL.TYPE gives it."""

from __future__ import annotations

from typing import Callable

from paddle import nn
from yacs.config import CfgNode

from paddlevit.config import variant_names
from paddlevit.cvt import build_cvt
from paddlevit.hrformer import build_hrformer
from paddlevit.hvt import build_hvt
from paddlevit.pit import build_pit
from paddlevit.regnet import build_regnet

FAMILIES: dict[str, Callable[[CfgNode], nn.Layer]] = {
    "cvt": build_cvt,
    "hrformer": build_hrformer,
    "hvt": build_hvt,
    "pit": build_pit,
    "regnet": build_regnet,
}


def build_model(config: CfgNode) -> nn.Layer:
    """The network that `config` describes: images float32 [N, C, H, W] -> logits [N, MODEL.NUM_CLASSES]."""
    return FAMILIES[config.MODEL.TYPE](config)


def list_models(pattern: str = "*") -> list[str]:
    """Names of the shipped variants that match `pattern` ('pit_*_224'), sorted."""
    return variant_names(pattern)
