"""CvT: Convolutional vision Transformer."""

from paddlevit.cvt.model import CvT, build_cvt

__all__ = ["CvT", "build_cvt"]
