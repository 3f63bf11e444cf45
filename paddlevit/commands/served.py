"""The model that serve.py serves."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import paddle

from paddlevit.attention_maps import class_activation, overlay
from paddlevit.attention_maps.picture import fitted
from paddlevit.classifier import Classifier
from paddlevit.data.transforms import build_eval_transform
from paddlevit.errors import UserError

_OVERLAY_SIDE = 480  # longer side of the picture, in pixels


class Served:
    """A classifier as paddlevit.serve.Model wants it; it explains models that have `views`, so no exported ones."""

    def __init__(self, classifier: Classifier) -> None:
        """Runs once, so that the first visitor does not wait for what is made on first use.

        Raises UserError for a model whose logits are not finite.
        """
        data = classifier.config.DATA
        self.name, self.precision = classifier.name, classifier.precision
        self.num_classes = classifier.config.MODEL.NUM_CLASSES
        self.explains = hasattr(classifier.model, "views")
        self.prepare = classifier.pixels
        self.calibration = classifier.calibration
        self._classifier = classifier
        self._source_box = build_eval_transform(classifier.config).source_box
        black = np.zeros([1, data.IMAGE_SIZE, data.IMAGE_SIZE, data.IMAGE_CHANNELS], "uint8")
        logits, _ = self.classify(black, [0] * self.explains)
        if not np.isfinite(logits).all():
            raise UserError(f"{self.name} gives logits that are not finite: it is not served")

    def classify(self, pixels: np.ndarray, explain: Sequence[int]) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """Logits [N, classes] of images [N, H, W, C]; of those in `explain`, heat maps of the top-1 class."""
        images = self._classifier.normalize(pixels)
        logits = self._classifier.forward(images)
        chosen = list(explain)
        if not chosen or not self.explains or self._classifier.model is None:
            return logits, {}
        some = paddle.stack([images[i] for i in chosen])
        heats = class_activation(self._classifier.model, some, logits[chosen].argmax(axis=1).tolist())
        return logits, dict(zip(chosen, heats))

    def overlay(self, data: bytes, heat: np.ndarray) -> bytes:
        """The map over the image, as a PNG file."""
        image = self._classifier.opened(data)
        file = io.BytesIO()
        image, box = fitted(image, self._source_box(image.size), _OVERLAY_SIDE)
        overlay(image, heat, box).save(file, "PNG", compress_level=1)
        return file.getvalue()
