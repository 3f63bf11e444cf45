"""What a model looks at: attention, rollout, feature maps, and gradient-weighted class activation, as pictures.

Hooks watch a model only while one looks; two threads must not look into the same one at once. A family says in its
`views()` what there is to see (`paddlevit/views.py`).
"""

from __future__ import annotations

from paddlevit.attention_maps.heat import (
    attention_rollout,
    class_activation,
    class_attention,
    class_rollout,
    feature_maps,
    grad_cam,
    heat_map,
    methods,
)
from paddlevit.attention_maps.picture import overlay

__all__ = [
    "attention_rollout",
    "class_activation",
    "class_attention",
    "class_rollout",
    "feature_maps",
    "grad_cam",
    "heat_map",
    "methods",
    "overlay",
]
