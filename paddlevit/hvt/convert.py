"""Names of HVT's parameters in other people's checkpoints, in tables as `paddlevit.weights.convert.Table` has them."""

from __future__ import annotations

SOURCES = {
    "official": {"layout": "torch", "rules": (("blocks.", "layers."),)},
    "paddlevit": {"layout": "paddle"},
}
