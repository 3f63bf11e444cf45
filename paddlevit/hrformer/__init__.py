"""HRFormer: High-Resolution Transformer for Dense Prediction."""

from __future__ import annotations

from paddlevit.hrformer.model import HRFormer, build_hrformer

__all__ = ["HRFormer", "build_hrformer"]
