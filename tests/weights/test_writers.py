"""Our weights under other projects' names (see test_convert.py too), and in the programs of these projects.

The last tests load what was written into the real timm, transformers and torch where these are installed.
"""

from __future__ import annotations

import numpy as np
import paddle
import pytest
import safetensors.numpy
from tiny import but_slow

from paddlevit import build_model
from paddlevit.commands.convert_weights import main
from paddlevit.config import get_config
from paddlevit.weights import WeightsError, export_state_dict, load_weights, read_state_dict
from paddlevit.weights.writers import WRITERS

SMALL = ("hvt_digits", "cvt_digits", "hrformer_digits", "pit_digits", "regnet_digits")
LAYOUTS = ("ours", "paddlevit", "official", "timm", "hf")


def random_model(name, *opts):
    """A model in which no two weights are alike, statistics of BatchNorm included."""
    model = build_model(get_config(name, opts))
    rng = np.random.default_rng(0)
    for tensor in model.state_dict().values():
        tensor.set_value(rng.uniform(0.5, 1, tensor.shape).astype("float32") * tensor.numpy().std() + tensor.numpy())
    model.eval()
    return model


@pytest.mark.parametrize("name", but_slow(SMALL, "cvt_digits", "hrformer_digits"))
def test_the_command_writes_all_layouts_and_formats_with_the_same_logits(tmp_path, capsys, name):
    model = random_model(name)
    paddle.save(model.state_dict(), str(tmp_path / "in.pdparams"))
    layouts = [layout for layout in LAYOUTS if layout in (*model.weight_sources, "ours")]
    for i in range(max(len(layouts), len(WRITERS))):  # a format writes what it is given: each with one layout at least
        layout, suffix = layouts[i % len(layouts)], list(WRITERS)[i % len(WRITERS)]
        file = str(tmp_path / f"{layout}{suffix}")
        flags = ["-cfg", name, "-input", str(tmp_path / "in.pdparams"), "-output", file, "-layout", layout]
        assert main(flags) == 0
        said = capsys.readouterr().out
        assert f"layout {layout}; read again, its logits differ by 0 at most" in said
        assert ("which is what transformers computes" in said) == (name == "cvt_digits" and layout == "hf")
        assert sorted(read_state_dict(file)) == sorted(export_state_dict(model, layout))


def test_layouts_that_a_family_does_not_have_are_refused():
    with pytest.raises(WeightsError, match="layout must be one of official, ours for this model, got 'timm'"):
        export_state_dict(build_model(get_config("hrformer_digits")), "timm")


def test_half_precision_is_written_as_float32():
    model = paddle.nn.Linear(3, 5)
    model.to(dtype="bfloat16")
    exported = export_state_dict(model, "ours")
    assert exported["weight"].dtype == np.float32
    assert np.array_equal(exported["weight"], model.weight.astype("float32").numpy())


def test_other_programs_read_what_is_written(tmp_path):
    arrays = {"a": np.arange(6, dtype="f4").reshape(2, 3), "count": np.array(3), "empty": np.zeros((0, 2), "f4")}
    for suffix, write in WRITERS.items():
        write(tmp_path / f"w{suffix}", arrays)
    read = [
        safetensors.numpy.load_file(tmp_path / "w.safetensors"),
        paddle.load(str(tmp_path / "w.pdparams"), return_numpy=True),
        *(read_state_dict(tmp_path / f"w{suffix}") for suffix in WRITERS),
    ]
    for state in read:
        assert sorted(state) == sorted(arrays)
        assert all(np.array_equal(state[name], array) for name, array in arrays.items())
        assert all(state[name].dtype == array.dtype for name, array in arrays.items())


def timm_model(name):
    return pytest.importorskip("timm", reason="timm is not installed").create_model(name)


def hugging_face_cvt(_):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    return transformers.CvtForImageClassification(transformers.CvtConfig(num_labels=1000))


def hugging_face_regnet(_):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    widths = {"hidden_sizes": [224, 448, 1232, 3024], "depths": [2, 4, 11, 1], "groups_width": 112}
    return transformers.RegNetForImageClassification(transformers.RegNetConfig(**widths, num_labels=1000))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layout", "opts", "build"),
    [
        ("pit_ti_224", "timm", (), timm_model),
        ("pit_ti_distilled_224", "timm", (), timm_model),
        ("regnety_160", "timm", (), timm_model),
        ("regnety_160", "hf", (), hugging_face_regnet),
        ("cvt-13-224x224", "hf", ("MODEL.ACT", "gelu"), hugging_face_cvt),
    ],
)
def test_the_real_programs_compute_the_same_logits(tmp_path, name, layout, opts, build):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    theirs, ours = build(name).eval(), random_model(name, *opts)
    images = np.random.default_rng(1).standard_normal((1, 3, 224, 224)).astype("float32")
    expected = ours(paddle.to_tensor(images)).numpy()
    WRITERS[".pth"](tmp_path / "w.pth", export_state_dict(ours, layout))
    theirs.load_state_dict(torch.load(tmp_path / "w.pth", weights_only=True), strict=True)
    with torch.no_grad():
        logits = theirs(torch.from_numpy(images))
    logits = getattr(logits, "logits", logits).numpy()
    np.testing.assert_allclose(logits, expected, atol=2e-5 * np.abs(expected).max())
    load_weights(
        build_model(get_config(name, opts)), {key: value.numpy() for key, value in theirs.state_dict().items()}
    )
