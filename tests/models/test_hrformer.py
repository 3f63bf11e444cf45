"""HRFormer: the official yaml, padded windows and odd maps against NumPy, drop path over whole images."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
import yaml
from paddle import nn

from golden import from_zeros, names_and_shapes
from paddlevit.config import get_config
from paddlevit.hrformer import build_hrformer
from paddlevit.hrformer.block import Block, RelativeAttention
from paddlevit.hrformer.model import Module, StageSpec
from paddlevit.layers import WideLinear

VARIANTS = ("hrt_tiny", "hrt_small", "hrt_base")


@pytest.fixture
def float64():
    paddle.set_default_dtype("float64")
    yield
    paddle.set_default_dtype("float32")


def shapes(model):
    return {key: list(value.shape) for key, value in model.state_dict().items()}


def official_yaml(name):
    """What the authors' yaml file of a variant says, in its structure."""
    width, heads, modules = {"hrt_tiny": (18, 1, 3), "hrt_small": (32, 1, 4), "hrt_base": (78, 2, 4)}[name]
    hrt = {"DROP_PATH_RATE": 0.2 if name == "hrt_base" else 0.0}
    hrt["STAGE1"] = {"NUM_MODULES": 1, "NUM_BRANCHES": 1, "NUM_BLOCKS": [2], "NUM_CHANNELS": [64], "NUM_HEADS": [2]}
    hrt["STAGE1"].update(NUM_MLP_RATIOS=[4], NUM_RESOLUTIONS=[[56, 56]], BLOCK="BOTTLENECK")
    for branches, count in ((2, 1), (3, modules), (4, 2)):
        stage = {"NUM_MODULES": count, "NUM_BRANCHES": branches, "NUM_BLOCKS": [2] * branches}
        stage["NUM_CHANNELS"] = [width * 2**i for i in range(branches)]
        stage["NUM_HEADS"] = [heads * 2**i for i in range(branches)]
        stage.update(NUM_MLP_RATIOS=[4] * branches, NUM_WINDOW_SIZES=[7] * branches, BLOCK="TRANSFORMER_BLOCK")
        stage["NUM_RESOLUTIONS"] = [[56 // 2**i, 56 // 2**i] for i in range(branches)]
        stage["ATTN_TYPES"] = [[["isa_local"] * 2] * branches] * count
        if name != "hrt_tiny":
            stage["FFN_TYPES"] = [[["conv_mlp"] * 2] * branches] * count
        hrt[f"STAGE{branches}"] = stage
    return {"AMP_OPT_LEVEL": "O1", "MODEL": {"TYPE": "hrt", "NAME": name, "HRT": hrt}}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_official_yaml_is_ours(name, tmp_path):
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(official_yaml(name)))
    config = get_config(path)
    assert config.MODEL.TYPE == "hrformer"
    with from_zeros():
        assert shapes(build_hrformer(config)) == names_and_shapes(name)
    assert config.MODEL.HRT.DROP_PATH_RATE == get_config(name).MODEL.HRT.DROP_PATH_RATE


@pytest.fixture(scope="module")
def tiny():
    paddle.seed(1)
    model = build_hrformer(get_config("hrt_tiny", ["MODEL.NUM_CLASSES", 3]))
    model.eval()
    return model


@pytest.mark.parametrize("size", [(230, 230), (225, 100), (1, 1)])
def test_any_size_and_a_batch_of_one(tiny, size):
    with paddle.no_grad():
        maps = tiny.feature_maps(paddle.randn([1, 3, *size]))
        assert tiny(paddle.randn([1, 3, *size])).shape == [1, 3]
    for i, feature_map in enumerate(maps):
        assert feature_map.shape == [1, 18 * 2**i, *(-(-side // 2 ** (i + 2)) for side in size)]


def test_attention_probabilities_can_be_taken_out(tiny):
    taken = []
    attention = tiny.stage2[0].branches[1][0].attn.attn
    hook = attention.attn_dropout.register_forward_post_hook(lambda layer, inputs, output: taken.append(output))
    tiny(paddle.randn([2, 3, 80, 80]))
    hook.remove()
    assert taken[0].shape == [2 * 2 * 2, 2, 49, 49]  # a map of 10 x 10 is four windows
    np.testing.assert_allclose(taken[0].sum(-1).numpy(), 1.0, rtol=1e-5)


def naive_window_attention(block, x, window):
    """x + attention(norm1(x)) with loops over images, windows, heads and pairs of tokens; arrays [N, C, H, W]."""
    n, dim, height, width = x.shape
    attn = block.attn.attn
    weights = {name: (getattr(attn, name).weight.numpy(), getattr(attn, name).bias.numpy()) for name in PROJECTIONS}
    table, heads = attn.relative_position_bias_table.numpy(), attn.num_heads
    rows, columns = -(-height // window) * window, -(-width // window) * window
    top, left = (rows - height) // 2, (columns - width) // 2
    centred = x - x.mean(axis=1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-6)
    normed = normed * block.norm1.weight.numpy()[:, None, None] + block.norm1.bias.numpy()[:, None, None]
    padded = np.zeros([n, rows, columns, dim])
    padded[:, top : top + height, left : left + width] = normed.transpose(0, 2, 3, 1)
    q, k, v = (padded @ weights[name][0] + weights[name][1] for name in PROJECTIONS[:3])
    out = np.zeros_like(padded)
    places = [(i, j) for i in range(window) for j in range(window)]
    for image in range(n):
        for row, column in [(r, c) for r in range(0, rows, window) for c in range(0, columns, window)]:
            for head in range(heads):
                part = slice(head * dim // heads, (head + 1) * dim // heads)
                for i, j in places:
                    query = q[image, row + i, column + j, part] * (dim // heads) ** -0.5
                    scores = [
                        query @ k[image, row + a, column + b, part]
                        + table[(i - a + window - 1) * (2 * window - 1) + j - b + window - 1, head]
                        for a, b in places
                    ]
                    probs = np.exp(scores) / np.exp(scores).sum()
                    values = np.array([v[image, row + a, column + b, part] for a, b in places])
                    out[image, row + i, column + j, part] = probs @ values
    out = (out @ weights["out_proj"][0] + weights["out_proj"][1])[:, top : top + height, left : left + width]
    return x + out.transpose(0, 3, 1, 2)


PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


class Nothing(nn.Layer):
    def forward(self, x):
        return x * 0


@pytest.mark.parametrize("size", [(6, 3), (5, 8), (4, 6), (1, 1), (7, 2)])
def test_window_attention_with_and_without_padding_against_loops(size, float64):
    rng = np.random.default_rng(3)
    block = Block(8, 2, window=3, mlp_ratio=2.0, drop_path=0.0)
    block.mlp = Nothing()
    for param in block.parameters():
        param.set_value(rng.standard_normal(param.shape))
    x = rng.standard_normal([2, 8, *size])
    result = block(paddle.to_tensor(x)).numpy()
    np.testing.assert_allclose(result, naive_window_attention(block, x, 3), rtol=0, atol=1e-11)


def bilinear(x, height, width):
    """Array [N, C, H, W] at other sides, corners on corners."""
    rows, columns = np.linspace(0, x.shape[2] - 1, height), np.linspace(0, x.shape[3] - 1, width)
    x = np.apply_along_axis(lambda line: np.interp(rows, range(len(line)), line), 2, x)
    return np.apply_along_axis(lambda line: np.interp(columns, range(len(line)), line), 3, x)


@pytest.mark.parametrize("size", [(6, 4), (5, 7)])
def test_branches_are_added_at_even_and_odd_sizes(size, float64):
    rng = np.random.default_rng(4)
    spec = StageSpec(
        1, num_blocks=[1, 1], num_channels=[4, 8], num_heads=[1, 1], window_sizes=[2, 2], mlp_ratios=[1, 1]
    )
    module = Module(spec, [0.0])
    module.branches = nn.LayerList([nn.Identity(), nn.Identity()])
    module.eval()
    high = rng.standard_normal([2, 4, *size])
    low = rng.standard_normal([2, 8, *(-(-side // 2) for side in size)])
    results = module([paddle.to_tensor(high), paddle.to_tensor(low)])
    conv = module.fuse_layers[0][1][0].weight.numpy()[:, :, 0, 0]
    pointwise = np.einsum("oc,nchw->nohw", conv, low) / np.sqrt(1 + 1e-5)
    raised = bilinear(pointwise.repeat(2, axis=2).repeat(2, axis=3), *size)
    np.testing.assert_allclose(results[0].numpy(), np.maximum(high + raised, 0), rtol=0, atol=1e-12)
    assert results[1].shape == list(low.shape)


def test_the_classifier_is_exact_for_a_single_row():
    head = WideLinear(2048, 1000)
    rows = 8 * paddle.rand([1, 2048])
    exact = rows.numpy().astype("float64") @ head.weight.numpy().astype("float64") + head.bias.numpy()
    np.testing.assert_allclose(head(rows).numpy(), exact, rtol=0, atol=2e-5)


def test_drop_path_drops_whole_images_not_windows():
    paddle.seed(5)
    block = Block(4, 1, window=2, mlp_ratio=1.0, drop_path=0.5)
    x = paddle.randn([64, 4, 8, 8])
    untouched = (block(x) == x).all(axis=[1, 2, 3]).numpy()
    assert 6 <= untouched.sum() <= 28  # a quarter of the images lose both residuals


def test_casting_leaves_the_positions_whole():
    """Layer.to casts buffers of whole numbers too; bfloat16 has no 257, which a window of 9 places needs."""
    attention = RelativeAttention(4, 2, 9)
    index = attention.relative_position_index.numpy()
    for dtype in ("bfloat16", "float32"):
        attention.to(dtype=dtype)
    assert len(set(attention.relative_position_index.numpy())) < len(set(index))
    expected = attention.relative_position_bias_table.numpy()[index].T.reshape([2, 81, 81])
    np.testing.assert_array_equal(attention.position_bias().numpy(), expected)
