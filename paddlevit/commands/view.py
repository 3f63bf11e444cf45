"""What visualize_attention.py shows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from paddlevit.attention_maps import class_attention, feature_maps, heat_map, methods, overlay
from paddlevit.attention_maps.heat import OF_A_CLASS
from paddlevit.attention_maps.picture import Captioned, fitted, tiles
from paddlevit.classifier import Classifier
from paddlevit.data.transforms import build_eval_transform
from paddlevit.errors import UserError

_SIDE, _SMALL = 240, 96  # longer side of the pictures of a sheet, in pixels
_CHANNELS = 8


class View:
    """A model and an image. Raises UserError where its logits are not finite."""

    def __init__(self, classifier: Classifier, path: str) -> None:
        assert classifier.model is not None
        self.model = classifier.model
        self.image = classifier.opened(path)
        self.box = build_eval_transform(classifier.config).source_box(self.image.size)
        self.images = classifier.normalize(classifier.pixels(self.image)[None])
        (logits,) = classifier.forward(self.images)
        self.probabilities = classifier.calibration.probabilities(logits)
        if not np.isfinite(self.probabilities).all():
            raise UserError(f"{path}: {classifier.name} gives logits that are not finite")
        self.known = classifier.calibration.verdict(logits).get("known", True)

    def over(self, heat: np.ndarray, side: int | None = None) -> Image.Image:
        """The image with `heat` [h, w] over it, at its own size or with its longer side at `side`."""
        image, box = (self.image, self.box) if side is None else fitted(self.image, self.box, side)
        return overlay(image, heat, box)


def heats(view: View, label: int) -> list[list[Captioned]]:
    """The image and every heat map that the model has; below them the heads of the last attention."""
    image = view.over(np.zeros([1, 1]), _SIDE)
    row: list[Captioned] = [("what the model sees", image)]
    for method in methods(view.model):
        of = label if method in OF_A_CLASS else None
        heat = heat_map(view.model, view.images, method, class_index=of)[0]
        row.append((method if heat.any() else f"{method}: nothing", view.over(heat, _SIDE)))
    if len(row) == 2:
        return [row]
    heads = class_attention(view.model, view.images)[0]
    pictures = tiles(heads, len(heads), _SMALL)
    return [row, _captioned(f"attention of the {len(heads)} heads of the last layer", pictures)]


def features(view: View) -> list[list[Captioned]]:
    """For every stage and resolution, the channels that vary most."""
    rows = []
    for name, maps in feature_maps(view.model, view.images).items():
        for x in maps:
            _, channels, height, width = x.shape
            caption = f"{name}: {min(channels, _CHANNELS)} of {channels} channels, {height} x {width}"
            rows.append(_captioned(caption, tiles(x[0], _CHANNELS, _SMALL)))
    return rows


def _captioned(caption: str, pictures: Sequence[Image.Image]) -> list[Captioned]:
    return [(caption, pictures[0]), *(("", picture) for picture in pictures[1:])]
