"""Temperature scaling, and rejection of unknown images by energy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

CALIBRATION_FILE = "calibration.json"

_ACCEPTED = 0.95  # of the validation images
_BINS = 15  # as in Guo et al. 2017
_WIDEST = math.log(100)  # of the logarithm of the temperature, to both sides
_HALVINGS = 24


class Calibration(NamedTuple):
    """What `calibrate` has found on `num_images` images; without any, softmax, and every image is of some class."""

    temperature: float = 1.0
    max_energy: float = math.inf  # of an image that is of one of the classes
    ece_before: float = math.nan  # expected calibration error in percent, at temperature 1
    ece_after: float = math.nan
    num_images: int = 0

    @classmethod
    def of(cls, values: Mapping[str, Any] | None) -> Calibration:
        """What a file has under these names, if anything. Raises TypeError or ValueError."""
        if values is None:
            return cls()
        found = cls(**values)
        if not (found.temperature > 0 and all(map(math.isfinite, found))):
            raise ValueError("a temperature is above 0, and all numbers are finite")
        return found

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Softmax of the logits by the temperature, over the last axis; NaN where they are not finite."""
        with np.errstate(invalid="ignore"):
            powers = np.exp((logits - logits.max(axis=-1, keepdims=True)) / self.temperature)
            return powers / powers.sum(axis=-1, keepdims=True)

    def verdict(self, logits: np.ndarray) -> dict[str, Any]:
        """{"known": whether an image of these logits [K] is of one of the classes, "energy"}; {} if not calibrated."""
        if not self.num_images:
            return {}
        found = float(energy(logits))
        return {"known": found <= self.max_energy, "energy": round(found, 6)}


def energy(logits: np.ndarray) -> np.ndarray:
    """-log sum_k exp(logits_k), over the last axis: high for images unlike the training ones (Liu et al. 2020)."""
    largest = logits.max(axis=-1, keepdims=True)
    return -(largest + np.log(np.exp(logits - largest).sum(axis=-1, keepdims=True)))[..., 0]


def calibrate(logits: np.ndarray, labels: np.ndarray) -> Calibration:
    """Temperature, and the energy that 95 % do not exceed, of images with logits [N, K]; those not finite are left out.

    They must not be training images, or the model would appear overconfident. The temperature stays 1 where the fitted
    one makes the calibration error larger: a few images that are surely wrong can decide the loss alone.
    """
    finite = np.isfinite(logits).all(axis=1)
    logits, labels = logits[finite], labels[finite]
    if not len(labels):
        return Calibration()
    right = logits.argmax(axis=1) == labels
    fitted = Calibration(fit_temperature(logits, labels))
    before, after = (reliability(each.probabilities(logits).max(axis=1), right)[0] for each in (Calibration(), fitted))
    temperature = fitted.temperature if after < before else 1.0
    last = math.ceil(_ACCEPTED * len(labels)) - 1
    between = np.sort(energy(logits))[last : last + 2]  # two images, of neither of which rounding may decide
    return Calibration(temperature, float(between.mean()), before, min(before, after), len(labels))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T that minimises the sum of -log softmax(logits / T) of the labels (Guo et al. 2017, section 4.2).

    The sum is convex in b = 1 / T, and the root of its slope is found by halving. To it comes b - log b, as of an image
    that speaks for T = 1: where all images are right, the sum alone has no minimum.
    """
    logits = logits - logits.max(axis=1, keepdims=True)
    own = logits[np.arange(len(labels)), labels].sum(dtype="float64")
    low, high = -_WIDEST, _WIDEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        powers = math.exp(middle) * logits
        np.exp(powers, out=powers)  # there may be millions
        means = np.einsum("nk,nk->n", powers, logits) / powers.sum(axis=1)
        slope = means.sum(dtype="float64") - own + 1 - math.exp(-middle)
        low, high = (low, middle) if slope > 0 else (middle, high)
    return math.exp(-(low + high) / 2)


def reliability(confidence: np.ndarray, right: np.ndarray) -> tuple[float, list[tuple[float, float]]]:
    """The expected calibration error, and (mean confidence, accuracy) of the bins that have images, all in percent.

    `confidence` [N] is the probability of the predicted class, and `right` [N] whether it is the image's (Guo et al.
    2017, section 2).
    """
    bins = np.minimum((confidence * _BINS).astype("int64"), _BINS - 1)
    counts, sure, hits = (np.bincount(bins, each, _BINS) for each in (np.ones(len(bins)), confidence, right))
    some = counts > 0
    points = zip((100 * sure[some] / counts[some]).tolist(), (100 * hits[some] / counts[some]).tolist())
    return 100 * float(np.abs(sure - hits).sum()) / len(bins), list(points)
