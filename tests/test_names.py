"""What people type for -cfg: the variant that is meant, said in one line, or the nearest ones."""

from __future__ import annotations

import pytest

from paddlevit.config import _key, find_variant, get_config, variant_names
from paddlevit.errors import MissingFileError

MEANT = {
    "./configs/pit_b_224.yaml": "pit_b_224",
    "./configs/hvt_s2_patch16_224.yaml": "hvt_s2_patch16_224",
    "hrt/hrt_base": "hrt_base",
    "anywhere/configs/hrt/hrt_tiny.yaml": "hrt_tiny",
    "config\\\\pit_s_224.yml": "pit_s_224",
    "config/hvt-ti-1.json": "hvt_ti_1_patch16_224",
    "config/scale-hvt-ti-4.json": "scale_hvt_ti_4_patch16_224",
    "hvt-ti-1": "hvt_ti_1_patch16_224",
    "hvt_s_2": "hvt_s2_patch16_224",
    "HVT-S0": "hvt_s0_patch16_224",
    "hvt_ti_1_cifar": "hvt_ti_1_cifar100",
    "PiT-B": "pit_b_224",
    "pit_tiny": "pit_ti_224",
    "pit_xs": "pit_xs_224",
    "pit_b_distill": "pit_b_distilled_224",
    "PiT-B-distilled-384": "pit_b_distilled_384",
    "PIT_DIGITS": "pit_digits",
    "cvt13": "cvt-13-224x224",
    "CvT-13-384": "cvt-13-384x384",
    "cvt_21_384x384": "cvt-21-384x384",
    "microsoft/cvt-w24": "cvt-w24-384x384",
    "hrformer_tiny": "hrt_tiny",
    "HRT-S": "hrt_small",
    "hrt_digits": "hrformer_digits",
}


@pytest.mark.parametrize(("typed", "name"), MEANT.items())
def test_what_is_meant_is_taken_and_said_in_one_line(typed, name, caplog):
    assert get_config(typed) == get_config(name)
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == f"'{typed}' means the variant {name}"


def test_one_of_many_processes_says_it(monkeypatch, caplog):
    for rank in ("0", "1"):
        monkeypatch.setenv("PADDLE_TRAINER_ID", rank)
        find_variant("PiT-B")
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [
        ("pit_b_384", ["pit_b_224", "pit_b_distilled_384"]),
        ("pit_m", ["pit_b_224", "pit_s_224", "pit_ti_224"]),
        ("pit_ti_22", ["pit_ti_224"]),
        ("pti_ti_224", ["pit_ti_224"]),
        ("pit_b_224*", ["pit_b_224"]),
        ("hvt_ti", ["hvt_ti_1_patch16_224"]),
        ("hvt_ti_4", ["scale_hvt_ti_4_patch16_224"]),
        ("hvt_s2_patch32_224", ["hvt_s2_patch16_224"]),
        ("./runs/hvt_s2_patch16_384.yaml", ["hvt_s2_patch16_224"]),
        ("cvt", ["cvt-13-224x224", "cvt-21-224x224"]),
        ("cvt-13-224x2240", ["cvt-13-224x224"]),
        ("cvt-w24-384x384-IN-22k", ["cvt-w24-384x384"]),
        ("hrformer_large", ["hrt_base"]),
        ("regnet_160", ["regnety_160"]),
        ("regnetx_160", ["regnety_160"]),
    ],
)
def test_what_is_ambiguous_or_unknown_is_refused_with_the_nearest(typed, nearest):
    with pytest.raises(MissingFileError, match="no configuration file and no variant") as caught:
        get_config(typed)
    message = str(caught.value)
    assert typed in message
    assert all(name in message.split("did you mean")[1] for name in nearest), message


@pytest.mark.parametrize("typed", ["resnet50", "swin_tiny", "output/run1/config.yaml", "", "*"])
def test_nothing_is_near(typed):
    with pytest.raises(MissingFileError) as caught:
        get_config(typed)
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize("name", variant_names())
def test_names_mean_themselves_alone(name, caplog):
    assert find_variant(name) == name
    assert not caplog.records
    assert [other for other in variant_names() if _key(other) == _key(name)] == [name]


def test_an_existing_file_wins(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    for path in ("pit_b_224", "configs/pit_b_224.yaml"):
        (tmp_path / path).write_text("MODEL: {NAME: mine}\n", encoding="utf-8")
        assert get_config(path).MODEL.NAME == "mine"
    assert not caplog.records


def test_a_folder_is_no_configuration_but_does_not_hide_a_variant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pit_digits").mkdir()
    assert get_config("pit_digits").MODEL.NAME == "pit_digits"
    (tmp_path / "photos").mkdir()
    with pytest.raises(MissingFileError, match="photos is a folder: name a yaml file or a variant"):
        get_config("photos")
