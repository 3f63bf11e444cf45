"""What the package uses of Paddle without a public name, and why. No other module does (tests/test_house.py).

Tried with PaddlePaddle 3.0.0, 3.1.1, 3.2.2 and 3.3.1 for CPUs by run_scripts/test_paddle_version.sh; not with others.
"""

from __future__ import annotations

from typing import Any

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


def conv_options(layer: nn.Conv2D) -> tuple[Any, Any, Any, int]:
    """Stride, padding, dilation and groups, as F.conv2d takes them; nn.Conv2D has no public names for them."""
    return layer._stride, layer._padding, layer._dilation, layer._groups


def has_hooks(layer: nn.Layer) -> bool:
    """Whether forward hooks want what `layer` is given or returns; they can be registered, but not asked for."""
    return bool(layer._forward_pre_hooks or layer._forward_post_hooks)


def running_statistics(norm: nn.BatchNorm2D) -> tuple[Tensor, Tensor]:
    """Mean and variance themselves; public ways (state_dict, buffers) to them search the layer."""
    return norm._mean, norm._variance


def momentum(norm: nn.BatchNorm2D) -> float:
    """What the constructor was given."""
    return norm._momentum


def epsilon(norm: nn.BatchNorm2D) -> float:
    """What the constructor was given."""
    return norm._epsilon


def set_momentum(norm: nn.BatchNorm2D, value: float) -> None:
    """The constructor's `momentum`, for which there is no setter."""
    norm._momentum = value


def uses_running_statistics(norm: nn.BatchNorm2D) -> bool:
    """Whether `norm` normalises by them in training too, and leaves them as they are."""
    return bool(norm._use_global_stats)


def use_running_statistics(norm: nn.BatchNorm2D) -> None:
    """The constructor's `use_global_stats`, for which there is no setter."""
    norm._use_global_stats = True


def squared_norm(gradient: Tensor) -> Tensor:
    """Sum of squares, [1]. paddle.nn.utils.clip_grad_norm_ takes roots and needs five times as long on a CPU."""
    return _C_ops.squared_l2_norm(gradient).reshape([1])


def unscale_(
    gradients: list[Tensor], scale: Tensor, finite_steps: Tensor, overflows: Tensor, *, double_after: int, dynamic: bool
) -> Tensor:
    """Divide `gradients` by `scale`, or zero them where one is not finite; whether one is not, bool [1].

    Where `dynamic`, halve `scale` after such a step, and double it after `double_after` others in a row; `finite_steps`
    and `overflows`, int32 [1], count in a row. paddle.amp.GradScaler has it, but makes the host wait for the device in
    every step and does nothing on a CPU.
    """
    overflow = _C_ops.check_finite_and_unscale_(gradients, scale)[1]
    halve_after, double, halve = 1, 2.0, 0.5
    _C_ops.update_loss_scaling_(
        gradients, overflow, scale, finite_steps, overflows, double_after, halve_after, double, halve, not dynamic
    )
    return overflow


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
