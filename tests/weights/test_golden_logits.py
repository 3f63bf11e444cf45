"""Every checkpoint format of every network with reference numbers: load the generated weights, compare the logits."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from golden import cases, checksum, golden_images, golden_state, images_checksum, info, reference, tolerance
from paddlevit import build_model
from paddlevit.config import get_config
from paddlevit.weights import load_weights

# One image shows as much as two and takes half the time.
CASES = cases(logits=True)


def test_the_generated_weights_and_images_are_those_of_the_reference():
    """A NumPy whose random stream differs would fail here first."""
    for model, fmt in CASES:
        if info(model)["params"] < 6e6 or fmt == "hf" and info(model)["params"] < 21e6:
            assert checksum(golden_state(model, fmt)) == info(model)["formats"][fmt]["state_crc32"]
    assert checksum({"x": golden_images(0, 2, 224)}) == images_checksum(0, 2, 224)
    assert checksum({"x": golden_images(0, 2, 384)}) == images_checksum(0, 2, 384)


@pytest.fixture(scope="module")
def networks():
    """The network of the last case: the formats of one network follow each other."""
    return {}


def network(networks, name):
    if name not in networks:
        networks.clear()
        networks[name] = build_model(get_config(name))
        networks[name].eval()
    return networks[name]


@pytest.mark.parametrize(
    ("name", "fmt"), [pytest.param(*case, marks=[pytest.mark.slow] * (info(case[0])["macs_g"] > 10)) for case in CASES]
)
def test_logits(networks, name, fmt):
    model = network(networks, name)
    report = load_weights(model, golden_state(name, fmt))
    assert report.source == fmt
    assert len(report.loaded) == len(model.state_dict())
    images = golden_images(0, info(name)["batch"], info(name)["image_size"])[:1]
    with paddle.no_grad():
        logits = model(paddle.to_tensor(images)).numpy()
    expected = reference(name, fmt)["logits_f64"][:1]
    assert logits.shape == expected.shape
    assert np.abs(logits - expected).max() <= tolerance(name, fmt)["float32"]


@pytest.mark.parametrize(("name", "fmt"), [case for case in CASES if info(case[0])["macs_g"] < 4])
def test_logits_in_float64(name, fmt):
    paddle.set_default_dtype("float64")
    try:
        model = build_model(get_config(name))
    finally:
        paddle.set_default_dtype("float32")
    model.eval()
    load_weights(model, golden_state(name, fmt), source=fmt)
    images = golden_images(0, info(name)["batch"], info(name)["image_size"])[:1].astype("float64")
    with paddle.no_grad():
        logits = model(paddle.to_tensor(images)).numpy()
    assert np.abs(logits - reference(name, fmt)["logits_f64"][:1]).max() <= tolerance(name, fmt)["float64"]
