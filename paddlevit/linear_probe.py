"""A linear classifier on features, and which labels it doubts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Callable

import numpy as np

_STEPS = 500
_ROWS = 4096  # of which the logits are in memory at a time
_PENALTY = 10.0  # of the sum of the losses: scikit-learn's C = 0.1; better than 1 on 5 to 100 images a class

# A label is doubted where it gets less than this share of what its class gets on average, and another class at least
# that one's share. Recall and precision on digits with wrong labels are in docs/data.md.
_LITTLE, _MUCH = 0.1, 0.5


def logistic_regression(
    features: np.ndarray, labels: np.ndarray, num_classes: int, *, on_step: Callable[[], None] = lambda: None
) -> tuple[np.ndarray, np.ndarray]:
    """Weights [D, K] and biases [K] of multinomial logistic regression on standardised features [N, D].

    Minimised by accelerated gradient descent (Nesterov 1983), with the largest step that is safe; `on_step` is called
    after each. Takes as much memory as the features and, whatever N is, a few times what the weights do.
    """
    mean, std = features.mean(axis=0), features.std(axis=0) + 1e-6
    x = np.ones([len(features), features.shape[1] + 1], "float32")
    np.divide(np.subtract(features, mean, out=x[:, :-1]), std, out=x[:, :-1])
    penalty = np.full([x.shape[1], 1], _PENALTY / len(x), "float32")
    penalty[-1] = 0  # of the biases
    step = len(x) / (0.5 * np.linalg.norm(x.T @ x, 2) + _PENALTY)
    weights = before = np.zeros([x.shape[1], num_classes], "float32")
    for i in range(_STEPS):
        ahead = weights + i / (i + 3) * (weights - before)
        gradient = penalty * ahead
        for rows in (slice(first, first + _ROWS) for first in range(0, len(x), _ROWS)):
            residuals = _softmax(x[rows] @ ahead)
            residuals[np.arange(len(residuals)), labels[rows]] -= 1
            gradient += x[rows].T @ residuals / len(x)
        before, weights = weights, ahead - step * gradient
        on_step()
    scaled = weights[:-1] / std[:, None]
    return scaled.astype("float32"), (weights[-1] - mean @ scaled).astype("float32")


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def out_of_fold(features: np.ndarray, labels: np.ndarray, folds: np.ndarray, num_classes: int) -> Iterable[np.ndarray]:
    """Fold after fold, the probabilities [n, K] of its images by a classifier that is fitted to all others."""
    for fold in range(folds.max() + 1):
        weight, bias = logistic_regression(features[folds != fold], labels[folds != fold], num_classes)
        yield _softmax(features[folds == fold] @ weight + bias)


def doubted(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which labels are likely wrong, the worst first, and the likely class of each, both int64 [M].

    Confident learning (Northcutt, Jiang and Chuang 2021, section 3.1) with other thresholds: each class has its own,
    from the mean of its probability [N, K] over the images with its label.
    """
    rows = np.arange(len(labels))
    own = probabilities[rows, labels]
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    usual = np.bincount(labels, own, len(counts)) / np.maximum(counts, 1)
    others = np.where((probabilities >= _MUCH * usual) & (counts > 0), probabilities, 0)
    others[rows, labels] = 0
    likely = others.argmax(axis=1)
    found = np.flatnonzero((others[rows, likely] > 0) & (own < _LITTLE * usual[labels]))
    found = found[np.argsort((own / np.maximum(others[rows, likely], 1e-9))[found], kind="stable")]
    return found, likely[found]
