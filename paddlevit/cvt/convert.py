"""Names of CvT's parameters in other people's checkpoints (see `paddlevit.weights.convert.Table`).

Files of `transformers` have the same names whether they need the official QuickGELU, as all published ones do, or the
erf GELU that `transformers` itself computes and trains with: `MODEL.ACT` says which.
"""

from __future__ import annotations

_ATTENTION = ".attention.attention."
_CONVOLUTION = "convolution_projection.convolution"
_NORMALIZATION = "convolution_projection.normalization"

SOURCES = {
    "official": {
        "layout": "torch",
        "rules": (
            ("stage{0}.", "stages.{0}."),
            *(
                (f".conv_proj_{letter}.{part}.", f".conv_proj_{letter}.{number}.")
                for letter in "qkv"
                for part, number in (("conv", 0), ("bn", 1))
            ),
        ),
    },
    "hf": {
        "layout": "torch",
        "notes": (
            "names of Hugging Face: microsoft/cvt-* need MODEL.ACT quickgelu (the default), a CvT that was trained in "
            "transformers needs MODEL.ACT gelu, which is what transformers computes with any weights",
        ),
        "rules": (
            ("encoder.stages.", "stages."),  # of a model without a head
            ("cvt.encoder.stages.", "stages."),
            (".layers.", ".blocks."),
            (".embedding.convolution_embeddings.projection.", ".patch_embed.proj."),
            (".embedding.convolution_embeddings.normalization.", ".patch_embed.norm."),
            *(
                rule
                for word in ("query", "key", "value")
                for rule in (
                    (f"{_ATTENTION}convolution_projection_{word}.{_CONVOLUTION}.", f".attn.conv_proj_{word[0]}.0."),
                    (f"{_ATTENTION}convolution_projection_{word}.{_NORMALIZATION}.", f".attn.conv_proj_{word[0]}.1."),
                    (f"{_ATTENTION}projection_{word}.", f".attn.proj_{word[0]}."),
                )
            ),
            (".attention.output.dense.", ".attn.proj."),
            (".intermediate.dense.", ".mlp.fc1."),
            (".output.dense.", ".mlp.fc2."),
            (".layernorm_before.", ".norm1."),
            (".layernorm_after.", ".norm2."),
            ("layernorm.", "norm."),
            ("classifier.", "head."),
        ),
    },
    "paddlevit": {"layout": "paddle"},
}
