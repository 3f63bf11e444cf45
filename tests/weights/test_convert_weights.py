"""tools/convert_weights.py as a user calls it, and the commands of docs/weights.md."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import paddle
import pytest

from golden import golden_state
from paddlevit import build_model
from paddlevit.commands.convert_weights import main
from paddlevit.config import get_config
from paddlevit.weights import convert_state_dict, read_state_dict

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A folder with a file as the authors of PiT publish it, as far as the reader is concerned."""
    monkeypatch.chdir(tmp_path)
    state = golden_state("pit_ti_224", "official")
    Path("pit_ti_730.pth").write_bytes(pickle.dumps(state))
    return state


def test_the_documented_commands(published, capsys):
    for flags in re.findall(r"^paddlevit convert (.*)$", PAGE.replace("\\\n", ""), re.MULTILINE):
        assert main(flags.split()) == 0
    assert "160 parameters and buffers loaded, source official" in capsys.readouterr().out
    assert sorted(path.suffix for path in Path().iterdir()) == [".pdparams", ".pth", ".safetensors"]
    assert sorted(read_state_dict("pit_ti_224.safetensors")) == sorted(golden_state("pit_ti_224", "timm"))
    model = build_model(get_config("pit_ti_224"))
    written = paddle.load("pit_ti_224.pdparams", return_numpy=True)
    expected = convert_state_dict(published, model, "official")
    assert list(written) == list(model.state_dict())
    assert all(np.array_equal(written[name], expected[name]) for name in expected)


def test_the_documented_python(published, capsys):
    (code,) = re.findall(r"```py\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "docs/weights.md", "exec"), {})
    assert "1 resized: pos_embed" in capsys.readouterr().out


def test_flags_with_equals_signs_and_two_dashes(published):
    assert main(["-cfg=pit_ti_224", "--input", "pit_ti_730.pth", "-output", "a.pdparams", "-source=official"]) == 0


def test_the_moving_average_of_a_checkpoint(published, capsys):
    averaged = {name: np.zeros_like(array) for name, array in published.items()}
    Path("checkpoint.pth").write_bytes(pickle.dumps({"model": published, "model_ema": averaged}))
    flags = ["-cfg", "pit_ti_224", "-input", "checkpoint.pth", "-output", "a.pdparams"]
    for which in ("model", "ema"):
        assert main([*flags, "-weights", which]) == 0
        assert np.any(read_state_dict("a")["cls_token"]) == (which == "model")
    assert "weights under 'model_ema', left out: model" in capsys.readouterr().out
    assert main([*flags, "-weights", "best"]) == 2
    assert "-weights" in capsys.readouterr().err


def test_weights_of_another_number_of_classes(published, capsys):
    state = {name: array[:3] if name.startswith("head.") else array for name, array in published.items()}
    Path("pit_ti_730.pth").write_bytes(pickle.dumps(state))
    flags = ["-cfg", "pit_ti_224", "-input", "pit_ti_730.pth", "-output", "a.pdparams"]
    assert main(flags) == 2
    assert "the file has 3 classes, the model 1000 (MODEL.NUM_CLASSES)" in capsys.readouterr().err
    assert main([*flags, "-opts", "MODEL.NUM_CLASSES", "3"]) == 0


def test_weights_for_grey_images(tmp_path, capsys):
    grey = ["DATA.IMAGE_CHANNELS", "1"]
    paddle.save(build_model(get_config("pit_digits", grey)).state_dict(), str(tmp_path / "a.pdparams"))
    flags = ["-cfg", "pit_digits", "-input", str(tmp_path / "a"), "-output", str(tmp_path / "a.pth")]
    assert main([*flags, "-opts", *grey]) == 0
    assert "differ by 0 at most" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"-cfg": "pit_huge"}, "pit_huge"),
        ({"-cfg": "pit_s_224"}, "of another shape in the file"),
        ({"-input": "absent.pth"}, "no weights file absent.pth"),
        ({"-output": "out.pt"}, "-output must end in .pdparams, .safetensors or .pth, got out.pt"),
        ({"-layout": "hf"}, "layout must be one of official, timm, paddlevit, ours for this model, got 'hf'"),
        ({"-source": "torch"}, "allowed: auto, official, timm, paddlevit, ours"),
        ({"-output": "pit_ti_730.pth/x.pdparams"}, "pit_ti_730.pth/x.pdparams"),
        ({"-bogus": "1"}, "-bogus"),
    ],
)
def test_mistakes_end_with_code_2_and_leave_nothing_behind(published, capsys, changed, said):
    flags = {"-cfg": "pit_ti_224", "-input": "pit_ti_730.pth", "-output": "out.pdparams", **changed}
    assert main([word for item in flags.items() for word in item]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert said in message
    assert "Traceback" not in message
    assert [path.name for path in Path().iterdir()] == ["pit_ti_730.pth"]


def test_an_existing_file_survives_a_failure(published, monkeypatch):
    Path("out.pdparams").write_text("old")

    def full(state, path):
        Path(path).write_text("half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(paddle, "save", full)
    assert main(["-cfg", "pit_ti_224", "-input", "pit_ti_730.pth", "-output", "out.pdparams"]) == 2
    assert Path("out.pdparams").read_text() == "old"
    assert sorted(path.name for path in Path().iterdir()) == ["out.pdparams", "pit_ti_730.pth"]
