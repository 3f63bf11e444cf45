"""What training minimises: objective(model, images, targets) -> (loss, logits)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from paddlevit.errors import UserError

Objective = Callable[[Callable, Tensor, Tensor], tuple[Tensor, Tensor]]
Statistics = tuple[Sequence[float], Sequence[float]]


def soft_cross_entropy(logits: Tensor, targets: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Mean over the batch of -sum_k w_k targets_k log softmax(logits)_k; logits and targets [N, K], weights w [K]."""
    if class_weights is not None:
        targets = targets * class_weights
    if logits.dtype in (paddle.float16, paddle.bfloat16):
        logits = logits.astype("float32")
    return -(targets.astype(logits.dtype) * F.log_softmax(logits, axis=-1)).sum(axis=-1).mean()


def binary_cross_entropy(logits: Tensor, targets: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Mean over batch and classes of the binary cross-entropy of each class, weighted by `class_weights` [K]."""
    losses = F.binary_cross_entropy_with_logits(logits.astype("float32"), targets.astype("float32"), reduction="none")
    return losses.mean() if class_weights is None else (losses * class_weights).mean()


def _two_heads(output: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Class and distillation logits; a model with one head gives the same for both."""
    logits, distill_logits = output if isinstance(output, (tuple, list)) else (output, output)
    return logits, distill_logits


class Supervised:
    """`loss` with the targets, classes weighted by `class_weights` [K]; of two heads the mean."""

    def __init__(self, class_weights: Tensor | None = None, loss: Callable[..., Tensor] = soft_cross_entropy) -> None:
        self.class_weights = class_weights
        self.loss = loss

    def __call__(self, model: Callable, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits, distill_logits = _two_heads(model(images))
        loss = self.loss(logits, targets, self.class_weights)
        if distill_logits is not logits:
            loss = (loss + self.loss(distill_logits, targets, self.class_weights)) / 2
        return loss, logits


class Renormalized(nn.Layer):
    """`model`, trained on images normalised by `own` (mean, std), for images normalised by `given`.

    Each pair holds one number per channel, for pixels between 0 and 1.
    """

    def __init__(self, model: nn.Layer, *, given: Statistics, own: Statistics) -> None:
        super().__init__()
        self.model = model
        (mean, std), (own_mean, own_std) = (paddle.to_tensor(pair).reshape([2, 1, -1, 1, 1]) for pair in (given, own))
        self.register_buffer("scale", std / own_std, persistable=False)
        self.register_buffer("shift", (mean - own_mean) / own_std, persistable=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images * self.scale + self.shift)


class Restricted(nn.Layer):
    """`model`, which may only choose among `classes`, int64 [C]: the other logits are minus infinity."""

    def __init__(self, model: nn.Layer, classes: np.ndarray, num_classes: int) -> None:
        super().__init__()
        self.model = model
        others = np.full([num_classes], -np.inf, "float32")
        others[classes] = 0.0
        self.register_buffer("others", paddle.to_tensor(others), persistable=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).astype("float32") + self.others


class Distilled:
    """Cross-entropy with the targets and, on the distillation head, with a teacher (Touvron et al. 2021, section 4).

    Soft (equation 2): (1 - alpha) CE(y) + alpha tau^2 KL(teacher / tau || student / tau), the divergence being the mean
    over the batch of the sum over the classes. Hard (equation 3): (1 - alpha) CE(y) + alpha CE(argmax teacher). The
    teacher sees the same, mixed, images, in evaluation mode and without gradients. `class_weights` [K] are of CE(y).
    """

    def __init__(
        self, teacher: nn.Layer, *, kind: str, alpha: float = 0.5, tau: float = 1.0, class_weights: Tensor | None = None
    ) -> None:
        if not 0.0 <= alpha <= 1.0:
            raise UserError(f"alpha must be between 0 and 1, got {alpha}")
        if tau <= 0.0:
            raise UserError(f"tau must be above 0, got {tau}")
        self.teacher = teacher
        self.teacher.eval()
        for param in teacher.parameters():
            param.stop_gradient = True
        self.kind = kind
        self.alpha = alpha
        self.tau = tau
        self.class_weights = class_weights

    def __call__(self, model: Callable, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with paddle.no_grad():
            teacher_logits = self.teacher(images).astype("float32")
        logits, distill_logits = _two_heads(model(images))
        base = soft_cross_entropy(logits, targets, self.class_weights)
        if self.kind == "hard":
            distillation = F.cross_entropy(distill_logits.astype("float32"), teacher_logits.argmax(axis=-1))
        else:
            log_student = F.log_softmax(distill_logits.astype("float32") / self.tau, axis=-1)
            log_teacher = F.log_softmax(teacher_logits / self.tau, axis=-1)
            distillation = (log_teacher.exp() * (log_teacher - log_student)).sum(axis=-1).mean() * self.tau**2
        return (1 - self.alpha) * base + self.alpha * distillation, logits
