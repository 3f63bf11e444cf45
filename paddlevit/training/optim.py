"""The optimizer of a run, and its state: by parameter names, and sharded over the processes."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence
from typing import Any, Callable

import numpy as np
import paddle
import paddle.distributed as dist
from paddle import Tensor, nn
from yacs.config import CfgNode

from paddlevit.errors import UserError
from paddlevit.layers import learnable
from paddlevit.paddle_internals import (
    learning_rate_tensor,
    restored_state,
    stepped_parameters,
    use_running_statistics,
)
from paddlevit.runtime.process import is_main, rank, world_size

# What AdamW and Lamb keep for a parameter, and what SGD does.
_VELOCITY = "velocity_0"
_SLOTS = ("moment1_0", "moment2_0", "beta1_pow_acc_0", "beta2_pow_acc_0", _VELOCITY)
_MASTER = "master_weights"
_OF_MASTER = "fp32_master_0"  # ends the name of a float32 copy, from which Paddle makes those of its slots


def decay_split(model: nn.Layer, excluded: Sequence[str] | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Trainable parameters by name: those that weight decay shrinks, and those that it leaves alone.

    Left alone are tensors with one axis (norms and biases) and those whose last name component is in `excluded`; None
    stands for `model.no_weight_decay`, where the model has that.
    """
    if excluded is None:
        excluded = getattr(model, "no_weight_decay", ())
    decayed: dict[str, Tensor] = {}
    left: dict[str, Tensor] = {}
    for name, param in model.named_parameters():
        if not param.stop_gradient:
            alone = param.ndim < 2 or name.rsplit(".", 1)[-1] in excluded
            (left if alone else decayed)[name] = param
    return decayed, left


def freeze(model: nn.Layer, patterns: Sequence[str]) -> list[str]:
    """Freeze the parameters that `patterns` choose, and return their names.

    A pattern is one of file names (* ? [...]) for a parameter's whole name. One that begins with ! takes back what
    those before it have chosen: ["*", "!head*"] trains the head alone. A BatchNorm without trainable parameters uses
    its running statistics in training too, and leaves them as they are. Raises UserError where a pattern matches no
    parameter, and where nothing is left to train.
    """
    params = learnable(model)
    frozen: dict[str, bool] = dict.fromkeys(params, False)
    for pattern in patterns:
        fitting = [name for name in params if fnmatch.fnmatchcase(name, pattern.removeprefix("!"))]
        if not fitting:
            near = difflib.get_close_matches(pattern, params, n=3, cutoff=0.0)
            raise UserError(f"TRAIN.FREEZE: '{pattern}' matches no parameter; the nearest ones are {', '.join(near)}")
        frozen.update(dict.fromkeys(fitting, not pattern.startswith("!")))
    if all(frozen.values()):
        raise UserError(f"TRAIN.FREEZE {list(patterns)} leaves no parameter to train")
    chosen = [name for name in params if frozen[name]]
    for name in chosen:
        params[name].stop_gradient = True
    for layer in model.sublayers():
        if isinstance(layer, nn.BatchNorm2D) and layer.weight.stop_gradient and layer.bias.stop_gradient:
            use_running_statistics(layer)
    return chosen


def layer_rates(model: nn.Layer, decay: float) -> dict[str, float]:
    """Factor of the learning rate by parameter name: 1 at the head, times `decay` for every layer below it.

    Discriminative fine-tuning (Howard & Ruder 2018, section 3.2) as ELECTRA and BEiT have it: `decay` to the power of
    (last layer - layer), the layers being the groups of `model.layer_groups()`.
    """
    if decay == 1.0:
        return dict.fromkeys(learnable(model), 1.0)
    groups = model.layer_groups()
    return {name: decay ** (len(groups) - 1 - layer) for layer, group in enumerate(groups) for name in group}


def build_optimizer(
    config: CfgNode, model: nn.Layer, *, steps: Callable[[str], bool] = lambda name: True
) -> paddle.optimizer.Optimizer:
    """TRAIN.OPTIMIZER over the trainable parameters whose names `steps` accepts; call `set_lr` before every step.

    Weight decay is decoupled in AdamW (Loshchilov & Hutter 2019) and Lamb (You et al. 2020), and a part of the gradient
    in SGD. The decay filter goes by tensor names, with which Paddle asks it; structured names would never match.
    """
    how = config.TRAIN.OPTIMIZER
    if len(how.BETAS) != 2:
        raise UserError(f"TRAIN.OPTIMIZER.BETAS must be two numbers, got {how.BETAS}")
    rates = layer_rates(model, config.TRAIN.LAYER_DECAY)
    for name, param in learnable(model).items():
        # AdamW's lr_ratio refuses to run on a CPU; this factor reaches the update and the decay alike.
        param.optimize_attr = {"learning_rate": rates[name]}
    decay = config.TRAIN.WEIGHT_DECAY
    decayed, left = decay_split(model, config.TRAIN.NO_WEIGHT_DECAY)
    decayed_names = {param.name for param in decayed.values()}
    options: dict[str, Any] = {
        "learning_rate": config.TRAIN.BASE_LR,  # until the first step, which sets that of the schedule
        "parameters": [param for name, param in {**decayed, **left}.items() if steps(name)],
        "multi_precision": config.AMP and config.AMP_OPT_LEVEL == "O2",
    }
    if how.NAME == "SGD":
        for param in decayed.values():
            param.regularizer = paddle.regularizer.L2Decay(decay)
        return paddle.optimizer.Momentum(momentum=how.MOMENTUM, **options)
    options |= {"beta1": how.BETAS[0], "beta2": how.BETAS[1], "epsilon": how.EPS}
    if how.NAME == "Lamb":
        excluded = lambda param: param.name not in decayed_names  # noqa: E731
        return paddle.optimizer.Lamb(lamb_weight_decay=decay, exclude_from_weight_decay_fn=excluded, **options)
    return paddle.optimizer.AdamW(weight_decay=decay, apply_decay_param_fun=decayed_names.__contains__, **options)


def set_lr(optimizer: paddle.optimizer.Optimizer, lr: float, *, skip: Tensor) -> None:
    """Give the next step the learning rate `lr`, or 0 where `skip`, bool [1], is true, without waiting for the device.

    With learning rate 0 and gradients of 0 a step leaves every weight as it is. Paddle's own way of skipping reads
    `skip` on the host.
    """
    rate = learning_rate_tensor(optimizer)
    optimizer.set_lr(lr)
    rate.multiply_(paddle.logical_not(skip).astype(rate.dtype).reshape(rate.shape))


def optimizer_arrays(optimizer: paddle.optimizer.Optimizer, model: nn.Layer) -> dict[str, np.ndarray]:
    """What `optimizer` remembers, as '<parameter>/<slot>': array. Empty before its first step.

    Paddle keys it by Tensor.name, which depends on how many layers the process built before; parameter names do not.
    """
    state = {**restored_state(optimizer), **optimizer.state_dict()}
    state.pop("LR_Scheduler", None)
    masters = state.pop(_MASTER, {})
    arrays = {}
    for name, param in model.named_parameters():
        if param.name in masters:
            arrays[f"{name}/{_MASTER}"] = masters[param.name].numpy()
        for slot in _SLOTS:
            for key in (f"{param.name}_{slot}", f"{param.name}_{_OF_MASTER}_{slot}"):
                if key in state:
                    arrays[f"{name}/{slot}"] = state.pop(key).numpy()
    assert not state, f"not saved: {list(state)}"
    return arrays


def load_optimizer_arrays(
    optimizer: paddle.optimizer.Optimizer, model: nn.Layer, arrays: dict[str, np.ndarray]
) -> None:
    """Put back what `optimizer_arrays` returned, of the parameters that `optimizer` steps, in whatever precision.

    Raises UserError where `arrays` does not cover every trainable parameter, or is of SGD and `optimizer` is not.
    """
    trainable = {name: param for name, param in model.named_parameters() if not param.stop_gradient}
    differing = sorted({key.rsplit("/", 1)[0] for key in arrays} ^ set(trainable))
    if arrays and differing:
        raise UserError(
            f"the checkpoint's optimizer state is of another model, or another TRAIN.FREEZE: {len(differing)} "
            f"parameters differ, first {', '.join(differing[:3])}"
        )
    slots = {key.rsplit("/", 1)[1] for key in arrays} - {_MASTER}
    if slots and (_VELOCITY in slots) != isinstance(optimizer, paddle.optimizer.Momentum):
        raise UserError("the checkpoint's optimizer state is of another TRAIN.OPTIMIZER.NAME: resume with the same one")
    state: dict[str, Any] = {}
    stepped = {param.name for param in stepped_parameters(optimizer)}
    for key, array in arrays.items():
        name, slot = key.rsplit("/", 1)
        param, value = trainable[name], paddle.to_tensor(array)
        if param.name not in stepped:
            continue
        half = param.dtype in (paddle.float16, paddle.bfloat16)
        own = f"{param.name}_{_OF_MASTER}" if half else param.name
        if slot != _MASTER:
            state[f"{own}_{slot}"] = value
        elif half:
            value.name = own
            state.setdefault(_MASTER, {})[param.name] = value
        else:
            param.set_value(value)  # more exact than what was saved in half precision
    if state:
        optimizer.set_state_dict(state)


def owners(sizes: dict[str, int], processes: int) -> dict[str, int]:
    """Which process each parameter belongs to, given their sizes: the largest first, each to the least loaded."""
    loads = [0] * processes
    result = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        result[name] = loads.index(min(loads))
        loads[result[name]] += sizes[name]
    return result


class Shards:
    """Every process keeps the optimizer's state of its own `params` only, steps them, and sends them to the others.

    ZeRO stage 1 (Rajbhandari et al. 2020, section 5.1), over whole parameters: gradients are summed everywhere, as
    without it, and the numbers are the same. Without `params` nothing is sharded.
    """

    def __init__(self, params: dict[str, Tensor] | None = None) -> None:
        self._params = params or {}
        if self._params and len(self._params) < world_size():
            raise UserError(
                f"TRAIN.SHARD_OPTIMIZER: {len(self._params)} trainable tensors cannot be sharded over {world_size()} "
                "processes: set it to False"
            )
        self._owners = owners({name: param.size for name, param in self._params.items()}, world_size())

    def __bool__(self) -> bool:
        return bool(self._params)

    def steps(self, name: str) -> bool:
        """Whether this process steps the parameter."""
        return self._owners.get(name, rank()) == rank()

    def broadcast(self) -> None:
        """Send every parameter from its owner to the others."""
        for task in [dist.broadcast(self._params[name], src, sync_op=False) for name, src in self._owners.items()]:
            task.wait()

    def gather(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """The `arrays` of all processes, which call this together, on the main one; those of one process at a time."""
        if not self:
            return arrays
        merged: dict[str, Any] = {}
        for source in range(world_size()):
            box: list[Any] = [arrays if source == rank() else None]
            dist.broadcast_object_list(box, src=source)
            if is_main():
                merged.update(box[0])
        return merged
