"""Name tables against the published names and shapes of every network in every checkpoint format."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from paddle import nn

from golden import cases, golden_array, golden_state, info, manifest, names_and_shapes, relative_position_index
from paddlevit import build_model
from paddlevit.config import get_config
from paddlevit.weights import WeightsError, convert_state_dict, export_state_dict, load_weights
from paddlevit.weights.convert import Target, recognise
from paddlevit.weights.unwrap import unwrap

MODELS = sorted({model for model, _ in cases()})


def large(model, least):
    """Marks: what is found with small networks is found fast."""
    return [pytest.mark.slow] * (info(model)["params"] > least)


def family(model):
    return {"hrt": "hrformer"}.get(info(model)["family"], info(model)["family"])


class Network:
    """Looks to the loader like `model`, and cannot be filled."""

    def __init__(self, model):
        self.shapes = names_and_shapes(model)
        self.weight_sources = importlib.import_module(f"paddlevit.{family(model)}.convert").SOURCES
        self.head_prefixes = ("head.", "head_dist.")

    def state_dict(self):
        return {name: SimpleNamespace(shape=shape) for name, shape in self.shapes.items()}

    def named_sublayers(self, include_self):
        for name, shape in self.shapes.items():
            if name.endswith(".weight") and len(shape) == 2:
                yield name[: -len(".weight")], nn.Linear.__new__(nn.Linear)


def shapes_only(model, fmt):
    state = {}
    for name, shape, _, kind in manifest(model, fmt)["entries"]:
        structural = kind == "buffer: structural"  # 7 x 7 windows
        state[name] = relative_position_index() if structural else np.broadcast_to(np.float32(0), shape)
    return state


@pytest.mark.parametrize(("model", "fmt"), cases())
def test_every_format_leads_to_our_names_and_shapes_one_to_one(model, fmt):
    network = Network(model)
    state = shapes_only(model, fmt)
    found = recognise(state, Target.of(network), "auto")
    assert found.source == fmt
    assert {name: list(array.shape) for name, array in found.arrays.items()} == network.shapes
    dropped = ("num_batches_tracked", "relative_position_index", "conv3.bias")
    assert sorted(found.origin[name] for name in found.arrays) == sorted(n for n in state if not n.endswith(dropped))


class FilledNetwork(Network):
    """A network of which each parameter is full of one number."""

    def state_dict(self):
        tensors = super().state_dict()
        for number, tensor in enumerate(tensors.values()):
            values = np.broadcast_to(np.uint8(number % 251), tensor.shape)
            tensor.dtype, tensor.numpy = paddle.uint8, lambda values=values: values
        return tensors


@pytest.mark.parametrize(("model", "fmt"), [pytest.param(*case, marks=large(case[0], 5e7)) for case in cases()])
def test_every_network_is_written_as_its_publisher_does_and_comes_back(model, fmt):
    network, entries = FilledNetwork(model), manifest(model, fmt)["entries"]
    exported = export_state_dict(network, fmt)
    assert {name: list(array.shape) for name, array in exported.items()} == {name: shape for name, shape, *_ in entries}
    assert all(str(exported[name].dtype) in ("uint8", dtype) for name, _, dtype, _ in entries)
    again = convert_state_dict(exported, network, fmt)
    assert sorted(again) == sorted(network.shapes)
    for name, tensor in network.state_dict().items():
        assert list(again[name].shape) == tensor.shape
        assert again[name].flat[-1] == tensor.numpy().flat[-1], name


def test_a_body_of_transformers_without_its_head_has_shorter_names():
    table = Target.of(Network("cvt-13-224x224")).tables["hf"]
    for prefix in ("", "cvt."):
        assert table.ours(f"{prefix}encoder.stages.2.layers.0.layernorm_before.bias") == "stages.2.blocks.0.norm1.bias"
    assert table.theirs("stages.2.cls_token") == "cvt.encoder.stages.2.cls_token"


@pytest.mark.parametrize("model", MODELS)
def test_our_own_files_are_recognised(model):
    state = {name: np.broadcast_to(np.float32(0), shape) for name, shape in names_and_shapes(model).items()}
    found = recognise(state, Target.of(Network(model)), "auto")
    # Where PaddleViT has the same names and layout, it is named as the source.
    assert found.source == ("ours" if family(model) == "hrformer" else "paddlevit")
    assert list(found.arrays) == list(state)


def essence(model):
    """What tells two networks apart when position embeddings may be resized."""
    return {name: shape for name, shape in names_and_shapes(model).items() if not name.endswith("pos_embed")}


@pytest.mark.parametrize("model", [pytest.param(model, marks=large(model, 2e7)) for model in MODELS])
def test_a_file_of_another_network_is_refused(model):
    """Of every other variant of its family, and one file of each other family."""
    network, families = Network(model), {family(other): (other, fmt) for other, fmt in cases()}
    for other, fmt in cases():
        if family(other) != family(model) and (other, fmt) != families[family(other)]:
            continue
        if essence(other) != essence(model):
            with pytest.raises(WeightsError):
                load_weights(network, shapes_only(other, fmt))


def test_a_file_of_another_family_says_what_was_tried():
    with pytest.raises(WeightsError) as caught:
        load_weights(Network("cvt-13-224x224"), shapes_only("hrt_tiny", "official"))
    assert all(part in str(caught.value) for part in ("official, hf, paddlevit, ours", "conv1.weight", "and 2073 more"))


def test_linear_weights_are_transposed_by_layer_not_by_rank():
    class Layer(nn.Layer):
        weight_sources = {"official": {"layout": "torch"}}

        def __init__(self):
            super().__init__()
            self.relative_position_bias_table = self.create_parameter([9, 2])
            self.fc = nn.Linear(2, 3)
            self.square = nn.Linear(2, 2)

    rng = np.random.default_rng(0)
    shapes = {"relative_position_bias_table": (9, 2), "fc.weight": (3, 2), "fc.bias": (3,), "square.weight": (2, 2)}
    state = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    converted = convert_state_dict(state, Layer())
    for name in ("fc.weight", "square.weight"):
        np.testing.assert_array_equal(converted[name], state[name].T)
        assert converted[name].flags.c_contiguous
    for name in ("relative_position_bias_table", "fc.bias"):
        np.testing.assert_array_equal(converted[name], state[name])


def test_square_weights_alone_do_not_say_who_wrote_them():
    class Layer(nn.Linear):
        weight_sources = {"official": {"layout": "torch"}}

    state = {"weight": np.arange(4.0).reshape(2, 2), "bias": np.zeros(2)}
    with pytest.raises(WeightsError, match="name the source"):
        convert_state_dict(state, Layer(2, 2))
    np.testing.assert_array_equal(convert_state_dict(state, Layer(2, 2), "ours")["weight"], state["weight"])
    np.testing.assert_array_equal(convert_state_dict(state, Layer(2, 2), "official")["weight"], state["weight"].T)


def test_unknown_sources_and_leftovers_are_named():
    model = build_model(get_config("pit_digits"))
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError, match="'torchvision' is unknown.*official, timm, paddlevit, ours"):
        convert_state_dict(state, model, "torchvision")
    with pytest.raises(WeightsError, match="1 arrays have no counterpart.*left.over"):
        convert_state_dict({**state, "left.over": np.zeros(1)}, model)


def test_two_names_for_one_parameter_are_an_error():
    model = build_model(get_config("pit_digits"))
    state = {"transformers.1.pool.fc.bias": np.zeros(1), "pools.0.fc.bias": np.zeros(1)}
    with pytest.raises(WeightsError, match="both stand for pools.0.fc.bias"):
        convert_state_dict(state, model, "timm")


def test_hrformers_index_is_checked_and_dropped():
    network = Network("hrt_tiny")
    state = shapes_only("hrt_tiny", "official")
    name = next(name for name in state if name.endswith("relative_position_index"))
    state[name] = relative_position_index(7)
    for other in state:
        if other.endswith("relative_position_index"):
            state[other] = state[name]
    recognise(state, Target.of(network), "auto")
    state[name] = relative_position_index(7).T
    with pytest.raises(WeightsError, match=name):
        recognise(state, Target.of(network), "auto")


def test_regnets_extra_bias_is_folded_into_the_mean():
    """BatchNorm(conv(x) + b) with PaddleViT's bias equals BatchNorm(conv(x)) with ours."""
    name = "stages.2.blocks.3"
    state = golden_bits("regnety_160", "paddlevit", (f"{name}.conv3.", f"{name}.bn3."))
    found = recognise(unwrap(state).arrays, Target.of(Network("regnety_160")), "paddlevit")
    converted = {key: array.astype("float32") for key, array in found.arrays.items()}
    assert f"{name}.conv3.bias" not in converted
    x = np.random.default_rng(0).standard_normal((5, converted[f"{name}.bn3._mean"].size)).astype("f4")

    def norm(x, values):
        parts = [paddle.to_tensor(values[f"{name}.bn3.{part}"]) for part in ("_mean", "_variance", "weight", "bias")]
        return nn.functional.batch_norm(paddle.to_tensor(x), *parts).numpy()

    theirs = norm(x + state[f"{name}.conv3.bias"], state)
    np.testing.assert_allclose(norm(x, converted), theirs, atol=1e-5)
    assert np.abs(norm(x, state) - theirs).max() > 0.1


def golden_bits(model, fmt, prefixes):
    layout = manifest(model, fmt)["layout"]
    entries = manifest(model, fmt)["entries"]
    return {name: golden_array(name, shape, 0, layout) for name, shape, _, _ in entries if name.startswith(prefixes)}


def test_convert_state_dict_of_a_whole_checkpoint_loads_with_set_state_dict():
    model = build_model(get_config("pit_ti_224"))
    converted = convert_state_dict({"model": golden_state("pit_ti_224", "timm")}, model)
    missing, unexpected = model.set_state_dict(converted)
    assert not missing
    assert not unexpected
    again = convert_state_dict(model.state_dict(), model)
    assert all(np.array_equal(again[name], converted[name]) for name in converted)
    assert list(again) == list(model.state_dict())
