"""RegNetY (Radosavovic et al., "Designing Network Design Spaces", CVPR 2020): the teacher of distilled PiT."""

from __future__ import annotations

from collections.abc import Sequence

import paddle.nn.functional as F
from paddle import Tensor, nn
from yacs.config import CfgNode

from paddlevit.errors import UserError
from paddlevit.layers import WideLinear, from_config, names_by_layer, zeros_
from paddlevit.paddle_internals import conv_options
from paddlevit.regnet.convert import SOURCES
from paddlevit.views import PIXELS, StageView, Window


def conv(in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2D:
    """A convolution without bias that keeps the map's size, or divides it by `stride`, rounding up."""
    return nn.Conv2D(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias_attr=False)


class SqueezeExcitation(nn.Layer):
    """Channel attention (Hu et al. 2018, section 3); [N, C, H, W] -> the same shape."""

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.conv1_1x1 = nn.Conv2D(channels, hidden_channels, 1)
        self.conv2_1x1 = nn.Conv2D(hidden_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv2_1x1(F.relu(self.conv1_1x1(F.adaptive_avg_pool2d(x, 1))))
        return x * F.sigmoid(gate)


class Block(nn.Layer):
    """The Y block: a residual bottleneck of ratio 1, group convolution and squeeze-excitation (figure 4, section 4).

    The hidden width of squeeze-excitation is `se_ratio` of the block's input width, not of its own.
    """

    recomputable = True  # TRAIN.RECOMPUTE

    def __init__(self, in_channels: int, width: int, *, stride: int, group_width: int, se_ratio: float) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, width)
        self.bn1 = nn.BatchNorm2D(width)
        self.conv2 = conv(width, width, 3, stride, groups=width // group_width)
        self.bn2 = nn.BatchNorm2D(width)
        self.se = SqueezeExcitation(width, round(in_channels * se_ratio))
        self.downsample = None
        if in_channels != width or stride != 1:
            shortcut = conv(in_channels, width, stride=stride)
            self.downsample = nn.Sequential(("conv1x1", shortcut), ("bn", nn.BatchNorm2D(width)))
        self.conv3 = conv(width, width)
        self.bn3 = nn.BatchNorm2D(width)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.se(F.relu(self.bn2(self.conv2(x))))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


def make_stage(in_channels: int, width: int, depth: int, *, group_width: int, se_ratio: float) -> nn.Sequential:
    """`depth` blocks, of which the first halves the map; [N, C, H, W] -> [N, width, H / 2, W / 2], rounded up."""
    shapes = [(in_channels, 2), *[(width, 1)] * (depth - 1)]
    blocks = [Block(before, width, stride=by, group_width=group_width, se_ratio=se_ratio) for before, by in shapes]
    return nn.Sequential(("blocks", nn.Sequential(*blocks)))


class RegNet(nn.Layer):
    """RegNetY: a stem, four stages, average pooling and a linear head (section 3.2); the defaults are RegNetY-16GF.

    Every width is a multiple of `group_width`, the channels of one group of the 3 x 3 convolutions. `num_classes` 0
    leaves the linear layer out. Raises UserError where the arguments do not fit together.
    """

    weight_sources: dict = SOURCES
    head_prefixes: tuple[str, ...] = ("head.2.",)
    no_weight_decay: tuple[str, ...] = ()

    def __init__(
        self,
        in_channels: int = 3,
        *,
        num_classes: int = 1000,
        widths: Sequence[int] = (224, 448, 1232, 3024),
        depths: Sequence[int] = (2, 4, 11, 1),
        group_width: int = 112,
        stem_width: int = 32,
        se_ratio: float = 0.25,
    ) -> None:
        super().__init__()
        if not widths or len(widths) != len(depths):
            raise UserError(
                "widths and depths must be lists of equal length, one entry per stage, got "
                f"{list(widths)} and {list(depths)}"
            )
        if any(width % group_width for width in widths):
            raise UserError(f"widths must be multiples of group_width {group_width}, got {list(widths)}")
        self.stem = nn.Sequential(conv(in_channels, stem_width, 3, stride=2), nn.BatchNorm2D(stem_width), nn.ReLU())
        self.stages = nn.Sequential(
            *(
                make_stage(in_width, width, depth, group_width=group_width, se_ratio=se_ratio)
                for in_width, width, depth in zip([stem_width, *widths], widths, depths)
            )
        )
        linear = WideLinear(widths[-1], num_classes) if num_classes > 0 else nn.Identity()
        self.head = nn.Sequential(nn.AdaptiveAvgPool2D(1), nn.Flatten(), linear)
        self.apply(_init)

    def forward_features(self, images: Tensor) -> Tensor:
        """What the linear layer sees: the mean over the last map [N, widths[-1]]."""
        pool, flatten, _ = self.head
        return flatten(pool(self.stages(self.stem(images))))

    def forward(self, images: Tensor) -> Tensor:
        return self.head[2](self.forward_features(images))

    def layer_groups(self) -> list[list[str]]:
        """Names of the parameters by layer: stem, blocks, head."""
        blocks = [[f"stages.{i}.blocks.{j}"] for i, stage in enumerate(self.stages) for j in range(len(stage.blocks))]
        return names_by_layer(self, [["stem"], *blocks, ["head"]])

    def views(self) -> list[StageView]:
        """Its stages."""
        halved = Window(kernel=3, stride=2, padding=1)
        views, grid = [], PIXELS.pooled(halved)
        for i, stage in enumerate(self.stages):
            grid = grid.pooled(halved)
            views.append(StageView(f"stage {i + 1}", stage, maps=lambda output: [output], grids=[grid]))
        return views


def _init(layer: nn.Layer) -> None:
    """Initialise for training from scratch: convolutions as in He et al. 2015, equation 14; blocks as the identity."""
    if isinstance(layer, nn.Conv2D):
        out_channels, _, height, width = layer.weight.shape
        *_, groups = conv_options(layer)
        fan_out = out_channels * height * width / groups
        nn.initializer.Normal(std=(2.0 / fan_out) ** 0.5)(layer.weight)
    elif isinstance(layer, nn.Linear):
        nn.initializer.Normal(std=0.01)(layer.weight)
    elif isinstance(layer, Block):
        zeros_(layer.bn3.weight)
    if isinstance(layer, (nn.Conv2D, nn.Linear)) and layer.bias is not None:
        zeros_(layer.bias)


def build_regnet(config: CfgNode) -> RegNet:
    """The RegNetY that `config` describes."""
    return from_config(RegNet, config)
