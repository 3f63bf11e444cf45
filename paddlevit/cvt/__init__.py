"""CvT: Convolutional vision Transformer."""

from __future__ import annotations

from paddlevit.cvt.model import CvT, build_cvt

__all__ = ["CvT", "build_cvt"]
