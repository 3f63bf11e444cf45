"""HVT: hierarchical Vision Transformer."""

from paddlevit.hvt.model import HVT, build_hvt

__all__ = ["HVT", "build_hvt"]
