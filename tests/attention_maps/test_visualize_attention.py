"""tools/visualize_attention.py writes the pictures that it is asked for, and says what is allowed."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from PIL import Image

from paddlevit import build_model
from paddlevit.commands.visualize_attention import main, parse_args
from paddlevit.config import get_config


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A photograph's worth of noise, wider than high, and weights of two small networks."""
    folder = tmp_path_factory.mktemp("visualize")
    pixels = np.random.default_rng(0).integers(100, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    for name in ("pit_digits", "hrformer_digits"):
        paddle.seed(0)
        paddle.save(build_model(get_config(name)).state_dict(), str(folder / f"{name}.pdparams"))
    (folder / "names.txt").write_text("\n".join(f"digit {i}" for i in range(10)))
    return folder


def run(files, *flags, name="pit_digits", output="out.png"):
    argv = ["-cfg", name, "-pretrained", str(files / f"{name}.pdparams"), "-image", str(files / "photo.png")]
    return main([*argv, "-output", str(files / output), *flags])


@pytest.mark.parametrize(
    ("method", "shown"),
    [
        (None, "what speaks for 7 (grad-rollout)"),
        ("grad-cam", "what speaks for 7 (grad-cam)"),
        ("grad-rollout", "what speaks for 7 (grad-rollout)"),
        ("attention", "where attention looks in one layer (attention)"),
        ("rollout", "where attention looks through all layers (rollout)"),
    ],
)
def test_a_heat_map_has_the_images_size_and_lies_where_the_network_looked(files, method, shown, capsys):
    flags = [] if method is None else ["-method", method]
    assert run(files, *flags, output=f"{method}.png") == 0
    picture = np.asarray(Image.open(files / f"{method}.png")).astype(int)
    photo = np.asarray(Image.open(files / "photo.png")).astype(int)
    assert picture.shape == photo.shape
    # Evaluation cuts a square out of the middle, 15 pixels from each side; beside it the picture is dark.
    np.testing.assert_array_equal(picture[:, :15], photo[:, :15] * 4 // 10)
    np.testing.assert_array_equal(picture[:, 75:], photo[:, 75:] * 4 // 10)
    assert (picture[:, 15:75] != photo[:, 15:75]).any()
    _, said, *hint = capsys.readouterr().out.splitlines()
    assert said == f"written to {files / f'{method}.png'}: {shown}, 90 x 60 pixels"
    assert ["-method all" in line for line in hint] == [True] * (method is None)


def test_classes_have_names(files, capsys):
    labels = ["-labels", str(files / "names.txt"), "-method", "grad-cam"]
    assert run(files, *labels, "-class", "digit 7", output="a.png") == 0
    assert "photo.png: digit 7 (" in capsys.readouterr().out
    assert run(files, *labels, "-class", "7", "-stage", "3", output="b.png") == 0
    assert (files / "a.png").read_bytes() == (files / "b.png").read_bytes()
    assert run(files, *labels, "-class", "7", "-stage", "1", output="b.png") == 0
    assert (files / "a.png").read_bytes() != (files / "b.png").read_bytes()


def test_a_picture_without_a_name_has_that_of_its_image():
    args = parse_args(["-pretrained", "w.pdparams", "-image", "pets/Tom the cat.jpg"])
    assert str(args.output) == "Tom the cat-heat.png"


def test_a_sheet_shows_every_method_and_stage(files):
    assert run(files, "-method", "all", output="new/sheet.png") == 0
    assert run(files, "-method", "features", output="features.png") == 0
    sheet, features = Image.open(files / "new" / "sheet.png"), Image.open(files / "features.png")
    assert sheet.width > 5 * 240  # the image and four methods
    assert sheet.height > features.height + 160 + 96  # above the stages the methods, and the heads
    assert run(files, "-method", "all", name="hrformer_digits", output="branches.png") == 0
    assert Image.open(files / "branches.png").height > 10 * 96  # one, two, three and four resolutions


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-method", "cam"], "argument -method: invalid choice: 'cam'"),
        (["-class", "seven"], "-class seven, allowed: a number from 0 to 9, or a class's name"),
        (["-class", "10"], "-class 10, allowed: a number from 0 to 9"),
        (["-method", "attention", "-class", "1"], "-class 1: grad-cam and grad-rollout show a class, not attention"),
        (["-method", "all", "-stage", "1"], "-stage 1: only grad-cam and attention show one stage, not all"),
        (["-method", "grad-cam", "-stage", "9"], "stage 9, allowed: 1 (stage 1) to 3 (stage 3)"),
        (["-image", "."], "-image . is a folder: name one image"),
        (["-amp"], "-amp: explain runs in float32; drop -amp"),
    ],
)
def test_mistakes(files, flags, message, capsys):
    assert run(files, *flags, output="never.png") == 2
    assert message in capsys.readouterr().err
    assert not (files / "never.png").exists()


def test_mistakes_of_files_and_families(files, capsys):
    assert run(files, "-method", "rollout", name="hrformer_digits") == 2
    assert "method rollout, allowed for HRFormer: grad-cam" in capsys.readouterr().err
    assert run(files, output="picture.xyz") == 2
    assert "picture.xyz: unknown file extension '.xyz', allowed: .png" in capsys.readouterr().err
    assert run(files, "-image", str(files / "none.png")) == 2
    assert "there is no file" in capsys.readouterr().err
