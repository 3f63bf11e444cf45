"""Optimizer and learning rate of a run."""

import math
from typing import Callable, Dict, Iterator, Optional, Sequence, Tuple

import numpy as np
import paddle
from paddle import Tensor, nn
from yacs.config import CfgNode

from paddlevit.errors import UserError


def decay_split(model: nn.Layer, excluded: Sequence[str]) -> Tuple[Dict[str, Tensor], Dict[str, Tensor]]:
    """Trainable parameters by name: those that weight decay shrinks, and those that it leaves alone.

    Left alone are tensors with one axis (norms and biases) and those whose last name component is in `excluded`.
    """
    decayed: Dict[str, Tensor] = {}
    left: Dict[str, Tensor] = {}
    for name, param in model.named_parameters():
        if not param.stop_gradient:
            alone = param.ndim < 2 or name.rsplit(".", 1)[-1] in excluded
            (left if alone else decayed)[name] = param
    return decayed, left


def scaled_lr(lr: float, images_per_step: int, reference: Optional[int]) -> float:
    """`lr`, stated for `reference` images per optimizer step, at `images_per_step` (Goyal et al. 2017, 2.1)."""
    return lr if reference is None else lr * images_per_step / reference


def lr_schedule(
    *, peak: float, start: float, end: float, warmup_epochs: float, num_epochs: int
) -> Callable[[float], float]:
    """lr_at(epoch): linear from `start` to `peak` over the warm-up, then half a cosine to `end`.

    The cosine counts from epoch 0, not from the end of the warm-up, as in the official recipes (Loshchilov & Hutter
    2017, equation 5, with one period of `num_epochs`).
    """
    if not 0 <= warmup_epochs <= num_epochs:
        raise UserError(
            f"TRAIN.WARMUP_EPOCHS is {warmup_epochs}, allowed: 0 to TRAIN.NUM_EPOCHS, which is {num_epochs}"
        )

    def lr_at(epoch: float) -> float:
        if epoch < warmup_epochs:
            return start + (peak - start) * epoch / warmup_epochs
        return end + (peak - end) * 0.5 * (1.0 + math.cos(math.pi * min(epoch / num_epochs, 1.0)))

    return lr_at


def build_lr_schedule(config: CfgNode, images_per_step: int) -> Callable[[float], float]:
    """lr_at(epoch) of `config`; the epoch is a fraction, of which a schedule by epochs uses the whole part."""
    train = config.TRAIN

    def scaled(lr: float) -> float:
        return scaled_lr(lr, images_per_step, train.LINEAR_SCALED_LR)

    schedule = lr_schedule(
        peak=scaled(train.BASE_LR),
        start=scaled(train.WARMUP_START_LR) if train.SCALE_ALL_LRS else train.WARMUP_START_LR,
        end=scaled(train.END_LR) if train.SCALE_ALL_LRS else train.END_LR,
        warmup_epochs=train.WARMUP_EPOCHS,
        num_epochs=train.NUM_EPOCHS,
    )
    if train.LR_SCHEDULE == "iteration":
        return schedule
    delay = 1 if train.LR_SCHEDULE == "previous_epoch" else 0
    return lambda epoch: schedule(float(max(math.floor(epoch) - delay, 0)))


def build_optimizer(config: CfgNode, model: nn.Layer) -> paddle.optimizer.Optimizer:
    """AdamW over the trainable parameters of `model`; its learning rate is set before every step.

    One parameter group: Paddle clips the gradient norm of every group on its own. The decay filter goes by tensor
    names, which is what Paddle asks it with; structured names would never match.
    """
    betas = config.TRAIN.OPTIMIZER.BETAS
    if len(betas) != 2:
        raise UserError(f"TRAIN.OPTIMIZER.BETAS is {betas}, allowed: two numbers")
    decayed, left = decay_split(model, config.TRAIN.NO_WEIGHT_DECAY)
    decayed_names = {param.name for param in decayed.values()}
    clip = config.TRAIN.GRAD_CLIP
    return paddle.optimizer.AdamW(
        learning_rate=config.TRAIN.BASE_LR,
        beta1=betas[0],
        beta2=betas[1],
        epsilon=config.TRAIN.OPTIMIZER.EPS,
        parameters=[*decayed.values(), *left.values()],
        weight_decay=config.TRAIN.WEIGHT_DECAY,
        apply_decay_param_fun=decayed_names.__contains__,
        grad_clip=None if clip is None else nn.ClipGradByGlobalNorm(clip),
        multi_precision=config.AMP and config.AMP_OPT_LEVEL == "O2",
    )


def optimizer_arrays(optimizer: paddle.optimizer.Optimizer, model: nn.Layer) -> Dict[str, np.ndarray]:
    """What `optimizer` remembers, as '<parameter>/<slot>': array. Empty before its first step.

    Paddle keys it by Tensor.name, which depends on how many layers the process built before; parameter names do not.
    """
    names = {param.name: name for name, param in model.named_parameters()}
    return {f"{names[tensor_name]}/{slot}": value.numpy() for tensor_name, slot, value in _slots(optimizer, set(names))}


def load_optimizer_arrays(
    optimizer: paddle.optimizer.Optimizer, model: nn.Layer, arrays: Dict[str, np.ndarray]
) -> None:
    """Put back what `optimizer_arrays` returned; UserError where it does not cover every trainable parameter."""
    slots: Dict[str, Dict[str, np.ndarray]] = {}
    for key, value in arrays.items():
        name, slot = key.rsplit("/", 1)
        slots.setdefault(name, {})[slot] = value
    trainable = {name: param for name, param in model.named_parameters() if not param.stop_gradient}
    if arrays and set(slots) != set(trainable):
        differing = sorted(set(slots) ^ set(trainable))
        raise UserError(
            f"the checkpoint's optimizer state is of another network: {len(differing)} parameters differ, "
            f"first {', '.join(differing[:3])}"
        )
    state: Dict[str, object] = {}
    for name, values in slots.items():
        for slot, value in values.items():
            if slot == _MASTER:
                state.setdefault(_MASTER, {})[trainable[name].name] = paddle.to_tensor(value)
            else:
                state[f"{trainable[name].name}_{slot}"] = paddle.to_tensor(value)
    if state:
        optimizer.set_state_dict(state)


_MASTER = "master_weights"


def _slots(optimizer: paddle.optimizer.Optimizer, tensor_names: set) -> Iterator[Tuple[str, str, Tensor]]:
    for key, value in optimizer.state_dict().items():
        if key == _MASTER:
            yield from ((tensor_name, _MASTER, master) for tensor_name, master in value.items())
        elif key != "LR_Scheduler":
            tensor_name = _owner(key, tensor_names)
            yield tensor_name, key[len(tensor_name) + 1 :], value


def _owner(key: str, tensor_names: set) -> str:
    """The longest tensor name that `key`, '<tensor name>_<slot>', begins with."""
    end = key.rfind("_")
    while key[:end] not in tensor_names:
        end = key.rindex("_", 0, end)
    return key[:end]
