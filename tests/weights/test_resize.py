"""Position embeddings for another image size, against Paddle's own interpolation."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from paddlevit import build_model
from paddlevit.config import get_config
from paddlevit.weights import load_weights
from paddlevit.weights.resize import can_resize, resize_position_embedding

RNG = np.random.default_rng(0)
# Paddle computes the positions in float32 even for float64 values.
ATOL = 5e-5


def bicubic(grid, size):
    """[1, C, H, W] -> [1, C, size, size] in float64, by Paddle."""
    return paddle.nn.functional.interpolate(paddle.to_tensor(grid), size, mode="bicubic").numpy()


@pytest.mark.parametrize(("old", "new"), [(27, 46), (27, 53), (46, 27), (3, 7), (5, 2), (1, 4), (6, 6)])
def test_maps_and_token_grids(old, new):
    grid = RNG.standard_normal((1, 4, old, old))
    expected = bicubic(grid, [new, new])
    np.testing.assert_allclose(resize_position_embedding("pos_embed", grid, (1, 4, new, new)), expected, atol=ATOL)
    tokens = grid.reshape(1, 4, old * old).transpose(0, 2, 1)
    np.testing.assert_allclose(
        resize_position_embedding("pos_embed", tokens, (1, new * new, 4)),
        expected.reshape(1, 4, new * new).transpose(0, 2, 1),
        atol=ATOL,
    )


@pytest.mark.parametrize(("old", "new"), [(97, 287), (48, 23), (2, 9), (9, 1)])
def test_sequences_inside_layers(old, new):
    tokens = RNG.standard_normal((1, old, 4))
    places = (np.arange(new) + 0.5) * old / new - 0.5
    expected = np.stack([np.interp(places, np.arange(old), channel) for channel in tokens[0].T], axis=1)
    np.testing.assert_allclose(
        resize_position_embedding("layers.0.pos_embed", tokens, (1, new, 4)),
        expected[None],
        atol=ATOL,
    )


def keys_kernel(x):
    """Keys' cubic with a = -0.75, written as he does: one polynomial up to 1, another up to 2, then zero."""
    x, a = abs(x), -0.75
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


@pytest.mark.parametrize(("old", "new"), [(5, 9), (9, 4), (6, 1)])
def test_bicubic_in_full_precision(old, new):
    """Each new value as the sum over all old ones, the map continued by its border: far slower, and exact."""
    grid = RNG.standard_normal((1, 1, old, old))
    continued = np.pad(grid[0, 0], 3, mode="edge")
    centres = [(i + 0.5) * old / new - 0.5 for i in range(new)]
    kernel = np.array([[keys_kernel(centre - (j - 3)) for j in range(old + 6)] for centre in centres])
    expected = np.array([[np.sum(np.outer(row, col) * continued) for col in kernel] for row in kernel])
    actual = resize_position_embedding("pos_embed", grid, (1, 1, new, new))[0, 0]
    np.testing.assert_allclose(actual, expected, atol=1e-12)


def test_linear_in_full_precision():
    ramp = np.arange(30.0).reshape(1, 30, 1)
    centres = (np.arange(77) + 0.5) * 30 / 77 - 0.5
    new = resize_position_embedding("layers.3.pos_embed", ramp, (1, 77, 1))[0, :, 0]
    np.testing.assert_allclose(new, np.clip(centres, 0, 29), atol=1e-12)


@pytest.mark.parametrize(
    ("name", "have", "want", "answer"),
    [
        ("pos_embed", (1, 64, 27, 27), (1, 64, 31, 31), True),
        ("pos_embed", (1, 64, 27, 27), (1, 96, 31, 31), False),
        ("pos_embed", (1, 196, 192), (1, 576, 192), True),
        ("pos_embed", (1, 197, 192), (1, 576, 192), False),
        ("pos_embed", (1, 196, 192), (1, 577, 192), False),
        ("layers.0.pos_embed", (1, 97, 192), (1, 287, 192), True),
        ("layers.0.pos_embed", (1, 97, 192), (1, 287, 384), False),
        ("layers.0.pos_embed", (1, 0, 192), (1, 287, 192), False),
        ("head.weight", (1, 64, 27, 27), (1, 64, 31, 31), False),
    ],
)
def test_what_can_be_resized(name, have, want, answer):
    assert can_resize(name, have, want) == answer


@pytest.mark.parametrize(
    ("cfg", "size"),
    [
        ("pit_ti_224", 384),
        ("hvt_ti_1_patch16_224", 384),
        pytest.param("hvt_s4_patch16_224", 256, marks=pytest.mark.slow),
    ],
)
def test_published_weights_go_into_networks_of_another_image_size(cfg, size):
    small = build_model(get_config(cfg))
    large = build_model(get_config(cfg, ["DATA.IMAGE_SIZE", size]))
    report = load_weights(large, small.state_dict())
    assert report.resized == [name for name in large.state_dict() if name.endswith("pos_embed")]
    assert len(report.loaded) == len(large.state_dict())
    old, new = small.pos_embed.numpy(), large.pos_embed.numpy()
    if old.ndim == 3:
        old, new = (e.transpose(0, 2, 1).reshape(1, e.shape[2], round(e.shape[1] ** 0.5), -1) for e in (old, new))
    np.testing.assert_allclose(new, bicubic(old, new.shape[2:]), atol=1e-6)
    np.testing.assert_array_equal(small.head.weight.numpy(), large.head.weight.numpy())


def test_half_precision_files_are_interpolated_in_full_precision():
    small, large = (build_model(get_config("pit_digits", ["DATA.IMAGE_SIZE", size])) for size in (32, 48))
    state = {name: tensor.numpy().astype("f2") for name, tensor in small.state_dict().items()}
    assert load_weights(large, state).resized == ["pos_embed"]
    expected = resize_position_embedding("pos_embed", state["pos_embed"].astype("f8"), large.pos_embed.shape)
    np.testing.assert_allclose(large.pos_embed.numpy(), expected, rtol=1e-6, atol=1e-9)
