"""Names of HVT's parameters in other people's checkpoints.

A source's table is plain data, read by `paddlevit.weights`: `layout` (torch keeps linear weights as [out, in], paddle
as [in, out]) and `rules`, regular expressions and their replacements that lead to our names.
"""

from __future__ import annotations

SOURCES = {
    "official": {"layout": "torch", "rules": ((r"^blocks\.", "layers."),)},
    "paddlevit": {"layout": "paddle", "rules": ()},
}
