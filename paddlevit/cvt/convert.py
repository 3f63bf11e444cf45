"""Names of CvT's parameters in other people's checkpoints (`paddlevit/hvt/convert.py` explains the tables).

Files of `transformers` have the same names whether they need the official QuickGELU, as all published ones do, or the
erf GELU that `transformers` itself computes and trains with: `MODEL.ACT` says which.
"""

from __future__ import annotations

_HF_ATTENTION = r"\.attention\.attention\."

SOURCES = {
    "official": {
        "layout": "torch",
        "rules": (
            (r"^stage(\d+)\.", r"stages.\1."),
            (r"\.(conv_proj_[qkv])\.conv\.", r".\1.0."),
            (r"\.(conv_proj_[qkv])\.bn\.", r".\1.1."),
        ),
    },
    "hf": {
        "layout": "torch",
        "notes": (
            "names of Hugging Face: microsoft/cvt-* need MODEL.ACT quickgelu (the default), a CvT that was trained in "
            "transformers needs MODEL.ACT gelu",
        ),
        "rules": (
            (r"^(?:cvt\.)?encoder\.", ""),
            (r"\.embedding\.convolution_embeddings\.projection\.", ".patch_embed.proj."),
            (r"\.embedding\.convolution_embeddings\.normalization\.", ".patch_embed.norm."),
            (r"^(stages\.\d+)\.layers\.", r"\1.blocks."),
            (
                _HF_ATTENTION + r"convolution_projection_([qkv])[a-z]+\.convolution_projection\.convolution\.",
                r".attn.conv_proj_\1.0.",
            ),
            (
                _HF_ATTENTION + r"convolution_projection_([qkv])[a-z]+\.convolution_projection\.normalization\.",
                r".attn.conv_proj_\1.1.",
            ),
            (_HF_ATTENTION + r"projection_([qkv])[a-z]+\.", r".attn.proj_\1."),
            (r"\.attention\.output\.dense\.", ".attn.proj."),
            (r"\.intermediate\.dense\.", ".mlp.fc1."),
            (r"\.output\.dense\.", ".mlp.fc2."),
            (r"\.layernorm_before\.", ".norm1."),
            (r"\.layernorm_after\.", ".norm2."),
            (r"^layernorm\.", "norm."),
            (r"^classifier\.", "head."),
        ),
    },
    "paddlevit": {"layout": "paddle", "rules": ()},
}
