"""PiT and HVT: two heads, scaling by configuration."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from golden import empty_network, golden_images, golden_state, info, reference, tolerance
from paddlevit import build_model
from paddlevit.config import get_config
from paddlevit.layers import DropPath
from paddlevit.weights import load_weights


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_golden_logits_of_both_heads_in_training(dtype):
    name, fmt = "pit_ti_distilled_224", "paddlevit"
    model = empty_network(name, dtype)
    load_weights(model, golden_state(name, fmt))
    model.train()
    for layer in model.sublayers():
        if isinstance(layer, DropPath):
            layer.rate = 0.0
    images = golden_images(0, info(name)["batch"], info(name)["image_size"]).astype(dtype)
    with paddle.no_grad():
        heads = model(paddle.to_tensor(images))
    for logits, key in zip(heads, ("train_cls_f64", "train_dist_f64")):
        limit = 2 * tolerance(name, fmt)[dtype]
        np.testing.assert_allclose(logits.numpy(), reference(name, fmt)[key], rtol=0, atol=limit)


def test_distilled_pit_returns_both_heads_in_training_and_their_mean_in_evaluation():
    model = build_model(get_config("pit_digits", ["MODEL.DISTILLED", True, "MODEL.DROPPATH", 0.0]))
    images = paddle.randn([2, 3, 32, 32])
    model.train()
    logits, distill_logits = model(images)
    model.eval()
    np.testing.assert_allclose(model(images).numpy(), ((logits + distill_logits) / 2).numpy(), atol=1e-6)
    assert model.forward_features(images).shape[1] == 2


def test_hvt_is_scaled_by_configuration_alone():
    opts = ["DATA.IMAGE_SIZE", 64, "MODEL.PATCH_SIZE", 8, "MODEL.EMBED_DIM", 40, "MODEL.NUM_HEADS", 5, "MODEL.DEPTH", 5]
    opts += ["MODEL.POOL_KERNEL_SIZE", 5, "MODEL.POOL_STRIDE", 3, "MODEL.POOL_BLOCK_WIDTH", 2]
    state = build_model(get_config("hvt_s1_patch16_224", opts)).state_dict()
    lengths = {key: value.shape[1] for key, value in state.items() if key.endswith("pos_embed")}
    assert lengths == {"pos_embed": 64, "layers.0.pos_embed": 20, "layers.2.pos_embed": 6, "layers.4.pos_embed": 1}


def test_hvt_with_one_pooling_has_it_before_all_twelve_blocks():
    model = get_config("hvt_ti_1_patch16_224").MODEL
    assert (model.POOL_BLOCK_WIDTH, model.DEPTH) == (12, 12)
