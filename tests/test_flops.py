"""Counts against the official networks' figures, and against a hand count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from paddle import nn

from golden import cases, empty_network, info
from paddlevit import build_model
from paddlevit.commands.count_flops import main
from paddlevit.config import get_config
from paddlevit.flops import count

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = [
    pytest.param(name, marks=[pytest.mark.slow] * (info(name)["macs_g"] > 3))
    for name in sorted({n for n, _ in cases()})
]


@pytest.mark.parametrize("name", VARIANTS)
def test_published_networks(name):
    config = get_config(name)
    counts = count(empty_network(name), config.DATA.IMAGE_SIZE)
    assert counts["params"] == info(name)["params"]
    assert counts["macs"] / 1e9 == pytest.approx(info(name)["macs_g"], rel=1e-5)
    for key in ("params", "macs"):
        assert sum(part[key] for part in counts["parts"].values()) == counts[key]
        assert min(part[key] for part in counts["parts"].values()) >= 0


def test_by_hand():
    model = nn.Sequential(nn.Conv2D(3, 8, 3, stride=2, padding=1, groups=1), nn.Flatten(), nn.Linear(8 * 16, 5))
    counts = count(model, 8)
    conv = 8 * 16 * 3 * 9
    assert counts["macs"] == conv + 8 * 16 * 5
    assert counts["params"] == 8 * 27 + 8 + 128 * 5 + 5
    assert counts["attention_macs"] == 0
    assert count(nn.Sequential(nn.AdaptiveAvgPool2D(1), nn.Flatten(), nn.Linear(3, 5)), 8)["macs"] == 3 * 5
    # A layer that is a part by itself has its own products.
    assert counts["parts"] == {
        "0": {"params": 8 * 27 + 8, "macs": conv},
        "2": {"params": 128 * 5 + 5, "macs": 8 * 16 * 5},
    }
    assert model.training


def test_attention_products_are_counted():
    config = get_config("hvt_s0_patch16_224", ["DATA.IMAGE_SIZE", 64, "MODEL.DEPTH", 2])
    counts = count(build_model(config), 64)
    assert counts["attention_macs"] == 2 * 2 * 16 * 16 * 384
    again = count(build_model(config), 64)
    assert again["macs"] == counts["macs"]


def test_command(capsys):
    assert main(["-cfg", "pit_digits", "-json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["params"] == count(build_model(get_config("pit_digits")), 32)["params"]
    assert main(["-cfg", "pit_digits"]) == 0
    assert "total" in capsys.readouterr().out
    assert main(["-cfg", "hvt_digits", "-json", "-opts", "MODEL.POOL_STRIDE", "1"]) == 0
    unpooled = json.loads(capsys.readouterr().out)
    assert unpooled["macs"] > count(build_model(get_config("hvt_digits")), 32)["macs"]
    assert main(["-cfg", "pit_digits", "-image_size", "2"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_documents_state_the_same_counts():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    complexity = (ROOT / "docs" / "complexity.md").read_text(encoding="utf-8")
    for name in {name for name, _ in cases()}:
        params, macs = info(name)["params"], info(name)["macs_g"]
        assert f"| {params / 1e6:.2f} M | {macs:.2f} G |" in readme.split(f"| `{name}` |")[1].split("\n")[0]
        row = complexity.split(f"| `{name}` |")[1].split("\n")[0]
        assert f" {params:,} |" in row and f" {macs:.3f} |" in row
