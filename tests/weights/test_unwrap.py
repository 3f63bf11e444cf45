"""Checkpoints as trainers save them: which of their dicts and names are the weights, and what the report says of it."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import safetensors.numpy

from paddlevit import build_model
from paddlevit.config import get_config
from paddlevit.errors import MissingFileError
from paddlevit.weights import WeightsError, load_weights, read_state_dict
from paddlevit.weights.unwrap import unwrap

ONES, ZEROS = {"a.w": np.ones(2, "f4"), "b": np.ones(1, "f4")}, {"a.w": np.zeros(2, "f4"), "b": np.zeros(1, "f4")}


def named(prefix, state=ONES):
    return {prefix + name: array for name, array in state.items()}


# As timm, DeiT, Lightning, pycls, torch's tutorials, DeepSpeed, BasicSR, FSDP and torch.compile name things.
CHECKPOINTS = {
    "timm": {"epoch": 3, "arch": "pit_s_224", "state_dict": ONES, "state_dict_ema": ZEROS, "optimizer": {"state": {}}},
    "DeiT": {"model": ONES, "model_ema": ZEROS, "args": None},
    "Lightning": {"state_dict": {**named("model."), "criterion.weight": np.ones(3)}, "hyper_parameters": {"lr": 1.0}},
    "Lightning with an average": {"state_dict": {**named("model."), **named("ema_model.module.", ZEROS)}},
    "Lightning with a metric": {"state_dict": {**named("model."), "metric.values": [1, 2]}},
    "Lightning, compiled": {"state_dict": named("model._orig_mod.")},
    "tutorial": {"model_state_dict": ONES, "optimizer_state_dict": {}},
    "pycls": {"model_state": ONES, "ema_state": ZEROS, "cfg": "MODEL:"},
    "DeepSpeed": {"module": ONES, "ds_config": {}},
    "averaged": {"n_averaged": np.array(5), **named("module.")},
    "data parallel, compiled": named("module._orig_mod."),
    "compiled, data parallel": named("_orig_mod.module."),
    "compiled in part": {"a._orig_mod.w": ONES["a.w"], "b": ONES["b"]},
    "FSDP": {"_fsdp_wrapped_module.a._fsdp_wrapped_module._checkpoint_wrapped_module.w": ONES["a.w"], "b": ONES["b"]},
    "in dicts": {"model": {"state_dict": named("module."), "version": 2}},
    "a configuration under the name of the model": {"model": {"name": "pit", "depth": 12}, "state_dict": ONES},
    "Paddle, data parallel": named("_layers."),
}
AVERAGED = {
    "timm": CHECKPOINTS["timm"],
    "DeiT": CHECKPOINTS["DeiT"],
    "pycls": CHECKPOINTS["pycls"],
    "Lightning with an average": CHECKPOINTS["Lightning with an average"],
    "a dict around it": {"model": ONES, "ema": {"decay": 0.999, "module": ZEROS}},
    "of a compiled model": {"params": ONES, "params_ema": named("_orig_mod.", ZEROS)},
    "averages alone": {"model_ema": ZEROS},
}


def written(tmp_path, content):
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps(content))
    return tmp_path / "w.pdparams"


def assert_same(actual, expected):
    assert set(actual) == set(expected)
    assert all(np.array_equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize("trainer", CHECKPOINTS)
def test_the_models_own_weights_are_found(tmp_path, trainer):
    assert_same(read_state_dict(written(tmp_path, CHECKPOINTS[trainer])), ONES)


@pytest.mark.parametrize("trainer", AVERAGED)
def test_the_average_can_be_chosen(tmp_path, trainer):
    assert_same(read_state_dict(written(tmp_path, AVERAGED[trainer]), which="ema"), ZEROS)


def test_a_file_that_has_only_an_average_gives_it():
    assert unwrap({"model_ema": ZEROS}).notes == ["weights under 'model_ema'"]


def test_the_file_of_an_average_is_named_itself_or_by_that_of_the_model(tmp_path):
    for name, content in {"w": ONES, "w_ema": ZEROS, "alone_ema": ZEROS}.items():
        (tmp_path / f"{name}.pdparams").write_bytes(pickle.dumps(content))
    for name in ("w.pdparams", "w", "w_ema.pdparams", "w_ema"):
        assert_same(read_state_dict(tmp_path / name, which="ema"), ZEROS)
    with pytest.raises(WeightsError, match="no EMA weights"):
        read_state_dict(tmp_path / "alone_ema", which="ema")


def test_no_average_is_an_error_that_says_where_it_was_looked_for(tmp_path):
    for content in (ONES, {"model": ONES}):
        with pytest.raises(WeightsError, match="no EMA weights .*model_ema, state_dict_ema"):
            read_state_dict(written(tmp_path, content), which="ema")
    with pytest.raises(WeightsError, match="w.pdparams: which must be 'model' or 'ema', got 'best'"):
        read_state_dict(written(tmp_path, ONES), which="best")


def test_names_that_become_equal_are_an_error():
    with pytest.raises(WeightsError, match="two names are equal"):
        unwrap({"a._orig_mod.w": np.ones(1), "a.w": np.ones(1)})


def test_the_report_says_where_the_weights_were_and_what_was_left_out(tmp_path):
    model = build_model(get_config("pit_digits"))
    state = {f"model.{name}": np.ones(tensor.shape, "f4") for name, tensor in model.state_dict().items()}
    content = {"epoch": 7, "state_dict": {**state, "criterion.weight": np.ones(3)}, "optimizer_states": []}
    report = load_weights(model, written(tmp_path, content))
    assert report.notes == [
        "weights under 'state_dict', left out: epoch, optimizer_states",
        "left out of the state dict: criterion.weight",
    ]
    assert str(report).endswith("\n".join(report.notes))
    averaged = {"model": ZEROS, "model_ema": {name[6:]: array for name, array in state.items()}}
    assert load_weights(model, averaged, which="ema").notes == ["weights under 'model_ema', left out: model"]


def sharded(folder, name, write):
    """A folder as Hugging Face writes one: two shards and their index."""
    folder.mkdir()
    stem, suffix = name.rsplit(".", 1)
    shards = {key: f"{stem}-0000{i}-of-00002.{suffix}" for i, key in enumerate(ONES, 1)}
    for key, shard in shards.items():
        write({key: ONES[key]}, folder / shard)
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {"total_size": 12}, "weight_map": shards}))
    return folder


def pickled(state, path):
    path.write_bytes(pickle.dumps(state))


WRITERS = {"model.safetensors": safetensors.numpy.save_file, "pytorch_model.bin": pickled}


@pytest.mark.parametrize("name", WRITERS)
def test_folders_and_shards_of_hugging_face(tmp_path, name):
    folder = sharded(tmp_path / "shards", name, WRITERS[name])
    assert_same(read_state_dict(folder), ONES)
    assert_same(read_state_dict(folder / f"{name}.index.json"), ONES)
    (tmp_path / "one").mkdir()
    WRITERS[name](ONES, tmp_path / "one" / name)
    assert_same(read_state_dict(tmp_path / "one"), ONES)


def test_the_folder_of_a_run_gives_its_best_weights(tmp_path):
    pickled(ZEROS, tmp_path / "epoch_001.pdparams")
    pickled(ONES, tmp_path / "best.pdparams")
    assert_same(read_state_dict(tmp_path), ONES)


def test_an_index_names_only_files_beside_it_that_hold_what_it_says(tmp_path):
    folder = sharded(tmp_path / "shards", "model.safetensors", WRITERS["model.safetensors"])
    index = folder / "model.safetensors.index.json"
    good = index.read_text()
    pickled(ONES, tmp_path / "outside")
    for shard, error in (("../outside", MissingFileError), ("absent", MissingFileError), (7, WeightsError)):
        index.write_text(json.dumps({"weight_map": {"b": shard}}))
        with pytest.raises(error) as caught:
            read_state_dict(folder)
        assert str(index) in str(caught.value)
    index.write_text(good.replace('"b"', '"c"'))
    with pytest.raises(WeightsError, match="names c, which is in none of its shards"):
        read_state_dict(folder)
    for content in ("", "[1]", '{"weight_map": [1]}', "{}"):
        index.write_text(content)
        with pytest.raises(WeightsError, match=r"index\.json is damaged"):
            read_state_dict(folder)
    index.write_text(good)
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"\x10")
    with pytest.raises(WeightsError, match="00001-of-00002"):
        read_state_dict(folder)
