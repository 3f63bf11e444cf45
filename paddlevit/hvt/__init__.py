"""HVT: hierarchical Vision Transformer."""

from __future__ import annotations

from paddlevit.hvt.model import HVT, build_hvt

__all__ = ["HVT", "build_hvt"]
