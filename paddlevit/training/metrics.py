"""Sums that stay on the device and are read, and reduced over processes, once."""

from __future__ import annotations

import math

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from paddlevit.runtime.process import all_reduce_sum, world_size


class EvalTotals:
    """Loss, top-1, top-5 and number of images over all batches of all processes, each image counted once."""

    def __init__(self) -> None:
        self._loss = paddle.zeros([1], dtype="float64")
        self._counts = paddle.zeros([3], dtype="int64")  # correct in the first 1, correct in the first 5, images

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits [N, K] and labels [N]."""
        logits = logits.astype("float32")
        loss = F.cross_entropy(logits, labels, reduction="none")
        _, best = paddle.topk(logits, min(5, logits.shape[1]))
        hits = (best == labels.unsqueeze(1)).astype("int64")
        self._loss += loss.astype("float64").sum()
        self._counts += paddle.stack([hits[:, 0].sum(), hits.sum(), paddle.full([], len(labels), dtype="int64")])

    def result(self) -> dict[str, float]:
        """{"loss", "acc1", "acc5", "num_images"}: the mean cross-entropy, and accuracies in percent."""
        loss = all_reduce_sum(self._loss).item()
        top1, top5, images = all_reduce_sum(self._counts).tolist()
        return {
            "loss": loss / images,
            "acc1": 100.0 * top1 / images,
            "acc5": 100.0 * top5 / images,
            "num_images": images,
        }


class StepLosses:
    """The losses of the steps since the last reading; adding one never waits for the device."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        """Note the loss of a step."""
        self._losses.append(loss.detach().astype("float32").reshape([1]))

    def read(self) -> tuple[float, list[int]]:
        """The mean of the finite losses of all processes, which read at the same time (NaN without any), and the steps,
        counted from the last reading, whose loss is not finite on this process. Forgets them.
        """
        mine = paddle.concat(self._losses)
        self._losses = []
        bad = [i for i, finite in enumerate(paddle.isfinite(mine).tolist()) if not finite]
        losses = all_reduce_sum(mine.clone()).numpy() / world_size()
        finite = losses[np.isfinite(losses)]
        return (float(finite.mean()) if len(finite) else math.nan), bad
