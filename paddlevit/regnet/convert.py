"""Names of RegNetY's parameters in other people's checkpoints (see `paddlevit.weights.convert.Table`).

The official teacher file of DeiT has timm's names. PaddleViT gives the last convolution of a block a bias, which the
model does not have: the BatchNorm after it absorbs the bias, (x + b) - mean = x - (mean - b).
"""

from __future__ import annotations

_TIMM = {
    "layout": "torch",
    "rules": (
        ("s{1}.b{1}.", "stages.{0}.blocks.{0}."),
        ("stem.conv.", "stem.0."),
        ("stem.bn.", "stem.1."),
        (".downsample.conv.", ".downsample.conv1x1."),
        (".conv{1}.bn.", ".bn{1}."),
        (".conv{1}.conv.", ".conv{1}."),
        (".se.fc{1}.", ".se.conv{1}_1x1."),
        ("head.fc.", "head.2."),
    ),
}

SOURCES = {
    "timm": _TIMM,
    "official": _TIMM,
    "hf": {
        "layout": "torch",
        "rules": (
            ("regnet.embedder.embedder.convolution.", "stem.0."),
            ("regnet.embedder.embedder.normalization.", "stem.1."),
            ("regnet.encoder.stages.{0}.layers.{0}.", "stages.{0}.blocks.{0}."),
            (".shortcut.convolution.", ".downsample.conv1x1."),
            (".shortcut.normalization.", ".downsample.bn."),
            (".layer.2.attention.0.", ".se.conv1_1x1."),
            (".layer.2.attention.2.", ".se.conv2_1x1."),
            (".layer.3.", ".layer.2."),
            (".layer.{0}.convolution.", ".conv{1}."),
            (".layer.{0}.normalization.", ".bn{1}."),
            ("classifier.1.", "head.2."),
        ),
    },
    "paddlevit": {"layout": "paddle", "subtracted": {".conv3.bias": ".bn3._mean"}},
}
