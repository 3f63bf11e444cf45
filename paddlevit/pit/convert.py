"""Names of PiT's parameters in other people's checkpoints (`paddlevit/hvt/convert.py` explains the tables)."""

from __future__ import annotations

SOURCES = {
    "official": {"layout": "torch", "rules": ()},
    # timm counts a pooling among the layers of the stage after it.
    "timm": {
        "layout": "torch",
        "rules": ((r"^transformers\.(\d+)\.pool\.", lambda match: f"pools.{int(match[1]) - 1}."),),
    },
    "paddlevit": {"layout": "paddle", "rules": ()},
}
