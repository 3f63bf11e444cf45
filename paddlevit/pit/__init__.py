"""PiT: pooling-based Vision Transformer."""

from __future__ import annotations

from paddlevit.pit.model import PiT, build_pit

__all__ = ["PiT", "build_pit"]
