"""Every family, by the name that MODEL.TYPE gives it."""

from __future__ import annotations

import functools
import os
from contextlib import AbstractContextManager
from typing import Any, Callable, Protocol, runtime_checkable

import paddle
from paddle import Tensor, nn
from yacs.config import CfgNode

from paddlevit import paddle_internals
from paddlevit.config import ConfigTypeError, get_config, variant_names, with_values
from paddlevit.cvt import build_cvt
from paddlevit.hrformer import build_hrformer
from paddlevit.hvt import build_hvt
from paddlevit.pit import build_pit
from paddlevit.regnet import build_regnet
from paddlevit.runtime import settings
from paddlevit.runtime.process import half_precision
from paddlevit.weights import load_weights
from paddlevit.weights.hub import official


@runtime_checkable
class Model(Protocol):
    """What the rest of the package asks of a family's model, an nn.Layer: images [N, C, H, W] -> logits [N, K].

    Without `views()` (paddlevit/views.py) it trains and predicts, but nobody can look inside.
    """

    weight_sources: dict[str, Any]  # other projects' names of its parameters: see weights.convert.Table
    head_prefixes: tuple[str, ...]  # of the parameters that -reinit_head initialises again
    no_weight_decay: tuple[str, ...]  # last parts of names that do not decay; tensors with one axis never do

    def forward_features(self, images: Tensor) -> Tensor:
        """What the head sees."""

    def layer_groups(self) -> list[list[str]]:
        """Names of the parameters by layer, stem first and head last, for TRAIN.LAYER_DECAY."""


FAMILIES: dict[str, Callable[[CfgNode], nn.Layer]] = {
    "cvt": build_cvt,
    "hrformer": build_hrformer,
    "hvt": build_hvt,
    "pit": build_pit,
    "regnet": build_regnet,
}


def build_model(
    config_or_name: CfgNode | str | os.PathLike[str],
    *,
    num_classes: int | None = None,
    image_size: int | None = None,
    weights: str | os.PathLike[str] | None = None,
) -> nn.Layer:
    """The model of a configuration, a variant's name or a yaml file: images [N, C, H, W] -> logits [N, num_classes].

    `weights` is a file as `load_weights` takes, or 'official', the published ones; where it has another number of
    classes, the classifier is a new one, which a warning says, and position embeddings are interpolated to
    `image_size`. Raises ConfigError, MissingFileError and WeightsError, all UserErrors, and UserError for a Paddle that
    lacks what the package needs.
    """
    settings.warn_of_stride_kernels()
    paddle_internals.check()
    if not isinstance(config_or_name, (CfgNode, str, os.PathLike)):
        raise ConfigTypeError(f"build_model needs a configuration, a variant's name or a path, got {config_or_name!r}")
    config = config_or_name if isinstance(config_or_name, CfgNode) else get_config(os.fspath(config_or_name))
    given = {"MODEL.NUM_CLASSES": num_classes, "DATA.IMAGE_SIZE": image_size}
    given = {key: value for key, value in given.items() if value is not None}
    for key, value in given.items():
        if isinstance(value, str):  # which a file or a command line may have for a number
            raise ConfigTypeError(f"{key} must be an integer, got {value!r}")
    if given:
        config = with_values(config, given)
    model = FAMILIES[config.MODEL.TYPE](config)
    if weights is not None:
        load_weights(model, official(weights, config.MODEL.NAME), new_head=True)
    return model


def autocast(config: CfgNode) -> Callable[[], AbstractContextManager]:
    """The context for forward passes; nothing on a CPU, where Paddle would warn that it does nothing."""
    enable = config.AMP and half_precision(config.AMP_DTYPE)
    return functools.partial(paddle.amp.auto_cast, enable=enable, dtype=config.AMP_DTYPE, level=config.AMP_OPT_LEVEL)


def list_models(pattern: str = "*") -> list[str]:
    """Names of the shipped variants that match `pattern` ('pit_*_224'), sorted."""
    return variant_names(pattern)
