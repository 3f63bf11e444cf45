"""PiT: pooling-based Vision Transformer."""

from paddlevit.pit.model import PiT, build_pit

__all__ = ["PiT", "build_pit"]
