"""What a network looks at: attention, rollout, feature maps, and gradient-weighted class activation, as pictures.

Networks are watched by hooks while they run, so a network that nobody looks into is as fast as ever; two threads must
not look into the same one at once. A family says in its `views()` what there is to see (`paddlevit/views.py`).
"""

from __future__ import annotations

from paddlevit.attention_maps.activation import feature_maps, grad_cam
from paddlevit.attention_maps.attention import attention_rollout, class_attention, class_rollout
from paddlevit.attention_maps.heat import class_activation, heat_map, methods
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
