"""Names of PiT's parameters in other people's checkpoints (see `paddlevit.weights.convert.Table`)."""

from __future__ import annotations

SOURCES = {
    "official": {"layout": "torch"},
    # timm counts a pooling among the layers of the stage after it.
    "timm": {"layout": "torch", "rules": (("transformers.{1}.pool.", "pools.{0}."),)},
    "paddlevit": {"layout": "paddle"},
}
