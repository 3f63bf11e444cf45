"""Sums that stay on the device and are read, and reduced over processes, once."""

from typing import Dict

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from paddlevit.runtime import all_reduce_sum


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

    def result(self) -> Dict[str, float]:
        """{"loss", "acc1", "acc5", "num_images"}: the mean cross-entropy, and accuracies in percent."""
        loss = all_reduce_sum(self._loss).item()
        top1, top5, images = all_reduce_sum(self._counts).tolist()
        return {
            "loss": loss / images,
            "acc1": 100.0 * top1 / images,
            "acc5": 100.0 * top5 / images,
            "num_images": images,
        }


class RunningMean:
    """Mean of a scalar over all processes since the last reading; adding to it never waits for the device."""

    def __init__(self) -> None:
        self._sum: Tensor = paddle.zeros([], dtype="float32")
        self._count = 0

    def add(self, value: Tensor) -> None:
        self._sum = self._sum + value.detach().astype("float32")
        self._count += 1

    def read(self) -> float:
        """The mean of what was added, by all processes, which have to read at the same time; starts anew."""
        total, count = all_reduce_sum(paddle.stack([self._sum, paddle.full([], self._count)])).tolist()
        self.__init__()
        return total / max(count, 1)
