"""A linear classifier on features, and which labels it doubts."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

_STEPS = 500
_PENALTY = 10.0  # of the sum of the losses: scikit-learn's C = 0.1; better than 1 on 5 to 100 images a class

# A label is doubted where it gets less than this share of what its class gets on average, and another class at least
# that one's share. Recall and precision on digits with wrong labels are in docs/data.md.
_LITTLE, _MUCH = 0.1, 0.5


def logistic_regression(features: np.ndarray, labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights [D, K] and biases [K] of multinomial logistic regression on standardised features.

    Minimised by accelerated gradient descent (Nesterov 1983), with the largest step that is safe.
    """
    mean, std = features.mean(axis=0), features.std(axis=0) + 1e-6
    x = np.concatenate([(features - mean) / std, np.ones([len(features), 1], "float32")], axis=1)
    targets = np.eye(num_classes, dtype="float32")[labels]
    penalty = np.full([x.shape[1], 1], _PENALTY / len(x), "float32")
    penalty[-1] = 0  # of the biases
    step = len(x) / (0.5 * np.linalg.norm(x, 2) ** 2 + _PENALTY)
    weights = before = np.zeros([x.shape[1], num_classes], "float32")
    for i in range(_STEPS):
        ahead = weights + i / (i + 3) * (weights - before)
        logits = x @ ahead
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        gradient = x.T @ (powers / powers.sum(axis=1, keepdims=True) - targets) / len(x) + penalty * ahead
        before, weights = weights, ahead - step * gradient
    scaled = weights[:-1] / std[:, None]
    return scaled.astype("float32"), (weights[-1] - mean @ scaled).astype("float32")


def out_of_fold(features: np.ndarray, labels: np.ndarray, folds: np.ndarray, num_classes: int) -> Iterable[np.ndarray]:
    """Fold after fold, the probabilities [n, K] of its images by a classifier that is fitted to all others."""
    for fold in range(folds.max() + 1):
        weight, bias = logistic_regression(features[folds != fold], labels[folds != fold], num_classes)
        logits = features[folds == fold] @ weight + bias
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        yield powers / powers.sum(axis=1, keepdims=True)


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
