"""Names of HVT's parameters in other people's checkpoints.

A source's table is plain data that `paddlevit.weights` reads in both directions: `layout` (torch keeps linear weights
as [out, in], paddle as [in, out]) and `rules`, pairs of their words and ours (see `paddlevit.weights.convert.Table`).
"""

from __future__ import annotations

SOURCES = {
    "official": {"layout": "torch", "rules": (("blocks.", "layers."),)},
    "paddlevit": {"layout": "paddle"},
}
