"""Gradients between backward and the optimizer's step: unscaled, and kept finite, all of it on the device."""

from __future__ import annotations

import paddle
from paddle import Tensor

from paddlevit.paddle_internals import squared_norm, unscale_

_INITIAL_SCALE = 2.0**16
_GROWTH_INTERVAL = 2000  # steps in a row with finite gradients after which the scale doubles


@paddle.no_grad()
def clip(gradients: list[Tensor], limit: float) -> None:
    """Scale the gradients so that their norm, one over all of them, is at most `limit` (Pascanu et al. 2013, 3.2)."""
    norm = paddle.add_n([squared_norm(gradient) for gradient in gradients]).sqrt()
    factor = paddle.clip(limit / (norm + 1e-6), max=1.0)
    for gradient in gradients:
        gradient.multiply_(factor.astype(gradient.dtype))


class LossScale:
    """Scales the loss so that float16 gradients do not vanish, and keeps those that are not finite from the weights.

    Dynamic (Micikevicius et al. 2018, section 3.2): the scale halves where a gradient is not finite and doubles after
    2,000 steps in a row where all are. Otherwise it is 1. paddle.amp.GradScaler does the same, but makes the host wait
    for the device in every step, and does nothing on a CPU.
    """

    def __init__(self, *, dynamic: bool = False) -> None:
        self.dynamic = dynamic
        self._scale = paddle.full([1], _INITIAL_SCALE if dynamic else 1.0, dtype=paddle.get_default_dtype())
        self._finite_steps = paddle.zeros([1], dtype="int32")  # in a row
        self._overflows = paddle.zeros([1], dtype="int32")  # in a row; the operator wants it
        self._skipped = paddle.zeros([3], dtype="int32")  # in a row at scale 1, now and at most; in all

    def scaled(self, loss: Tensor) -> Tensor:
        """`loss` times the scale. A loss that is not finite makes every gradient so, on whatever process it arises."""
        factor = self._scale.reshape(loss.shape).astype(loss.dtype) + (loss - loss).detach()
        return loss * factor

    @paddle.no_grad()
    def unscale(self, gradients: list[Tensor]) -> Tensor:
        """Divide the gradients by the scale; where any of them is not finite, make all zero and return True, bool [1].

        The gradients are of the scale's type and, where several processes train, already summed: all come to the same
        end without asking each other.
        """
        state = (self._scale, self._finite_steps, self._overflows)
        skip = unscale_(gradients, *state, double_after=_GROWTH_INTERVAL, dynamic=self.dynamic)
        skipped = skip.astype("int32")
        # Overflows are expected while a dynamic scale comes down; only those at scale 1 count.
        row = (self._skipped[0:1] + 1) * skipped * (self._scale <= 1.0).astype("int32")
        self._skipped = paddle.concat([row, paddle.maximum(self._skipped[1:2], row), self._skipped[2:3] + skipped])
        return skip

    def read_skipped(self) -> dict[str, int]:
        """Steps since this was last asked whose gradients were not finite: "total", and "in_a_row" at most with a scale
        of 1, of which some may have come before. Waits for the device.
        """
        row, longest, total = self._skipped.tolist()
        self._skipped = paddle.to_tensor([row, row, 0], dtype="int32")
        return {"total": total, "in_a_row": longest}

    def state(self) -> dict[str, float]:
        """What a resumed run needs: "scale" and "finite_steps"; empty where the scale is fixed."""
        return {"scale": self._scale.item(), "finite_steps": self._finite_steps.item()} if self.dynamic else {}

    def load_state(self, state: dict[str, float]) -> None:
        """Put back what `state` returned; without effect where the scale is fixed, or was."""
        if self.dynamic and state:
            self._scale = paddle.full_like(self._scale, state["scale"])
            self._finite_steps = paddle.full_like(self._finite_steps, state["finite_steps"])
