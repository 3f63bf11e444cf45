"""HRFormer: High-Resolution Transformer for Dense Prediction."""

from paddlevit.hrformer.model import HRFormer, build_hrformer

__all__ = ["HRFormer", "build_hrformer"]
