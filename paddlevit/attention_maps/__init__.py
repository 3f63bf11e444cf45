"""What a model looks at: attention, rollout, feature maps, and gradient-weighted class activation, as pictures.

Hooks watch a model only while one looks; two threads must not look into the same one at once. A family says in its
`views()` what there is to see (`paddlevit/views.py`).
"""

from __future__ import annotations

from paddlevit.attention_maps.heat import attention_rollout as attention_rollout
from paddlevit.attention_maps.heat import class_activation as class_activation
from paddlevit.attention_maps.heat import class_attention as class_attention
from paddlevit.attention_maps.heat import class_rollout as class_rollout
from paddlevit.attention_maps.heat import feature_maps as feature_maps
from paddlevit.attention_maps.heat import grad_cam as grad_cam
from paddlevit.attention_maps.heat import heat_map as heat_map
from paddlevit.attention_maps.heat import methods as methods
from paddlevit.attention_maps.picture import overlay as overlay
