"""report/precisions.py: the picture of what `-precision auto` measured, read again."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from paddlevit.report.precisions import write_precisions

ROWS = [("f32", 6.4, 79.2, 0.0), ("bf16", 3.2, 79.1, 0.1), ("int8", 4.0, 78.0, 1.2)]
SVG = "{http://www.w3.org/2000/svg}"


def test_points_stand_where_the_axes_say(tmp_path):
    rows = [dict(zip(("precision", "ms_per_image", "top1", "drop"), row), within=row[3] <= 0.5) for row in ROWS]
    path = write_precisions(tmp_path / "p.svg", {"taken": "bf16", "max_drop": 0.5, "rows": rows}, "a <model>")
    root = ElementTree.parse(path).getroot()
    texts = {text.text: text for text in root.iter(f"{SVG}text")}
    assert "a <model>" in texts

    def on_axis(value, along, low, high):
        """Where `value` is, by the places of two labels of the axis."""
        first, last = (float(texts[label].get(along)) - (4 if along == "y" else 0) for label in (low, high))
        return first + (value - float(low)) / (float(high) - float(low)) * (last - first)

    groups = {text.text: group for group in root.iter(f"{SVG}g") for text in group.iter(f"{SVG}text")}
    assert set(groups) == {"f32", "bf16, taken", "int8"}
    for name, (_, ms, top1, _) in zip(("f32", "bf16, taken", "int8"), ROWS):
        circle = groups[name].find(f"{SVG}circle")
        assert float(circle.get("cx")) == pytest.approx(on_axis(ms, "x", "0", "8"), abs=0.2)
        assert float(circle.get("cy")) == pytest.approx(on_axis(top1, "y", "78.0", "79.0"), abs=0.2)
        assert (circle.get("class") == "taken") == (name == "bf16, taken")
    paths = {each.get("class"): each.get("d") for each in root.iter(f"{SVG}path")}
    assert float(re.findall(r"[\d.]+", paths["floor"])[1]) == pytest.approx(on_axis(78.7, "y", "78.0", "79.0"), abs=0.2)
    assert paths["front"].count("L") == 1, "from bf16 to f32; int8 is slower and worse than bf16"
