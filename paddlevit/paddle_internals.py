"""What the package uses of Paddle without a public name, and why. No other module does (tests/test_house.py).

Tried with PaddlePaddle 3.0.0, 3.1.1, 3.2.2 and 3.3.1 for CPUs by run_scripts/test_paddle_version.sh; not with others.
"""

from __future__ import annotations

from typing import NamedTuple

import paddle
from paddle import Tensor, _C_ops, nn
from paddle.optimizer import Optimizer

from paddlevit.errors import UserError

_OPERATORS = ("squared_l2_norm", "check_finite_and_unscale_", "update_loss_scaling_")
_OF_A_CONVOLUTION = ("_stride", "_padding", "_dilation", "_groups")
_OF_A_BATCH_NORM = ("_mean", "_variance", "_momentum", "_epsilon", "_use_global_stats")
_OF_A_LAYER = ("_forward_pre_hooks", "_forward_post_hooks")
_OF_AN_OPTIMIZER = (
    "_create_global_learning_rate",
    "_global_learning_rate",
    "_master_weights",
    "_parameter_list",
    "_accumulators_holder",
)


def check() -> None:
    """Raise UserError where this Paddle lacks one of the names: at the start, not in the middle. Takes 1 ms."""
    constant = paddle.ParamAttr(initializer=nn.initializer.Constant(0.0))  # draws no random numbers
    with paddle.utils.unique_name.guard():  # and no tensor made later gets another name
        norm, conv = nn.BatchNorm2D(1), nn.Conv2D(1, 1, 1, weight_attr=constant, bias_attr=False)
        optimizer = paddle.optimizer.AdamW(parameters=norm.parameters())
    needed = (
        (_C_ops, _OPERATORS),
        (paddle.base.core, ("set_num_threads",)),
        (conv, _OF_A_CONVOLUTION),
        (norm, _OF_A_BATCH_NORM + _OF_A_LAYER),
        (optimizer, _OF_AN_OPTIMIZER),
    )
    missing = [name for owner, names in needed for name in names if not hasattr(owner, name)]
    if missing:
        raise UserError(
            f"PaddlePaddle {paddle.__version__} lacks {', '.join(missing)}, which paddlevit uses; it was tried "
            "with 3.0.0, 3.1.1, 3.2.2 and 3.3.1"
        )


def set_cpu_threads(count: int) -> None:
    """Compute with `count` threads in this process; paddle.inference sets another number without asking."""
    paddle.base.core.set_num_threads(count)


class ConvOptions(NamedTuple):
    """How nn.Conv2D was made, in the order in which F.conv2d takes it; nn.Conv2D has no public names for it."""

    stride: int | list[int]
    padding: int | list[int]
    dilation: int | list[int]
    groups: int


def conv_options(layer: nn.Conv2D) -> ConvOptions:
    return ConvOptions(layer._stride, layer._padding, layer._dilation, layer._groups)


def has_hooks(layer: nn.Layer) -> bool:
    """Whether forward hooks want what `layer` is given or returns; they can be registered, but not asked for."""
    return bool(layer._forward_pre_hooks or layer._forward_post_hooks)


def running_statistics(norm: nn.BatchNorm2D) -> tuple[Tensor, Tensor]:
    """Mean and variance themselves; public ways (state_dict, buffers) to them search the layer."""
    return norm._mean, norm._variance


def momentum_and_epsilon(norm: nn.BatchNorm2D) -> tuple[float, float]:
    """What the constructor was given."""
    return norm._momentum, norm._epsilon


def set_momentum(norm: nn.BatchNorm2D, momentum: float) -> None:
    """The constructor's `momentum`, for which there is no setter."""
    norm._momentum = momentum


def uses_running_statistics(norm: nn.BatchNorm2D) -> bool:
    """Whether `norm` normalises by them in training too, and leaves them as they are."""
    return bool(norm._use_global_stats)


def use_running_statistics(norm: nn.BatchNorm2D) -> None:
    """The constructor's `use_global_stats`, for which there is no setter."""
    norm._use_global_stats = True


def squared_norm(gradient: Tensor) -> Tensor:
    """Sum of squares, [1]. paddle.nn.utils.clip_grad_norm_ takes roots and needs five times as long on a CPU."""
    return _C_ops.squared_l2_norm(gradient).reshape([1])


def unscale_(gradients: list[Tensor], scale: Tensor) -> Tensor:
    """Divide `gradients` by `scale`; whether one of them is not finite, bool [1].

    paddle.amp.GradScaler has it, but makes the host wait for the device in every step and does nothing on a CPU.
    """
    return _C_ops.check_finite_and_unscale_(gradients, scale)[1]


def update_loss_scale_(
    gradients: list[Tensor],
    overflow: Tensor,
    scale: Tensor,
    *,
    finite_steps: Tensor,
    overflows: Tensor,
    growth_interval: int,
    dynamic: bool,
) -> None:
    """Zero `gradients` where `overflow`, bool [1], is true; halve or, after `growth_interval` steps, double `scale`.

    `finite_steps` and `overflows`, int32 [1], count in a row. Unless `dynamic`, the scale stays. As for `unscale_`, the
    public GradScaler waits for the device.
    """
    after, grow, shrink = 1, 2.0, 0.5  # overflows after which the scale becomes smaller
    _C_ops.update_loss_scaling_(
        gradients, overflow, scale, finite_steps, overflows, growth_interval, after, grow, shrink, not dynamic
    )


def learning_rate_tensor(optimizer: Optimizer) -> Tensor:
    """The tensor on the device that the next step takes its learning rate from; `set_lr` fills it from the host."""
    optimizer._create_global_learning_rate()
    return optimizer._global_learning_rate()


def master_weights(optimizer: Optimizer) -> dict[str, Tensor]:
    """What `optimizer` steps in float32 in place of parameters in half precision, by Tensor.name. No public name."""
    return optimizer._master_weights


def stepped_parameters(optimizer: Optimizer) -> list[Tensor]:
    """The parameters that `optimizer` was made for. No public name."""
    return optimizer._parameter_list


def restored_state(optimizer: Optimizer) -> dict[str, Tensor]:
    """What set_state_dict has put back; `state_dict` does not have it before the next step."""
    return optimizer._accumulators_holder
