"""The network that serve.py serves."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from yacs.config import CfgNode

from paddlevit.attention_maps import class_activation, overlay
from paddlevit.attention_maps.picture import fitted
from paddlevit.commands.classifier import Logits, build_classifier, build_logits, configure
from paddlevit.commands.exported import configure_exported, exported_logits
from paddlevit.data import build_preparation
from paddlevit.data.decode import decode
from paddlevit.data.transforms import build_eval_transform
from paddlevit.runtime import process

_OVERLAY_SIDE = 480  # longer side of the picture, in pixels


def open_network(args: argparse.Namespace) -> tuple[ServedNetwork, Sequence[str]]:
    """The network that `args` name and what its classes are called."""
    if args.exported:
        config, names, exported = configure_exported(args)
        process.setup(config.DEVICE, config.SEED)
        return ServedNetwork(config, exported_logits(exported), name=f"{exported.parent.name}/{exported.name}"), names
    config, names = configure(args)
    process.setup(config.DEVICE, config.SEED)
    model = build_classifier(config, names)
    return ServedNetwork(config, build_logits(config, model), name=config.MODEL.NAME, model=model), names


class ServedNetwork:
    """A network as paddlevit.serve.Network wants it."""

    def __init__(self, config: CfgNode, logits: Logits, *, name: str, model: nn.Layer | None = None) -> None:
        """Runs the network once, so that the first visitor does not wait for what is made on first use.

        Without `model`, whose gradients say where it has looked, nothing is explained.
        """
        self.explains = model is not None
        self.name = name
        self._model = model
        self._logits = logits
        self._prepare, self._normalize = build_preparation(config)
        self._source_box = build_eval_transform(config).source_box
        data = config.DATA
        black = np.zeros([1, data.IMAGE_SIZE, data.IMAGE_SIZE, data.IMAGE_CHANNELS], "uint8")
        probabilities, _ = self.classify(black, [0] * self.explains)
        self.num_classes = probabilities.shape[1]

    def prepare(self, data: bytes) -> np.ndarray:
        """Pixels of an image file as evaluation sees them, uint8 [H, W, C]. Raises UserError for a damaged file."""
        return self._prepare(decode(data, "the image"))

    def classify(self, pixels: np.ndarray, explain: Sequence[int]) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """Probabilities [N, classes] of images [N, H, W, C]; of those in `explain`, where the likeliest was seen."""
        images = self._normalize(pixels)
        probabilities = F.softmax(self._logits(images).astype("float32")).numpy()
        chosen = list(explain)
        if not chosen or self._model is None:
            return probabilities, {}
        some = paddle.stack([images[i] for i in chosen])
        heats = class_activation(self._model, some, probabilities[chosen].argmax(axis=1).tolist())
        return probabilities, dict(zip(chosen, heats))

    def overlay(self, data: bytes, heat: np.ndarray) -> bytes:
        """The map over the image, as a PNG file."""
        image = decode(data, "the image")
        file = io.BytesIO()
        image, box = fitted(image, self._source_box(image.size), _OVERLAY_SIDE)
        overlay(image, heat, box).save(file, "PNG", compress_level=1)
        return file.getvalue()
