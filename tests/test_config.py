"""get_config and update_config: precedence, strict keys and types, BASE, frozen, round trip."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from paddlevit.config import (
    CONFIG_DIR,
    ConfigError,
    ConfigKeyError,
    ConfigTypeError,
    get_config,
    update_config,
    with_values,
)
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
    with pytest.raises(ConfigError, match="-batch_size: DATA.BATCH_SIZE must be >= 1, got 0"):
        update_config(get_config(), Namespace(batch_size=0))


def test_options_may_be_paths_and_arrays():
    config = get_config(opts=["DATA.DATA_PATH", Path("~", "a"), "DATA.IMAGENET_MEAN", np.array([0.5, 0.25, 1.0])])
    assert f"{Path.home()}/a" == config.DATA.DATA_PATH
    assert config.DATA.IMAGENET_MEAN == [0.5, 0.25, 1.0]
    with pytest.raises(ConfigTypeError, match="DATA.IMAGENET_MEAN must be a list of numbers"):
        get_config(opts=["DATA.IMAGENET_MEAN", np.zeros([3, 3])])


def test_options_may_be_numbers_of_numpy():
    config = get_config("pit_ti_224", ["TRAIN.BASE_LR", np.float64(1e-3), "TRAIN.NUM_EPOCHS", np.int64(3)])
    assert (config.TRAIN.BASE_LR, config.TRAIN.NUM_EPOCHS) == (1e-3, 3)
    assert (type(config.TRAIN.BASE_LR), type(config.TRAIN.NUM_EPOCHS)) == (float, int)
    assert get_config("pit_ti_224", ["MODEL.DEPTH", list(np.array([2, 6, 4]))]).MODEL.DEPTH == [2, 6, 4]


@pytest.mark.parametrize("opts", [{"TRAIN.BASE_LR": 1e-3}, "TRAIN.BASE_LR 1e-3"])
def test_options_that_are_no_list(opts):
    with pytest.raises(ConfigTypeError, match="must be a list of keys and values"):
        get_config("pit_ti_224", opts)


@pytest.mark.parametrize("value", [3, [1], "pit"])
def test_a_section_that_is_none(tmp_path, value):
    with pytest.raises(ConfigKeyError, match=r"a\.yaml:1: MODEL must be a section of keys, such as MODEL\.TYPE, got"):
        get_config(write(tmp_path / "a.yaml", {"MODEL": value}))


@pytest.mark.parametrize(("base", "said"), [(5, "no variant '5'"), ([5], "no variant '5'"), ({"a": 1}, "BASE must be")])
def test_base_that_is_no_file(tmp_path, base, said):
    with pytest.raises(UserError, match=said):
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
        (["TRAIN.BASE_LR", "fast"], ConfigTypeError, ["opts: TRAIN.BASE_LR must be a number, got 'fast'"]),
        (["TRAIN.NUM_EPOCHS", 2.5], ConfigTypeError, ["TRAIN.NUM_EPOCHS must be an integer, got 2.5"]),
        (["AMP", 1], ConfigTypeError, ["AMP must be true or false, got 1"]),
        (["TRAIN.MODEL_EMA", "yess"], ConfigTypeError, ["TRAIN.MODEL_EMA"]),
        (["MODEL.DEPTH", "[1, two]"], ConfigTypeError, ["MODEL.DEPTH must be a list of integers, got '[1, two]'"]),
        (["MODEL.DEPTH", 3], ConfigTypeError, ["MODEL.DEPTH must be a list of integers, got 3"]),
        (["DATA.BATCH_SIZE", 0], ConfigError, ["DATA.BATCH_SIZE must be >= 1, got 0"]),
        (["AMP_DTYPE", "float8"], ConfigError, ["AMP_DTYPE must be one of float16, bfloat16, got 'float8'"]),
        (["MODEL.TYPE", "vgg"], ConfigError, ["MODEL.TYPE must be one of cvt, hrformer, hvt, pit, regnet, got 'vgg'"]),
        (["SEED"], ConfigError, ["SEED", "pairs"]),
        (["SEED", -1], ConfigError, ["SEED must be >= 0 and < 2147483648, got -1"]),
        (["TRAIN.LAST_EPOCH", -3], ConfigError, ["TRAIN.LAST_EPOCH must be >= 0, got -3"]),
        (["MODEL.DROPPATH", 1.0], ConfigError, ["MODEL.DROPPATH must be >= 0 and < 1, got 1.0"]),
        (["MODEL.DEPTH", [2, 0, 4]], ConfigError, ["MODEL.DEPTH must have entries >= 1, got [2, 0, 4]"]),
        (["TRAIN.GRAD_CLIP", 0.0], ConfigError, ["TRAIN.GRAD_CLIP must be > 0 or null, got 0.0"]),
        (["MODEL.MLP_RATIO", 0.0], ConfigError, ["MODEL.MLP_RATIO must be > 0, got 0.0"]),
        (["DATA.IMAGE_CHANNELS", 0], ConfigError, ["DATA.IMAGE_CHANNELS must be >= 1, got 0"]),
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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "bad.yaml:1: expected"),
        ("- 1", "bad.yaml holds no keys"),
        ("", "bad.yaml holds no keys"),
        ("\x00", "bad.yaml:1: not a yaml file (special characters are not allowed)"),
        ("[" * 2000, "bad.yaml is nested too deeply"),
        (
            "SEED: 1\nTRAIN:\n  NUM_EPOCHS: 2\nTRAIN:\n  BASE_LR: 1\n",
            "bad.yaml:4: 'TRAIN' is given twice, first in line 2",
        ),
        ("TRAIN: {HFLIP: 0.1, HFLIP: 0.2}\n", "bad.yaml:1: 'HFLIP' is given twice, first in line 1"),
        ("SEED: 1\nTRAIN: &a\n  OPTIMIZER: *a\n", "bad.yaml:2: found unconstructable recursive node"),
        ("A: &a [1]\nB: &b [*a, *b]\n", "bad.yaml:2: found unconstructable recursive node"),
        ("TRAIN:\n  ? [a]\n  : 1\n", "bad.yaml:2: a key must be text"),
        ("SEED: !!python/name:os.system\n", "bad.yaml:1: could not determine a constructor"),
        ("SEED: 1\nTRAIN:\n  SMOOTHING: none\n", "bad.yaml:3: TRAIN.SMOOTHING must be a number, got 'none'"),
        ("FOO: {}\n", "bad.yaml:1: there is no key 'FOO'"),
        ("SEED: {}\n", "bad.yaml:1: SEED must be an integer, got None"),
    ],
)
def test_files_that_are_refused_by_file_and_line(tmp_path, text, said):
    (tmp_path / "bad.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        get_config(tmp_path / "bad.yaml")
    assert said in str(caught.value)


@pytest.mark.parametrize("of", ["{{k0: {0}, k1: {0}, k2: {0}, k3: {0}}}", "[{0}, {0}, {0}, {0}]"])
def test_aliases_of_aliases_end(tmp_path, of):
    lines = ["a0: &a0 []", *(f"a{i}: &a{i} {of.format(f'*a{i - 1}')}" for i in range(1, 9)), "SEED: *a8"]
    (tmp_path / "a.yaml").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ConfigError, match="more than 10000 values"):
        get_config(tmp_path / "a.yaml")


@pytest.mark.parametrize("line", ["SEED: {}", "MODEL.TYPE: {}", "DATA: {}", "TRAIN.GRAD_CLIP: {}", "BASE: {{a: {}}}"])
def test_messages_cut_long_values_short(tmp_path, line):
    for value in (f"[{'1000, ' * 9000}]", f"'{'long ' * 100}'"):
        (tmp_path / "a.yaml").write_text(line.format(value), encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            get_config(tmp_path / "a.yaml")
        assert len(str(caught.value)) < 500


def test_anchors_and_merges(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "BASE: hrt_tiny\nMODEL:\n  HRT:\n    STAGE3: &s {NUM_MODULES: 5}\n    STAGE4: {<<: *s, NUM_BRANCHES: 4}\n",
        encoding="utf-8",
    )
    stages = get_config(tmp_path / "a.yaml").MODEL.HRT
    assert (stages.STAGE3.NUM_MODULES, stages.STAGE4.NUM_MODULES, stages.STAGE2.NUM_MODULES) == (5, 5, 1)


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("MODEL.NAME", "010", "010"),
        ("MODEL.NAME", "1:30", "1:30"),
        ("MODEL.NAME", "on", "on"),
        ("MODEL.NAME", "2026-01-02", "2026-01-02"),
        ("MODEL.NAME", "1e3", "1e3"),
        ("MODEL.PRETRAINED", "~", ""),
        ("MODEL.PRETRAINED", "", ""),
        ("MODEL.PRETRAINED", "'null'", "null"),
        ("TRAIN.MODEL_EMA", "yes", True),
        ("TRAIN.RAND_AUGMENT", "Off", False),
        ("TRAIN.DISTILLATION_TYPE", "none", "none"),
        ("TRAIN.NUM_EPOCHS", "1_000", 1000),
        ("TRAIN.BASE_LR", "1e-3", 1e-3),
        ("TRAIN.BASE_LR", ".5", 0.5),
        ("TRAIN.BASE_LR", "0", 0.0),
        ("TRAIN.FREEZE", "[on, 010]", ["on", "010"]),
        *[("TRAIN.GRAD_CLIP", nothing, None) for nothing in ("none", "None", "null", "~", "'null'", "")],
        *[("TRAIN.LINEAR_SCALED_LR", nothing, None) for nothing in ("none", "NULL", "~")],
        ("DATA.IMAGENET_MEAN", "[0, 0, 0]", [0.0, 0.0, 0.0]),
    ],
)
def test_a_keys_type_says_what_is_meant(tmp_path, key, written, value):
    section, leaf = key.split(".")
    (tmp_path / "a.yaml").write_text(f"{section}:\n  {leaf}: {written}\n", encoding="utf-8")
    got = get_config(tmp_path / "a.yaml")[section][leaf]
    assert (got, type(got)) == (value, type(value))


@pytest.mark.parametrize(
    ("key", "written", "said"),
    [
        ("TRAIN.NUM_EPOCHS", "010", "must be an integer, got '010'"),
        ("TRAIN.NUM_EPOCHS", "1:30", "must be an integer, got '1:30'"),
        ("TRAIN.NUM_EPOCHS", "on", "must be an integer, got 'on'"),
        ("TRAIN.NUM_EPOCHS", "", "must be an integer, got None"),
        ("TRAIN.BASE_LR", "010", "must be a number, got '010'"),
        ("TRAIN.BASE_LR", ".inf", "must be a number, got '.inf'"),
        ("TRAIN.GRAD_CLIP", "off", "must be a number or null, got 'off'"),
        ("TRAIN.DISTILLATION_TYPE", "off", "must be one of none, soft, hard, got 'off'"),
        ("DATA.DATA_PATH", "~", "must be text, got None"),
        ("DATA.IMAGENET_MEAN", "[123.675, 116.28, 103.53]", "must have entries >= 0 and <= 1, got [123.675,"),
        ("DATA.IMAGENET_STD", "[58.395, 57.12, 57.375]", "must have entries > 0 and <= 1, got [58.395,"),
        ("DATA.NUM_WORKERS", "-2", "must be >= -1, got -2"),
    ],
)
def test_what_could_be_meant_otherwise_is_refused(tmp_path, key, written, said):
    section, leaf = key.split(".")
    (tmp_path / "a.yaml").write_text(f"SEED: 1\n{section}:\n  {leaf}: {written}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        get_config(tmp_path / "a.yaml")
    assert f"a.yaml:3: {key} {said}" in str(caught.value)


def test_every_range_of_a_family_is_of_one_of_its_keys():
    for path in CONFIG_DIR.glob("*/_family.yaml"):
        own = yaml.safe_load(path.read_text(encoding="utf-8"))
        model = get_config(None, ["MODEL.TYPE", path.parent.name]).MODEL
        for key in [*own.get("OPTIONAL", {}), *(key for keys in own.get("RANGES", {}).values() for key in keys)]:
            node = model
            for part in key.split("."):
                node = node[part]


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
