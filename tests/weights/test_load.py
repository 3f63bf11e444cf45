"""The loader on small networks: what it fills, reports, and refuses, and what its errors say."""

from __future__ import annotations

import pickle

import numpy as np
import paddle
import pytest
import safetensors.numpy
from paddle import nn

from paddlevit import build_model
from paddlevit.config import get_config
from paddlevit.errors import MissingFileError, UserError
from paddlevit.weights import WeightsError, load_weights
from paddlevit.weights.writers import WRITERS

TINY = ["DATA.IMAGE_SIZE", 32]


def tiny(**values):
    opts = [item for key, value in values.items() for item in (f"MODEL.{key}", value)]
    return build_model(get_config("pit_digits", TINY + opts))


def arrays(model, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(t.shape).astype("f4") for name, t in model.state_dict().items()}


def values(model):
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def assert_filled(model, state, names=None):
    for name in names if names is not None else state:
        np.testing.assert_array_equal(model.state_dict()[name].numpy(), state[name], err_msg=name)


def test_everything_is_filled_and_reported():
    model = tiny()
    state = arrays(model)
    report = load_weights(model, state)
    assert report.source == "paddlevit"
    assert report.loaded == list(state)
    assert (report.missing, report.unexpected, report.resized, report.reinitialised) == ([], [], [], [])
    assert str(report) == f"{len(state)} parameters and buffers loaded, source paddlevit"
    assert_filled(model, state)


def test_a_layer_without_a_name_table_loads_our_names():
    layer = nn.Sequential(nn.Conv2D(3, 4, 1), nn.BatchNorm2D(4))
    state = arrays(layer)
    assert load_weights(layer, state).source == "ours"
    assert_filled(layer, state)


@pytest.mark.parametrize("stored", ["f2", "f8", ">f4"])
@pytest.mark.parametrize("used", ["float32", "float64"])
def test_values_are_cast_to_the_parameters_dtype(stored, used):
    paddle.set_default_dtype(used)
    try:
        layer = nn.Linear(3, 5)
    finally:
        paddle.set_default_dtype("float32")
    state = {name: array.astype(stored) for name, array in arrays(layer).items()}
    load_weights(layer, state)
    assert str(layer.weight.dtype) == f"paddle.{used}"
    assert_filled(layer, {name: array.astype(used) for name, array in state.items()})


@pytest.mark.parametrize("used", ["bfloat16", "float16"])
def test_half_precision_networks_and_tensors(used):
    layer, source = nn.Linear(3, 5), nn.Linear(3, 5)
    layer.to(dtype=used)
    load_weights(layer, source.state_dict())
    found = layer.weight.astype("float32").numpy()  # rounded; Paddle's own cast to float16 truncates before 3.2
    np.testing.assert_allclose(found, source.weight.numpy(), rtol=2**-8 if used == "bfloat16" else 2**-11)
    load_weights(source, layer.state_dict())
    np.testing.assert_array_equal(source.weight.numpy(), found)


def test_arrays_that_are_views_or_in_fortrans_order():
    layer = nn.Linear(3, 5)
    wide = np.random.default_rng(0).standard_normal((10, 6)).astype("f4")
    state = {"weight": wide[::2, ::2].T, "bias": wide[:5, 1]}
    load_weights(layer, state)
    assert_filled(layer, state)


def test_a_refused_file_leaves_the_network_as_it_was():
    model = tiny()
    before = values(model)
    state = arrays(model)
    del state["head.bias"]
    with pytest.raises(WeightsError):
        load_weights(model, state)
    assert_filled(model, before)


def test_errors_list_ten_names_with_shapes_and_the_number_of_the_rest(tmp_path):
    model = tiny()
    state = arrays(model)
    removed = [name for name in state if "norm" in name]
    assert len(removed) > 10
    for name in removed:
        del state[name]
    state["extra.weight"] = np.zeros((2, 7), "f4")
    state["cls_token"] = np.zeros((1, 1, 5), "f4")
    path = tmp_path / "broken.pdparams"
    path.write_bytes(pickle.dumps(state))
    with pytest.raises(UserError) as caught:
        load_weights(model, path)
    message = str(caught.value)
    assert message.startswith(f"{path} (source paddlevit) does not fit the model")
    assert f"{len(removed)} missing in the file: {removed[0]} [32], " in message
    assert f" and {len(removed) - 10} more" in message
    assert removed[9] in message
    assert removed[10] not in message
    assert "1 unknown to the model: extra.weight [2, 7]" in message
    assert f"1 of another shape in the file: cls_token [1, 1, 5] (model: {list(model.cls_token.shape)})" in message


def test_a_head_of_another_class_number_needs_reinit():
    model, other = tiny(NUM_CLASSES=10), tiny(NUM_CLASSES=7)
    state = arrays(other)
    with pytest.raises(WeightsError) as caught:
        load_weights(model, state)
    assert "the file has 7 classes, the model 10 (MODEL.NUM_CLASSES)" in str(caught.value)
    assert caught.value.reinit == ("head.", "head_dist.")
    before = values(model)
    report = load_weights(model, state, reinit=("head.",))
    assert report.reinitialised == ["head.weight", "head.bias"]
    assert "2 reinitialised: head.weight, head.bias" in str(report)
    assert_filled(model, before, report.reinitialised)
    assert_filled(model, state, report.loaded)
    assert sorted(report.loaded + report.reinitialised) == sorted(before)


def test_reinit_is_obeyed_where_the_head_would_fit_and_where_it_is_absent():
    model = tiny()
    state, before = arrays(model), values(model)
    assert load_weights(model, state, reinit="head.").reinitialised == ["head.weight", "head.bias"]
    assert_filled(model, before, ["head.weight", "head.bias"])
    for name in ("head.weight", "head.bias"):
        del state[name]
    report = load_weights(model, state, reinit=("head.",))
    assert report.reinitialised == ["head.weight", "head.bias"]
    assert report.missing == []


def test_a_prefix_that_names_nothing_is_an_error():
    with pytest.raises(WeightsError, match="'classifier.'"):
        load_weights(tiny(), arrays(tiny()), reinit=("classifier.",))


def test_all_head_prefixes_of_a_class_may_be_given():
    model = tiny(NUM_CLASSES=10)
    report = load_weights(model, arrays(tiny(NUM_CLASSES=7)), reinit=type(model).head_prefixes)
    assert report.reinitialised == ["head.weight", "head.bias"]


def test_features_only_network_drops_the_head_when_asked():
    model, whole = tiny(NUM_CLASSES=0), tiny()
    with pytest.raises(WeightsError, match="2 unknown to the model: head.weight"):
        load_weights(model, arrays(whole))
    report = load_weights(model, arrays(whole), reinit=("head.",))
    assert report.unexpected == ["head.weight", "head.bias"]
    assert_filled(model, arrays(whole), report.loaded)


def test_distilled_and_plain_files_are_told_apart():
    plain, distilled = tiny(DISTILLED=False), tiny(DISTILLED=True)
    with pytest.raises(WeightsError, match="the file is of a distilled model, this model is not distilled.*MODEL"):
        load_weights(plain, arrays(distilled))
    with pytest.raises(WeightsError, match="the file is not of a distilled model, this model is distilled.*MODEL"):
        load_weights(distilled, arrays(plain))


def test_not_strict_loads_what_fits_and_says_the_rest(caplog):
    model = tiny(NUM_CLASSES=10)
    state, before = arrays(tiny(NUM_CLASSES=7)), values(model)
    del state["norm.weight"]
    state["extra"] = np.zeros(3)
    report = load_weights(model, state, strict=False)
    assert report.missing == ["norm.weight"]
    assert report.unexpected == ["extra"]
    assert report.mismatched == ["head.weight", "head.bias"]
    assert "norm.weight" in caplog.text
    assert "extra" in caplog.text
    assert_filled(model, before, report.missing + report.mismatched)
    assert_filled(model, state, report.loaded)


def test_values_that_are_no_numbers_are_reported():
    model = tiny()
    state = arrays(model)
    state["head.bias"][3], state["cls_token"][0, 0, 0] = np.nan, -np.inf
    report = load_weights(model, state)
    assert sorted(report.nonfinite) == ["cls_token", "head.bias"]
    assert "2 nonfinite: " in str(report)


def test_files_by_every_reader(tmp_path):
    model = tiny()
    state = arrays(model)
    paddle.save({"model": {k: paddle.to_tensor(v) for k, v in state.items()}, "epoch": 3}, str(tmp_path / "p.pdparams"))
    safetensors.numpy.save_file(state, tmp_path / "s.safetensors")
    for name in ("p.pdparams", "p", "s.safetensors"):
        model = tiny()
        load_weights(model, tmp_path / name)
        assert_filled(model, state)
    with pytest.raises(MissingFileError, match="no weights file"):
        load_weights(model, tmp_path / "absent")
    with pytest.raises(MissingFileError, match=r"absent\.pdparams$"):
        load_weights(model, tmp_path / "absent.pdparams")


def test_a_nested_state_dict_in_memory():
    model = tiny()
    state = arrays(model)
    load_weights(model, {"model_ema": {}, "model": {f"module.{name}": array for name, array in state.items()}})
    assert_filled(model, state)


def misfit(state, **options):
    model = build_model(get_config("pit_digits", [str(word) for item in options.items() for word in item]))
    with pytest.raises(WeightsError) as caught:
        load_weights(model, state)
    return caught.value


def test_reasons_go_with_the_misfit():
    """Another number of classes, no classifier in the file or in the model; nothing of these for another model."""
    state = arrays(build_model(get_config("pit_digits")))
    bare = {name: array for name, array in state.items() if not name.startswith("head.")}
    for error, reason in (
        (misfit(state, **{"MODEL.NUM_CLASSES": 3}), "the file has 10 classes, the model 3"),
        (misfit(state, **{"MODEL.NUM_CLASSES": 0}), "the file has 10 classes, the model 0"),
        (misfit(bare), "the file has no classifier"),
    ):
        assert reason in str(error)
        assert error.reinit == ("head.", "head_dist.")
    other = misfit(state, **{"MODEL.NUM_HEADS": [2, 2, 2]})
    assert "classifier" not in str(other)
    assert other.reinit == ()
    assert misfit(dict(list(bare.items())[1:])).reinit == ()


def test_every_reinit_that_an_error_offers_works():
    state = arrays(build_model(get_config("pit_digits")))
    for number in (3, 0):
        error = misfit(state, **{"MODEL.NUM_CLASSES": number})
        load_weights(build_model(get_config("pit_digits", ["MODEL.NUM_CLASSES", number])), state, reinit=error.reinit)


def test_a_damaged_file_leaves_the_model_as_it_was(tmp_path):
    """The damage is in the last array: all the others could have been filled."""
    model, path = tiny(), tmp_path / "w.pth"
    state = arrays(model)
    WRITERS[".pth"](path, state)
    data = bytearray(path.read_bytes())
    data[data.index(list(state.values())[-1].tobytes()) + 1] ^= 4
    path.write_bytes(data)
    before = values(model)
    with pytest.raises(WeightsError, match="CRC"):
        load_weights(model, path)
    assert_filled(model, before)


def test_an_array_in_memory_that_cannot_be_read_is_a_user_error():
    class Bfloat16:  # torch's, which NumPy does not have
        shape = (1,)

        def __array__(self, *args, **options):
            raise TypeError("Got unsupported ScalarType BFloat16")

    model = tiny()
    with pytest.raises(WeightsError, match="the state dict .*unsupported ScalarType"):
        load_weights(model, {**arrays(model), "more": Bfloat16()})
