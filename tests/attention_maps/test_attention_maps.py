"""What is shown of a network: shares sum to one, maps turn with the image, lie over their pixels, and find objects."""

from __future__ import annotations

import itertools

import numpy as np
import paddle
import pytest
from PIL import Image

from paddlevit import build_model
from paddlevit.attention_maps import (
    attention_rollout,
    class_activation,
    class_attention,
    class_rollout,
    feature_maps,
    grad_cam,
    heat_map,
    methods,
    overlay,
)
from paddlevit.attention_maps.heat import on_pixels
from paddlevit.attention_maps.picture import colored, fitted
from paddlevit.config import get_config
from paddlevit.errors import UserError
from paddlevit.views import Grid

# Sizes at which every strided convolution has as much to the left of its middles as to the right.
WINDOWS = {
    "MODEL.HRT.STAGE2.NUM_WINDOW_SIZES": [3, 5],
    "MODEL.HRT.STAGE3.NUM_WINDOW_SIZES": [3, 5, 3],
    "MODEL.HRT.STAGE4.NUM_WINDOW_SIZES": [3, 5, 3, 2],
}
SYMMETRIC = {
    "pit_digits": {"DATA.IMAGE_SIZE": 36},
    "pit_distilled_digits": {"DATA.IMAGE_SIZE": 36},
    "cvt_digits": {"DATA.IMAGE_SIZE": 35},
    "hvt_digits": {"DATA.IMAGE_SIZE": 36, "MODEL.POOL_BLOCK_WIDTH": 0},
    "hrformer_digits": {"DATA.IMAGE_SIZE": 33, **WINDOWS},
    "regnet_digits": {"DATA.IMAGE_SIZE": 33},
}
HEATS = [
    (name, method)
    for name in SYMMETRIC
    for method in (
        ["grad-cam"] if name in ("hrformer_digits", "regnet_digits") else ["grad-cam", "attention", "rollout"]
    )
]


def fresh(name, **keys):
    paddle.seed(1)
    model = build_model(get_config(name, [word for pair in keys.items() for word in pair]))
    model.eval()
    return model


def network(name, **keys):
    """A network of `name` with weights that make its attention uneven, in evaluation."""
    model = fresh(name, **keys)
    for param_name, param in model.named_parameters():
        if "qkv" in param_name or "proj_q" in param_name or "q_proj" in param_name:
            param.set_value(param * 6)
        elif param_name.endswith(("_mean", "pos_embed", "bias")) or "bn3.weight" in param_name:
            param.set_value(param + 0.1 * paddle.randn(param.shape))
    return model


def symmetric(name, axes=(3,), **keys):
    """The same with weights that do not change when they are flipped along `axes` of [.., .., H, W]."""
    model = network(name, **{**SYMMETRIC[name], **keys})
    for param_name, param in model.named_parameters():
        shape = param.shape
        if param_name.endswith("relative_position_bias_table"):
            side = round(shape[0] ** 0.5)
            grid = param.transpose([1, 0]).reshape([1, shape[1], side, side])
            flipped = grid.flip(axes).reshape([shape[1], -1]).transpose([1, 0])
        elif param_name.endswith("pos_embed") and len(shape) == 3:
            side = round(shape[1] ** 0.5)
            if side**2 == shape[1]:
                flipped = param.reshape([side, side, 1, -1]).flip([axis - 2 for axis in axes]).reshape(shape)
            else:
                flipped = param.flip([1])  # a pooled sequence, read backwards
        elif len(shape) == 4:
            flipped = param.flip(axes)
        else:
            continue
        param.set_value((param + flipped) / 2)
    return model


def images_for(model_name, count=2, seed=0):
    size = SYMMETRIC[model_name]["DATA.IMAGE_SIZE"]
    return paddle.to_tensor(np.random.default_rng(seed).normal(0, 4, (count, 3, size, size)).astype("float32"))


def probabilities(model, images):
    """Of all attention layers in order, [N, heads, queries, keys], by hooks of this test's own."""
    kept = []
    hooks = [
        layer.register_forward_post_hook(lambda layer, inputs, output: kept.append(output.numpy()) and None)
        for layer_name, layer in model.named_sublayers()
        if layer_name.endswith("attn_dropout")
    ]
    with paddle.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return kept


def pooled(side):
    """[L', L] of a 3 x 3 window, stride 2, padding 1, whose places draw 1 : 2 : 1 along each axis, by loops."""
    rows = []
    for i in range(0, side, 2):
        for j in range(0, side, 2):
            row = np.zeros((side, side))
            for di, dj in itertools.product((-1, 0, 1), repeat=2):
                if 0 <= i + di < side and 0 <= j + dj < side:
                    row[i + di, j + dj] = (2 - abs(di)) * (2 - abs(dj))
            rows.append(row.ravel() / row.sum())
    return np.array(rows)


def beside_tokens(matrix, tokens):
    """Tokens go through, places by `matrix`."""
    full = np.zeros((tokens + matrix.shape[0], tokens + matrix.shape[1]))
    full[:tokens, :tokens] = np.eye(tokens)
    full[tokens:, tokens:] = matrix
    return full


@pytest.mark.parametrize("name", ["pit_digits", "pit_distilled_digits"])
def test_rollout_of_pit_is_the_product_over_all_layers_and_poolings(name):
    model, images, tokens = network(name), images_for(name)[:, :, :32, :32], 1 + ("distilled" in name)
    layers = iter(probabilities(model, images))
    for i in range(images.shape[0]):
        layers = iter(probabilities(model, images))
        rollout = np.eye(tokens + 64)
        for stage, (depth, side) in enumerate(((1, 8), (2, 4), (1, 2))):
            for _ in range(depth):
                attention = next(layers)[i].mean(axis=0)
                rollout = (0.5 * attention + 0.5 * np.eye(len(attention))) @ rollout
            if stage < 2:
                rollout = beside_tokens(pooled(side), tokens) @ rollout
        np.testing.assert_allclose(rollout.sum(axis=1), 1, rtol=1e-5)
        expected = rollout[:tokens].mean(axis=0)[tokens:].reshape(8, 8)
        np.testing.assert_allclose(attention_rollout(model, images)[i], expected, rtol=1e-4, atol=1e-7)


def test_rollout_of_cvt_is_that_of_its_last_stage_with_pooled_values():
    model, images = network("cvt_digits", **SYMMETRIC["cvt_digits"]), images_for("cvt_digits", 1)
    rollout = np.eye(1 + 9)
    drawn = beside_tokens(pooled(3), 1)
    for attention in probabilities(model, images)[-2:]:
        rollout = (0.5 * attention[0].mean(axis=0) @ drawn + 0.5 * np.eye(10)) @ rollout
    np.testing.assert_allclose(attention_rollout(model, images)[0].ravel(), rollout[0, 1:], rtol=1e-4)
    shares = attention[0] @ drawn  # of the last block, [heads, tokens, tokens]
    np.testing.assert_allclose(class_attention(model, images)[0].reshape([4, 9]), shares[:, 0, 1:], rtol=1e-4)


def test_class_rollout_of_pit_is_the_sum_over_all_ways_weighted_by_gradients():
    model, images = network("pit_digits"), images_for("pit_digits", 1)[:, :, :32, :32]
    images.stop_gradient, kept = False, []
    for layer_name, layer in model.named_sublayers():
        if layer_name.endswith("attn_dropout"):
            layer.register_forward_post_hook(lambda layer, inputs, output: kept.append(output) and None)
    logit = model(images)[0, 3]
    layers = zip(list(kept), paddle.grad(logit, list(kept)))
    rollout = np.eye(65)
    for stage, (depth, side) in enumerate(((1, 8), (2, 4), (1, 2))):
        for _ in range(depth):
            attention, gradient = (x[0].numpy() for x in next(layers))
            rollout = rollout + np.maximum(attention * gradient, 0).mean(axis=0) @ rollout
        if stage < 2:
            rollout = beside_tokens(pooled(side), 1) @ rollout
    found = class_rollout(model, images, 3)[0]
    np.testing.assert_allclose(found.ravel(), rollout[0, 1:], rtol=1e-3, atol=1e-6 * rollout.max())
    assert found.max() > 0


def test_shares_sum_to_one():
    model, images = network("pit_digits"), images_for("pit_digits")[:, :, :32, :32]
    for stage, last in ((1, 0), (2, 2), (3, 3)):
        own = probabilities(model, images)[last][:, :, 0, 0]
        shares = class_attention(model, images, stage=stage)
        assert shares.shape == (2, *[(1, 8, 8), (2, 4, 4), (4, 2, 2)][stage - 1])
        np.testing.assert_allclose(shares.sum(axis=(2, 3)) + own, 1, rtol=1e-5)
    model = network("hvt_digits")  # no class token, so that the patches have it all; 64 -> 31 -> 31 -> 15 -> 15 tokens
    np.testing.assert_allclose(attention_rollout(model, images).sum(axis=(1, 2)), 1, rtol=1e-5)
    for block in (1, 2, 3, 4):
        assert class_attention(model, images, stage=block).shape == (2, 3, 8, 8)
    np.testing.assert_allclose(class_attention(model, images, stage=1).sum(axis=(2, 3)), 1, rtol=1e-5)


@pytest.mark.parametrize(("name", "method"), HEATS)
def test_heat_is_flipped_with_the_image(name, method):
    model, images = symmetric(name), images_for(name)
    labels = range(10) if method.startswith("grad") else [None]  # there may be classes that nothing speaks for
    for label in labels:
        heat = heat_map(model, images, method, class_index=label)
        flipped = heat_map(model, images.flip([3]), method, class_index=label)
        np.testing.assert_allclose(flipped, heat[:, :, ::-1], atol=1e-3)
        if (heat.max(axis=(1, 2)) > 0).all() and np.abs(heat - heat[:, :, ::-1]).max() > 0.03:
            break
    else:
        pytest.fail("every heat is symmetric anyhow")
    assert heat.shape == (2, *images.shape[2:])
    assert heat.dtype == np.float32
    np.testing.assert_allclose(heat.max(axis=(1, 2)), 1, rtol=1e-5)
    assert heat.min() >= 0 or not method.startswith("grad")


@pytest.mark.parametrize("method", ["grad-cam", "attention", "rollout"])
def test_heat_of_pooled_tokens_is_turned_with_the_image(method):
    # HVT pools along rows: half a turn reads the sequence backwards. 81 tokens become 40 without a rest.
    model, images = symmetric("hvt_digits", axes=(2, 3), **{"MODEL.POOL_BLOCK_WIDTH": 4}), images_for("hvt_digits")
    heat = heat_map(model, images, method)
    np.testing.assert_allclose(heat_map(model, images.flip([2, 3]), method), heat[:, ::-1, ::-1], atol=2e-3)


def test_grad_cam_of_a_mean_and_a_linear_layer_is_the_class_activation_map():
    # Zhou et al. 2016, section 2: there the weights are those of the linear layer.
    model, images = network("regnet_digits"), images_for("regnet_digits")[:, :, :32, :32]
    last = feature_maps(model, images)["stage 3"][0]
    for label in (0, 7):
        cam = np.einsum("nchw,c->nhw", last, model.head[2].weight.numpy()[:, label])
        cam = np.maximum(on_pixels(cam, model.views()[2].grids[0], [32, 32]), 0)
        cam = cam / np.maximum(cam.max(axis=(1, 2), keepdims=True), 1e-9)
        np.testing.assert_allclose(grad_cam(model, images, label), cam, atol=1e-5)
    both = class_activation(model, images, [0, 7])
    np.testing.assert_array_equal(both[1], class_activation(model, images, 7)[1])


def test_the_default_class_is_the_likeliest():
    model, images = network("hvt_digits"), images_for("hvt_digits")[:, :, :32, :32]
    found = model(images).argmax(axis=1).tolist()
    np.testing.assert_array_equal(class_activation(model, images), class_activation(model, images, found))


@pytest.mark.parametrize(
    ("name", "stage"),
    [("pit_digits", 1), ("cvt_digits", 1), ("hvt_digits", 1), ("hrformer_digits", 1)]
    + [("regnet_digits", stage) for stage in (1, 2, 3)],
)
def test_a_map_lies_over_the_pixels_that_it_comes_from(name, stage):
    # Stretched over the image, the maps of strided convolutions would lie (stride - 1) / 2 too far to the lower right.
    model = (network if name == "regnet_digits" else fresh)(name, **{"DATA.IMAGE_SIZE": 64})
    view = model.views()[stage - 1]
    places = [(row, column) for row in range(20, 44, 4) for column in range(20, 44, 4)]
    images = np.zeros([1 + len(places), 3, 64, 64], dtype="float32")
    for image, (row, column) in zip(images[1:], places):
        image[:, row - 2 : row + 2, column - 2 : column + 2] = 3.0
    maps = feature_maps(model, paddle.to_tensor(images))[view.name][0]
    change = on_pixels(np.abs(maps[1:] - maps[:1]).mean(axis=1) ** 2, view.grids[0], [64, 64])
    change = np.maximum(change - np.median(change, axis=(1, 2), keepdims=True), 0)
    pixel = np.arange(64) + 0.5
    total = change.sum(axis=(1, 2))
    middles = np.stack([change.sum(axis=2) @ pixel / total, change.sum(axis=1) @ pixel / total], axis=1)
    assert np.abs((middles - places).mean(axis=0)).max() < view.grids[0].stride / 4


def test_looking_leaves_the_network_as_it_was():
    model, images = network("cvt_digits"), images_for("cvt_digits", 1)[:, :, :32, :32]
    before = {name: param.numpy() for name, param in model.state_dict().items()}
    model.train()
    model.stages[0].eval()  # as somebody may have frozen it
    with paddle.no_grad():  # as somebody may call it
        heats = [heat_map(model, images, method) for method in methods(model)]
    assert model.training and model.stages[1].training and not model.stages[0].training
    assert not any(layer._forward_post_hooks for layer in model.sublayers(include_self=True))
    assert all(param.grad is None for param in model.parameters())
    assert images.stop_gradient
    for name, param in model.state_dict().items():
        np.testing.assert_array_equal(param.numpy(), before[name])
    for param in model.parameters():
        param.stop_gradient = True
    model.eval()
    for method, heat in zip(methods(model), heats):
        np.testing.assert_allclose(heat_map(model, images, method), heat, atol=1e-5)


def test_images_do_not_depend_on_each_other():
    model, images = network("hvt_digits"), images_for("hvt_digits", 3)[:, :, :32, :32]
    for method in methods(model):
        together = heat_map(model, images, method)
        for i in range(3):
            np.testing.assert_allclose(heat_map(model, images[i : i + 1], method)[0], together[i], atol=1e-4)


def test_feature_maps_of_every_stage():
    shapes = {}
    for name in ("pit_digits", "cvt_digits", "hvt_digits", "hrformer_digits", "regnet_digits"):
        maps = feature_maps(fresh(name), paddle.zeros([1, 3, 32, 32]))
        shapes[name[:3]] = {stage: [x.shape[1:] for x in found] for stage, found in maps.items()}
    assert shapes["pit"] == {"stage 1": [(32, 8, 8)], "stage 2": [(64, 4, 4)], "stage 3": [(128, 2, 2)]}
    assert shapes["cvt"] == {"stage 1": [(32, 8, 8)], "stage 2": [(64, 4, 4)], "stage 3": [(128, 2, 2)]}
    assert shapes["hvt"] == {f"block {i}": [(96, 8, 8)] for i in (1, 2, 3, 4)}
    branches = [(16, 8, 8), (32, 4, 4), (64, 2, 2), (128, 1, 1)]
    assert shapes["hrf"] == {"stage 1": [(64, 8, 8)], **{f"stage {i}": branches[:i] for i in (2, 3, 4)}}
    assert shapes["reg"] == {"stage 1": [(32, 8, 8)], "stage 2": [(64, 4, 4)], "stage 3": [(128, 2, 2)]}


def test_pooled_tokens_are_spread_between_their_neighbours():
    # The third token of a pooling by 3 with stride 2 has its middle at patch 5; patch 6 lies between it and the next.
    model = fresh("hvt_digits")
    spread = model.views()[0].spread
    assert spread.shape == (64, 31)
    assert spread[5, 2] == 1 and spread[6, 2] == spread[6, 3] == 0.5
    np.testing.assert_allclose(spread.sum(axis=1), [1.0] * 63 + [0.0])  # no window reaches the last patch


@pytest.mark.parametrize(
    ("name", "call", "message"),
    [
        ("regnet_digits", {"method": "rollout"}, "method rollout, allowed for RegNet: grad-cam"),
        ("pit_digits", {"method": "cam"}, "method cam, allowed for PiT: grad-rollout, grad-cam, attention, rollout"),
        ("pit_digits", {"class_index": 10}, "class 10, allowed: 0 to 9"),
        ("pit_digits", {"class_index": -1}, "class -1, allowed: 0 to 9"),
        ("pit_digits", {"stage": 4}, r"stage 4, allowed: 1 \(stage 1\) to 3 \(stage 3\)"),
        ("hvt_digits", {"stage": 0}, r"stage 0, allowed: 1 \(block 1\) to 4 \(block 4\)"),
        ("cvt_digits", {"method": "attention", "stage": 1}, r"in stage 3 \(stage 3\), not in stage 1"),
        ("pit_digits", {"method": "rollout", "stage": 1}, "stage 1: rollout goes through all stages"),
        ("pit_digits", {"method": "attention", "class_index": 1}, "class 1: attention does not depend on a class"),
    ],
)
def test_mistakes_name_what_is_allowed(name, call, message):
    with pytest.raises(UserError, match=message):
        heat_map(fresh(name), paddle.zeros([1, 3, 32, 32]), **{"method": "grad-cam", **call})


def test_attention_of_networks_without_it():
    model, images = fresh("hrformer_digits"), paddle.zeros([1, 3, 32, 32])
    with pytest.raises(UserError, match="HRFormer has no global attention"):
        attention_rollout(model, images)
    with pytest.raises(UserError, match="HRFormer has global attention in no stage"):
        class_attention(model, images)
    with pytest.raises(UserError, match=r"Linear has no method views\(\)"):
        class_activation(paddle.nn.Linear(2, 2), images)


def test_overlay_has_the_images_size_and_lies_in_the_box():
    image = Image.new("L", (90, 60), 120)
    heat = np.zeros([4, 4], dtype="float32")
    np.testing.assert_array_equal(np.asarray(overlay(image, heat)), np.full([60, 90, 3], 120))
    heat[0, 3] = 1
    picture = np.asarray(overlay(image, heat, (15.2, 0, 74.9, 60))).astype(int)
    assert picture.shape == (60, 90, 3)
    assert (picture[:, :15] == 48).all() and (picture[:, 75:] == 48).all()  # not seen: darker
    changed = np.abs(picture[:, 15:75] - 120).sum(axis=2)
    assert changed[2, 57] == changed.max() > 150
    assert (changed[40:] == 0).all() and (changed[:, :20] == 0).all()


def test_hotter_is_brighter():
    red, green, blue = colored(np.linspace(0, 1, 101)).astype(float).T
    steps = np.diff(0.2126 * red + 0.7152 * green + 0.0722 * blue)
    assert steps.min() > 0.5


def test_smoothing_keeps_lines_and_the_middles_of_places():
    places = np.arange(7, dtype="float32")[None, None, :].repeat(3, axis=1)
    grid = Grid(4.0, 8)
    pixels = on_pixels(places, grid, [24, 56])[0]
    np.testing.assert_allclose(
        pixels[:, 12:44], ((np.arange(12, 44) + 0.5 - 4) / 8)[None].repeat(24, axis=0), rtol=1e-5
    )
    one = np.zeros([1, 3, 7], dtype="float32")
    one[0, 1, 4] = 1
    pixels = on_pixels(one, Grid(4.5, 8), [24, 56])[0]
    assert pixels.max() == pixels[12, 36] == 1.0  # the pixel whose middle is 4.5 + 8 * 4


def coloured_squares(rng, count):
    """Noise of 48 x 48 pixels with a square of 12 in it, red, green or blue: images, classes, corners."""
    images = rng.normal(0, 0.5, (count, 3, 48, 48)).astype("float32")
    labels, corners = rng.integers(0, 3, count), rng.integers(0, 36, (count, 2))
    for image, label, (row, column) in zip(images, labels, corners):
        image[label, row : row + 12, column : column + 12] += 2
    return paddle.to_tensor(images), labels, corners


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps", "found"),
    [("regnet_digits", 60, {"grad-cam": 0.9}), ("pit_digits", 60, {"grad-rollout": 0.7, "rollout": 0.8})],
)
def test_heat_points_at_the_object(name, steps, found):
    rng = np.random.default_rng(0)
    model = fresh(name, **{"DATA.IMAGE_SIZE": 48, "MODEL.NUM_CLASSES": 3})
    model.train()
    clip = paddle.nn.ClipGradByGlobalNorm(1.0)
    optimizer = paddle.optimizer.AdamW(2e-3, parameters=model.parameters(), grad_clip=clip)
    for _ in range(steps):
        images, labels, _ = coloured_squares(rng, 16)
        paddle.nn.functional.cross_entropy(model(images), paddle.to_tensor(labels)).backward()
        optimizer.step()
        optimizer.clear_grad()
    model.eval()
    images, labels, corners = coloured_squares(np.random.default_rng(1), 32)
    assert (model(images).argmax(axis=1).numpy() == labels).mean() > 0.9
    assert set(found) <= set(methods(model))
    for method, share in found.items():
        inside = []
        for heat, (row, column) in zip(heat_map(model, images, method), corners):
            inside.append(heat[row : row + 12, column : column + 12].mean() / max(heat.mean(), 1e-6))
        assert np.mean(np.array(inside) > 1.5) >= share, (method, inside)


@pytest.mark.parametrize("size", [(2000, 1), (1, 2000)])
def test_the_thinnest_image_still_has_a_pixel(size):
    image, box = fitted(Image.new("RGB", size), (0, 0, *size), 200)
    assert sorted(image.size) == [1, 200]
    assert max(box) == 200
