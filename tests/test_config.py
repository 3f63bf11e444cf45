"""get_config and update_config: precedence, strict keys and types, BASE, frozen, round trip."""

from __future__ import annotations

from argparse import Namespace

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from paddlevit.config import ConfigError, ConfigKeyError, ConfigTypeError, get_config, update_config, with_values
from paddlevit.errors import MissingFileError, UserError


def write(path, content):
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_variant_by_name_and_by_path():
    by_name = get_config("pit_b_224")
    assert by_name == get_config("configs/pit/pit_b_224.yaml")
    assert (by_name.MODEL.TYPE, by_name.MODEL.NUM_CLASSES, by_name.DATA.CROP_PCT) == ("pit", 1000, 0.9)


def test_precedence_defaults_base_yaml_flags_opts(tmp_path):
    write(tmp_path / "base.yaml", {"TRAIN": {"NUM_EPOCHS": 2, "BASE_LR": 2.0, "END_LR": 2.0, "ACCUM_ITER": 2}})
    own = {
        "BASE": ["", "base.yaml"],
        "TRAIN": {"BASE_LR": 3.0, "END_LR": 3.0, "ACCUM_ITER": 3},
        "DATA": {"BATCH_SIZE": 3},
    }
    cfg = write(tmp_path / "own.yaml", own)
    args = Namespace(cfg=str(cfg), accum_iter=4, batch_size=4, eval=False, opts=["TRAIN.ACCUM_ITER", "5"])
    config = update_config(get_config(), args)
    assert config.TRAIN.NUM_EPOCHS == 2
    assert (config.TRAIN.BASE_LR, config.TRAIN.END_LR) == (3.0, 3.0)
    assert (config.DATA.BATCH_SIZE, config.TRAIN.ACCUM_ITER) == (4, 5)
    assert config.SEED == 0


@pytest.mark.parametrize(
    ("flag", "key"), [("num_workers", "DATA.NUM_WORKERS"), ("seed", "SEED"), ("num_classes", "MODEL.NUM_CLASSES")]
)
def test_a_flag_may_be_zero(flag, key):
    config = update_config(get_config("pit_ti_224", ["SEED", 5]), Namespace(**{flag: 0}))
    section, _, leaf = key.rpartition(".")
    assert (config[section] if section else config)[leaf] == 0
    with pytest.raises(ConfigError, match="DATA.BATCH_SIZE is 0"):
        update_config(get_config(), Namespace(batch_size=0))


def test_options_may_be_numbers_of_numpy():
    config = get_config("pit_ti_224", ["TRAIN.BASE_LR", np.float64(1e-3), "TRAIN.NUM_EPOCHS", np.int64(3)])
    assert (config.TRAIN.BASE_LR, config.TRAIN.NUM_EPOCHS) == (1e-3, 3)
    assert (type(config.TRAIN.BASE_LR), type(config.TRAIN.NUM_EPOCHS)) == (float, int)
    assert get_config("pit_ti_224", ["MODEL.DEPTH", list(np.array([2, 6, 4]))]).MODEL.DEPTH == [2, 6, 4]


@pytest.mark.parametrize("opts", [{"TRAIN.BASE_LR": 1e-3}, "TRAIN.BASE_LR 1e-3"])
def test_options_that_are_no_list(opts):
    with pytest.raises(ConfigTypeError, match="a list of keys and values"):
        get_config("pit_ti_224", opts)


@pytest.mark.parametrize("value", [3, [1], "pit"])
def test_a_section_that_is_none(tmp_path, value):
    with pytest.raises(ConfigKeyError, match=r"a\.yaml: MODEL is .*, allowed: a section of keys, such as MODEL\."):
        get_config(write(tmp_path / "a.yaml", {"MODEL": value}))


@pytest.mark.parametrize("base", [5, [5], {"a": 1}])
def test_base_that_is_no_file(tmp_path, base):
    with pytest.raises(ConfigTypeError, match="BASE"):
        get_config(write(tmp_path / "a.yaml", {"BASE": base}))


@pytest.mark.parametrize("name", ["pit_*", "*", "_family", "_digits"])
def test_what_is_no_variants_name(name):
    with pytest.raises(MissingFileError):
        get_config(name)


def test_empty_sections(tmp_path):
    (tmp_path / "a.yaml").write_text("MODEL:\nDATA: {}\nTRAIN:\n  NUM_EPOCHS: 7\n", encoding="utf-8")
    assert get_config(tmp_path / "a.yaml").TRAIN.NUM_EPOCHS == 7


def test_base_that_leads_back_is_named(tmp_path):
    write(tmp_path / "a.yaml", {"BASE": "b.yaml"})
    write(tmp_path / "b.yaml", {"BASE": "a.yaml"})
    with pytest.raises(ConfigError, match="leads back"):
        get_config(tmp_path / "a.yaml")


def test_base_may_be_a_variant(tmp_path):
    cfg = write(tmp_path / "own.yaml", {"BASE": "pit_ti_224", "MODEL": {"NUM_CLASSES": 3}})
    config = get_config(cfg)
    assert (config.MODEL.NUM_HEADS, config.MODEL.NUM_CLASSES) == ([2, 4, 8], 3)


@pytest.mark.parametrize(
    ("opts", "error", "said"),
    [
        (["TRAIN.BASE_LRR", 1.0], ConfigKeyError, ["TRAIN.BASE_LRR", "'TRAIN.BASE_LR'"]),
        (["train.base_lr", 1.0], ConfigKeyError, ["'TRAIN.BASE_LR'"]),
        (["MODEL.EMBED_DIM", 3], ConfigKeyError, ["family pit"]),
        (["TRAIN", 3], ConfigKeyError, ["TRAIN"]),
        (["TRAIN.BASE_LR", "fast"], ConfigTypeError, ["TRAIN.BASE_LR", "'fast'", "number"]),
        (["TRAIN.NUM_EPOCHS", 2.5], ConfigTypeError, ["TRAIN.NUM_EPOCHS", "2.5", "whole number"]),
        (["AMP", 1], ConfigTypeError, ["AMP", "true or false"]),
        (["TRAIN.MODEL_EMA", "yess"], ConfigTypeError, ["TRAIN.MODEL_EMA"]),
        (["MODEL.DEPTH", "[1, two]"], ConfigTypeError, ["MODEL.DEPTH", "'two'"]),
        (["MODEL.DEPTH", 3], ConfigTypeError, ["MODEL.DEPTH", "list"]),
        (["DATA.BATCH_SIZE", 0], ConfigError, ["DATA.BATCH_SIZE", "0", "1 and above"]),
        (["AMP_DTYPE", "float8"], ConfigError, ["float8", "float16, bfloat16"]),
        (["MODEL.TYPE", "vgg"], ConfigError, ["vgg", "pit"]),
        (["SEED"], ConfigError, ["SEED", "pairs"]),
        (["SEED", -1], ConfigError, ["SEED", "-1", "0 to 2147483647"]),
        (["TRAIN.LAST_EPOCH", -3], ConfigError, ["TRAIN.LAST_EPOCH", "-3", "0 and above"]),
        (["MODEL.DROPPATH", 1.0], ConfigError, ["MODEL.DROPPATH", "0 to less than 1"]),
        (["MODEL.DEPTH", [2, 0, 4]], ConfigError, ["MODEL.DEPTH", "[2, 0, 4]", "1 and above"]),
        (["TRAIN.GRAD_CLIP", 0.0], ConfigError, ["TRAIN.GRAD_CLIP", "0.0", "above 0, or null"]),
        (["MODEL.MLP_RATIO", 0.0], ConfigError, ["MODEL.MLP_RATIO", "0.0", "above 0"]),
        (["DATA.IMAGE_CHANNELS", 0], ConfigError, ["DATA.IMAGE_CHANNELS", "0", "1 and above"]),
        (["MODEL.TYPE", "cvt", "MODEL.STRIDE_KV", [0, 2, 2]], ConfigError, ["MODEL.STRIDE_KV", "[0, 2, 2]"]),
        (["TRAIN.BASE_LR", "nan"], ConfigTypeError, ["TRAIN.BASE_LR", "nan"]),
    ],
)
def test_mistakes_are_named(opts, error, said):
    with pytest.raises(error) as caught:
        get_config(None, opts)
    assert isinstance(caught.value, UserError)
    assert all(part in str(caught.value) for part in said), str(caught.value)


def test_key_error_is_a_key_error_and_names_the_file(tmp_path):
    cfg = write(tmp_path / "typo.yaml", {"DATA": {"BATCHSIZE": 3}})
    with pytest.raises(KeyError) as caught:
        get_config(cfg)
    assert "typo.yaml" in str(caught.value)
    assert "DATA.BATCH_SIZE" in str(caught.value)


def test_missing_file_and_near_variant(tmp_path):
    with pytest.raises(MissingFileError, match="pit_ti_224"):
        get_config("pit_ti_22")
    with pytest.raises(FileNotFoundError, match="nowhere.yaml"):
        get_config(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("text", ["{", "- 1", "", "\x00"])
def test_no_yaml(tmp_path, text):
    (tmp_path / "bad.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="bad.yaml"):
        get_config(tmp_path / "bad.yaml")


def test_the_users_own_folder_in_files_and_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    (tmp_path / "a.yaml").write_text("OUTPUT: ~/runs\nMODEL: {PRETRAINED: ~/w.pdparams}\n", encoding="utf-8")
    config = update_config(get_config(), Namespace(cfg=str(tmp_path / "a.yaml"), data_path="~/data", resume="a~b"))
    assert (config.OUTPUT, config.MODEL.PRETRAINED) == ("/home/ada/runs", "/home/ada/w.pdparams")
    assert (config.DATA.DATA_PATH, config.MODEL.RESUME) == ("/home/ada/data", "a~b")


def test_frozen_and_defaults_not_shared():
    config = get_config("pit_ti_224")
    with pytest.raises(AttributeError):
        config.SEED = 1
    config.MODEL.DEPTH.append(7)
    config.TRAIN.OPTIMIZER.BETAS.append(0.5)
    assert get_config("pit_ti_224").MODEL.DEPTH == [2, 6, 4]
    assert get_config().TRAIN.OPTIMIZER.BETAS == [0.9, 0.999]


@pytest.mark.parametrize("name", ["pit_b_distilled_224", "hvt_s2_patch16_224", "pit_digits"])
def test_dump_loads_as_the_same_run(tmp_path, name):
    config = get_config(name, ["TRAIN.GRAD_CLIP", "1.5", "TRAIN.BASE_LR", "1e-7", "OUTPUT", "3"])
    (tmp_path / "config.yaml").write_text(config.dump(), encoding="utf-8")
    assert get_config(tmp_path / "config.yaml") == config


def test_numbers_that_yaml_takes_for_text(tmp_path):
    (tmp_path / "a.yaml").write_text("TRAIN:\n  WARMUP_START_LR: 1e-6\n  WARMUP_EPOCHS: 5\n", encoding="utf-8")
    config = get_config(
        tmp_path / "a.yaml", ["TRAIN.END_LR", "5e-4", "TRAIN.GRAD_CLIP", "none".replace("none", "null")]
    )
    assert (config.TRAIN.WARMUP_START_LR, config.TRAIN.END_LR, config.TRAIN.GRAD_CLIP) == (1e-6, 5e-4, None)
    assert isinstance(config.TRAIN.WARMUP_EPOCHS, float)


def test_number_of_classes_is_inferred_only_where_nobody_gave_it():
    assert get_config("pit_ti_224").DATA.INFER_NUM_CLASSES
    assert not get_config("pit_ti_224", ["MODEL.NUM_CLASSES", 1000]).DATA.INFER_NUM_CLASSES
    assert not with_values(get_config(), {"MODEL.NUM_CLASSES": 5}).DATA.INFER_NUM_CLASSES


def test_paddlevit_yaml_says_by_the_objective_that_there_are_two_heads(tmp_path):
    model = {"TYPE": "PiT", "NAME": "x", "PATCH_SIZE": 14, "STRIDE": 7, "BASE_DIMS": [64, 64, 64]}
    cfg = write(tmp_path / "a.yaml", {"MODEL": model, "TRAIN": {"DISTILLATION_TYPE": "hard"}})
    assert get_config(cfg).MODEL.DISTILLED
    assert not get_config(cfg, ["TRAIN.DISTILLATION_TYPE", "none"]).MODEL.DISTILLED
    assert not get_config(cfg, ["MODEL.DISTILLED", False]).MODEL.DISTILLED


@given(st.text(), st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers())))
def test_any_option_works_or_is_a_config_error(key, value):
    try:
        get_config(None, [key, value])
    except ConfigError as error:
        assert str(error)
