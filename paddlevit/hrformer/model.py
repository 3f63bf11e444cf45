"""HRFormer (Yuan et al., "HRFormer: High-Resolution Transformer for Dense Prediction", NeurIPS 2021).

The branches, their exchange and the classification head are those of HRNet (Wang et al., "Deep High-Resolution
Representation Learning for Visual Recognition", TPAMI 2020). Parameter names are the official ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from yacs.config import CfgNode

from paddlevit.errors import UserError
from paddlevit.hrformer.block import Block
from paddlevit.hrformer.convert import SOURCES
from paddlevit.layers import Conv2D, WideLinear, drop_path_rates, init_like_torch, names_by_layer
from paddlevit.views import PIXELS, StageView, Window

STEM_CHANNELS = 64
EXPANSION = 4  # of a bottleneck: it gives this many times the channels of its 3 x 3 convolution
HEAD_CHANNELS = (32, 64, 128, 256)
FEATURES = 2048
_LISTS = ("NUM_BLOCKS", "NUM_CHANNELS", "NUM_HEADS", "NUM_WINDOW_SIZES", "NUM_MLP_RATIOS")  # as in StageSpec


class StageSpec(NamedTuple):
    """A stage of transformer blocks. Sequences have one entry per branch, from the highest resolution to the lowest."""

    num_modules: int
    num_blocks: Sequence[int]
    num_channels: Sequence[int]
    num_heads: Sequence[int]
    window_sizes: Sequence[int]
    mlp_ratios: Sequence[float]

    @property
    def depth(self) -> int:
        """Blocks on the longest path through the stage."""
        return self.num_modules * max(self.num_blocks)


def conv_bn(in_channels: int, channels: int, *, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Layer]:
    """Convolution without bias and batch normalisation."""
    conv = Conv2D(in_channels, channels, kernel, stride, padding=kernel // 2, groups=groups, bias_attr=False)
    return [conv, nn.BatchNorm2D(channels)]


class Bottleneck(nn.Layer):
    """Bottleneck (He et al. 2016, figure 5) of layer1 and of the head; [N, C, H, W] -> [N, 4 channels, H, W].

    `depthwise` makes its 3 x 3 convolution one per channel, as in HRFormer's head.
    """

    def __init__(self, in_channels: int, channels: int, *, depthwise: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(in_channels, channels)
        self.conv2, self.bn2 = conv_bn(channels, channels, kernel=3, groups=channels if depthwise else 1)
        self.conv3, self.bn3 = conv_bn(channels, channels * EXPANSION)
        self.downsample = None
        if in_channels != channels * EXPANSION:
            self.downsample = nn.Sequential(*conv_bn(in_channels, channels * EXPANSION))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class Upsample(nn.Layer):
    """Nearest-neighbour upsampling; [N, C, H, W] -> [N, C, scale H, scale W]."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        # By size: exporters cannot read the scale that nn.Upsample(scale_factor=...) writes into a program.
        return F.interpolate(x, [side * self.scale for side in x.shape[2:]], mode="nearest")


def fuse_down(in_channels: int, channels: int, steps: int) -> nn.Sequential:
    """From a branch `steps` resolutions higher: a strided depthwise and a pointwise convolution per step."""
    layers = []
    for step in range(1, steps + 1):
        out_channels = channels if step == steps else in_channels
        layer = [
            *conv_bn(in_channels, in_channels, kernel=3, stride=2, groups=in_channels),
            *conv_bn(in_channels, out_channels),
        ]
        layers.append(nn.Sequential(*layer, *([nn.ReLU()] if step < steps else [])))
    return nn.Sequential(*layers)


def fuse_layer(source: int, target: int, channels: Sequence[int]) -> nn.Layer:
    """The way from branch `source` to branch `target` (Wang et al. 2020, section 3.2)."""
    if source == target:
        return nn.Identity()
    if source < target:
        return fuse_down(channels[source], channels[target], target - source)
    # From a lower resolution first the channels, then upsampling.
    return nn.Sequential(*conv_bn(channels[source], channels[target]), Upsample(2 ** (source - target)))


def interpolation(size: int, new_size: int) -> np.ndarray:
    """Weights [new_size, size] of linear interpolation with aligned corners."""
    places = np.linspace(0, size - 1, new_size)
    return np.maximum(0.0, 1.0 - np.abs(places[:, None] - np.arange(size)))


def resize(x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear interpolation with aligned corners; [N, C, H, W] -> [N, C, height, width].

    In float64 too: F.interpolate rounds its scales to float32, which is off by 1e-6.
    """
    rows = paddle.to_tensor(interpolation(x.shape[2], height), dtype=x.dtype)
    columns = paddle.to_tensor(interpolation(x.shape[3], width).T, dtype=x.dtype)
    return rows @ x @ columns


class Module(nn.Layer):
    """Blocks on every branch, then each branch becomes the sum of all; list of maps -> list of maps, same shapes.

    Block n of every branch has the stochastic-depth rate `rates[n]`.
    """

    def __init__(self, spec: StageSpec, rates: Sequence[float]) -> None:
        super().__init__()
        per_branch = zip(spec.num_blocks, spec.num_channels, spec.num_heads, spec.window_sizes, spec.mlp_ratios)
        self.branches = nn.LayerList(
            nn.Sequential(
                *(Block(dim, heads, window=window, mlp_ratio=ratio, drop_path=rate) for rate in rates[:blocks])
            )
            for blocks, dim, heads, window, ratio in per_branch
        )
        branches = range(len(spec.num_channels))
        self.fuse_layers = nn.LayerList(
            nn.LayerList(fuse_layer(source, target, spec.num_channels) for source in branches) for target in branches
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [branch(x) for branch, x in zip(self.branches, maps)]
        return [self._fused(target, maps) for target in range(len(maps))]

    def _fused(self, target: int, maps: list[Tensor]) -> Tensor:
        total, size = maps[target], maps[target].shape[2:]
        for source, x in enumerate(maps):
            if source == target:
                continue
            x = self.fuse_layers[target][source](x)
            # A map of odd size, halved and doubled, is one place too large; the official code resizes it.
            if x.shape[2:] != size:
                x = resize(x, *size)
            total = total + x
        return F.relu(total)


def make_stage(spec: StageSpec, rates: Iterator[float]) -> nn.Sequential:
    """The modules of a stage; takes `spec.depth` stochastic-depth rates."""
    depth = max(spec.num_blocks)
    return nn.Sequential(*(Module(spec, list(islice(rates, depth))) for _ in range(spec.num_modules)))


class Transition(nn.LayerList):
    """Before a stage: keeps the branches, changes their channels where they differ, and adds one of half the size."""

    def __init__(self, before: Sequence[int], channels: Sequence[int]) -> None:
        layers = [
            nn.Identity() if old == new else nn.Sequential(*conv_bn(old, new, kernel=3), nn.ReLU())
            for old, new in zip(before, channels)
        ]
        down = nn.Sequential(*conv_bn(before[-1], channels[-1], kernel=3, stride=2), nn.ReLU())
        super().__init__([*layers, nn.Sequential(down)])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return [layer(x) for layer, x in zip(self, [*maps, maps[-1]])]


def downsampling(in_channels: int, channels: int) -> nn.Sequential:
    """Step of the head to the next resolution, its convolutions with bias; [N, in, H, W] -> [N, channels, H/2, W/2]."""
    return nn.Sequential(
        Conv2D(in_channels, in_channels, 3, stride=2, padding=1, groups=in_channels),
        nn.BatchNorm2D(in_channels),
        Conv2D(in_channels, channels, 1),
        nn.BatchNorm2D(channels),
        nn.ReLU(),
    )


class HRFormer(nn.Layer):
    """HRFormer for classification (section 3, table 1; the head is that of HRNet's classification model).

    `stages` are the second to the fourth, with two, three and four branches; the first is `num_bottlenecks` bottlenecks
    of `bottleneck_channels`. Stochastic depth grows linearly from 0 to `drop_path` over the blocks of a branch. The
    weights fit images of any size; `num_classes` 0 leaves the head out.
    """

    weight_sources: dict = SOURCES
    head_prefixes: tuple[str, ...] = ("classifier.",)
    no_weight_decay: tuple[str, ...] = ()  # optimizer.py:46-62: the tables of relative positions decay

    def __init__(
        self,
        in_channels: int = 3,
        *,
        num_classes: int = 1000,
        num_bottlenecks: int = 2,
        bottleneck_channels: int = 64,
        stages: tuple[StageSpec, StageSpec, StageSpec],
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        second, third, fourth = stages
        width = bottleneck_channels * EXPANSION
        rates = iter(drop_path_rates(drop_path, sum(stage.depth for stage in stages)))
        self.conv1, self.bn1 = conv_bn(in_channels, STEM_CHANNELS, kernel=3, stride=2)
        self.conv2, self.bn2 = conv_bn(STEM_CHANNELS, STEM_CHANNELS, kernel=3, stride=2)
        self.layer1 = nn.Sequential(
            *(Bottleneck(width if i else STEM_CHANNELS, bottleneck_channels) for i in range(num_bottlenecks))
        )
        self.transition1 = Transition([width], second.num_channels)
        self.stage2 = make_stage(second, rates)
        self.transition2 = Transition(second.num_channels, third.num_channels)
        self.stage3 = make_stage(third, rates)
        self.transition3 = Transition(third.num_channels, fourth.num_channels)
        self.stage4 = make_stage(fourth, rates)
        self.incre_modules = nn.LayerList(
            nn.Sequential(Bottleneck(dim, channels, depthwise=True))
            for dim, channels in zip(fourth.num_channels, HEAD_CHANNELS)
        )
        widths = [channels * EXPANSION for channels in HEAD_CHANNELS]
        self.downsamp_modules = nn.LayerList(downsampling(old, new) for old, new in zip(widths[:-1], widths[1:]))
        self.final_layer = nn.Sequential(Conv2D(widths[-1], FEATURES, 1), nn.BatchNorm2D(FEATURES), nn.ReLU())
        self.classifier = WideLinear(FEATURES, num_classes) if num_classes else nn.Identity()
        self.apply(init_like_torch)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Maps of the four branches, [N, C_i, H / s, W / s] with s = 4, 8, 16, 32 (rounded up), for dense tasks."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.relu(self.bn2(self.conv2(x)))
        maps = self.stage2(self.transition1([self.layer1(x)]))
        maps = self.stage3(self.transition2(maps))
        return self.stage4(self.transition3(maps))

    def forward_features(self, images: Tensor) -> Tensor:
        """What the head sees: the four maps summed at the lowest resolution and averaged over it, [N, 2048]."""
        first, *others = [widen(x) for widen, x in zip(self.incre_modules, self.feature_maps(images))]
        for downsample, x in zip(self.downsamp_modules, others):
            first = x + downsample(first)
        return self.final_layer(first).mean(axis=[2, 3])

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.forward_features(images))

    def layer_groups(self) -> list[list[str]]:
        """Names of the parameters by layer: stem, blocks, head.

        Blocks of parallel branches share a layer; what stands between blocks belongs to those after it, or to the head.
        """
        layers = [["conv1", "bn1", "conv2", "bn2"], *([f"layer1.{i}"] for i in range(len(self.layer1)))]
        between: list[str] = []
        for stage in (2, 3, 4):
            between.append(f"transition{stage - 1}")
            for i, module in enumerate(getattr(self, f"stage{stage}")):
                for j in range(max(len(branch) for branch in module.branches)):
                    branches = range(len(module.branches))
                    layers.append([*between, *(f"stage{stage}.{i}.branches.{branch}.{j}" for branch in branches)])
                    between = []
                between = [f"stage{stage}.{i}.fuse_layers"]
        head = ["incre_modules", "downsamp_modules", "final_layer", "classifier"]
        return names_by_layer(self, [*layers, [*between, *head]])

    def views(self) -> list[StageView]:
        """Its stages, with one to four resolutions. Attention is local, in windows, and has no view."""
        halved = Window(kernel=3, stride=2, padding=1)
        grids = [PIXELS.pooled(halved).pooled(halved)]
        views = [StageView("stage 1", self.layer1, maps=lambda output: [output], grids=grids)]
        for i, stage in enumerate((self.stage2, self.stage3, self.stage4)):
            grids = [*grids, grids[-1].pooled(halved)]
            views.append(StageView(f"stage {i + 2}", stage, maps=list, grids=grids))
        return views


def build_hrformer(config: CfgNode) -> HRFormer:
    """The HRFormer that `config` describes; UserError where the entries of a stage do not fit together."""
    hrt = config.MODEL.HRT
    first = hrt.STAGE1
    for key, expected in (("BLOCK", "BOTTLENECK"), ("NUM_MODULES", 1), ("NUM_BRANCHES", 1)):
        _check(first[key] == expected, f"STAGE1.{key}", first[key], expected)
    for key in ("NUM_BLOCKS", "NUM_CHANNELS"):
        _check(len(first[key]) == 1 and first[key][0] > 0, f"STAGE1.{key}", first[key], "one positive number")
    return HRFormer(
        config.DATA.IMAGE_CHANNELS,
        num_classes=config.MODEL.NUM_CLASSES,
        num_bottlenecks=first.NUM_BLOCKS[0],
        bottleneck_channels=first.NUM_CHANNELS[0],
        stages=(_stage(hrt, 2), _stage(hrt, 3), _stage(hrt, 4)),
        drop_path=hrt.DROP_PATH_RATE,
    )


def _stage(hrt: CfgNode, number: int) -> StageSpec:
    name, section = f"STAGE{number}", hrt[f"STAGE{number}"]
    for key, expected in (("BLOCK", "TRANSFORMER_BLOCK"), ("NUM_BRANCHES", number)):
        _check(section[key] == expected, f"{name}.{key}", section[key], expected)
    _check(section.NUM_MODULES > 0, f"{name}.NUM_MODULES", section.NUM_MODULES, "at least 1")
    for key in _LISTS:
        fits = len(section[key]) == number and min(section[key]) > 0
        _check(fits, f"{name}.{key}", section[key], f"{number} positive numbers, one per branch")
    for dim, heads in zip(section.NUM_CHANNELS, section.NUM_HEADS):
        _check(dim % heads == 0, f"{name}.NUM_CHANNELS", dim, f"a multiple of its NUM_HEADS {heads}")
    for key, kind in (("ATTN_TYPES", "isa_local"), ("FFN_TYPES", "conv_mlp")):
        words = set(re.findall(r"\w+", str(section[key])))  # of nested lists
        _check(words <= {kind}, f"{name}.{key}", section[key], f"{kind} everywhere, or []")
    return StageSpec(section.NUM_MODULES, *(section[key] for key in _LISTS))


def _check(fits: bool, key: str, value: Any, allowed: Any) -> None:
    if not fits:
        raise UserError(f"MODEL.HRT.{key} must be {allowed}, got {value}")
