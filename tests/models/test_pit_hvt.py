"""PiT and HVT: two heads, initialisation, drop-path schedules, scaling by configuration."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from paddlevit import build_model
from paddlevit.config import get_config
from paddlevit.layers import DropPath


def test_distilled_pit_returns_both_heads_in_training_and_their_mean_in_evaluation():
    model = build_model(get_config("pit_digits", ["MODEL.DISTILLED", True, "MODEL.DROPPATH", 0.0]))
    images = paddle.randn([2, 3, 32, 32])
    model.train()
    logits, distill_logits = model(images)
    model.eval()
    np.testing.assert_allclose(model(images).numpy(), ((logits + distill_logits) / 2).numpy(), atol=1e-6)
    assert model.forward_features(images).shape[1] == 2


def rates(model):
    return [module.rate for module in model.sublayers() if isinstance(module, DropPath)]


def test_drop_path_schedules_are_the_official_ones():
    pit = build_model(get_config("pit_ti_224"))
    assert rates(pit) == pytest.approx([0.1 * i / 12 for i in range(12)])
    hvt = build_model(get_config("hvt_ti_1_patch16_224"))
    assert rates(hvt) == pytest.approx([0.1 * i / 11 for i in range(12)])


def test_initialisation_of_pit_is_torchs_default():
    model = build_model(get_config("pit_s_224"))
    for layer in (model.transformers[1].blocks[0].mlp.fc1, model.pools[0].fc, model.head):
        bound = layer.weight.shape[0] ** -0.5
        assert layer.weight.numpy().std() == pytest.approx(bound / 3**0.5, rel=0.03)
        assert layer.bias.numpy().std() == pytest.approx(bound / 3**0.5, rel=0.15)
    for conv in (model.patch_embed.conv, model.pools[0].conv):
        bound = float(np.prod(conv.weight.shape[1:])) ** -0.5
        assert conv.weight.numpy().std() == pytest.approx(bound / 3**0.5, rel=0.06)
        assert np.abs(conv.bias.numpy()).max() > 0
    assert model.pos_embed.numpy().std() == pytest.approx(0.02, rel=0.03)
    assert model.cls_token.numpy().std() == pytest.approx(0.02, rel=0.3)


def test_initialisation_of_hvt_is_truncated_normal():
    model = build_model(get_config("hvt_s1_patch16_224"))
    for layer in (model.layers[0].attn.qkv, model.layers[5].mlp.fc2, model.head):
        assert layer.weight.numpy().std() == pytest.approx(0.02, rel=0.03)
        assert not layer.bias.numpy().any()
    conv = model.patch_embed.proj
    assert conv.weight.numpy().std() == pytest.approx((3 * 16 * 16 * 3) ** -0.5, rel=0.03)
    assert model.layers[0].pos_embed.numpy().std() == pytest.approx(0.02, rel=0.05)


def test_hvt_is_scaled_by_configuration_alone():
    opts = ["DATA.IMAGE_SIZE", 64, "MODEL.PATCH_SIZE", 8, "MODEL.EMBED_DIM", 40, "MODEL.NUM_HEADS", 5, "MODEL.DEPTH", 5]
    opts += ["MODEL.POOL_KERNEL_SIZE", 5, "MODEL.POOL_STRIDE", 3, "MODEL.POOL_BLOCK_WIDTH", 2]
    state = build_model(get_config("hvt_s1_patch16_224", opts)).state_dict()
    lengths = {key: value.shape[1] for key, value in state.items() if key.endswith("pos_embed")}
    assert lengths == {"pos_embed": 64, "layers.0.pos_embed": 20, "layers.2.pos_embed": 6, "layers.4.pos_embed": 1}
