"""Names of RegNetY's parameters in other people's checkpoints (`paddlevit/hvt/convert.py` explains the tables).

The official teacher file of DeiT has timm's names. PaddleViT gives the last convolution of a block a bias, which the
model does not have: the BatchNorm after it absorbs the bias, (x + b) - mean = x - (mean - b). `subtracted` names
such arrays and what they are subtracted from.
"""

from __future__ import annotations

SOURCES = {
    "timm": {
        "layout": "torch",
        "rules": (
            (
                r"^s(\d+)\.b(\d+)\.",
                lambda match: f"stages.{int(match[1]) - 1}.blocks.{int(match[2]) - 1}.",
            ),
            (r"^stem\.conv\.", "stem.0."),
            (r"^stem\.bn\.", "stem.1."),
            (r"\.downsample\.conv\.", ".downsample.conv1x1."),
            (r"\.conv(\d)\.conv\.", r".conv\1."),
            (r"\.conv(\d)\.bn\.", r".bn\1."),
            (r"\.se\.fc(\d)\.", r".se.conv\1_1x1."),
            (r"^head\.fc\.", "head.2."),
        ),
    },
    "paddlevit": {
        "layout": "paddle",
        "rules": (),
        "subtracted": ((r"\.conv3\.bias$", ".bn3._mean"),),
    },
}
