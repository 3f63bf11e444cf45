"""The pages as a browser shows them: painted, within their frames, without a script's error, answering the pointer."""

from __future__ import annotations

import re

import pytest
from run_pages import CLOSING, CONFIG, LINES, predictions_of, run_folder, train, val

from paddlevit.report.comparison import write_comparison
from paddlevit.report.history import read_run
from paddlevit.report.page import write_report

# Looks at the page as it is painted, then points at the last third of the first chart, and tells what it has seen.
LOOK = """(() => {
  const box = element => { const r = element.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
  const charts = Array.from(document.querySelectorAll(".chart > svg"), svg => ({
    frame: box(svg),
    curves: Array.from(svg.querySelectorAll(".curve > path"), path => ({
      box: box(path), colour: getComputedStyle(path).stroke,
    })),
  }));
  const svg = document.querySelector(".chart > svg"), [left, top, right, bottom] = box(svg);
  const place = {clientX: left + (right - left) * 0.97, clientY: (top + bottom) / 2};
  svg.dispatchEvent(new PointerEvent("pointermove", place));
  const tip = document.querySelector(".tip");
  return {
    charts, tip: tip.textContent, tip_box: tip.hidden ? null : box(tip),
    page: [document.documentElement.scrollWidth, document.documentElement.clientWidth],
    pictures: Array.from(document.images, image => image.naturalWidth),
    requests: performance.getEntriesByType("resource").map(entry => entry.name.slice(0, 40))
      .filter(name => !name.startsWith("data:")),
  };
})()"""


def look_at(chromium, page, width=1200):
    """What the browser has seen on a page of that width."""
    chromium.errors.clear()
    chromium.open(page.as_uri(), width=width)
    chromium.until("[...document.images].every(image => image.complete)")
    return {**chromium.value(LOOK), "errors": chromium.errors}


def check_charts(seen, *, charts, curves_of_the_first):
    assert seen["errors"] == [] and seen["requests"] == []
    assert seen["page"][0] <= seen["page"][1], "it has to be scrolled sideways"
    assert len(seen["charts"]) == charts
    assert len(seen["charts"][0]["curves"]) == curves_of_the_first
    for chart in seen["charts"]:
        left, top, right, bottom = chart["frame"]
        assert right - left > 150 and bottom - top > 80
        colours = [curve["colour"] for curve in chart["curves"]]
        assert len(set(colours)) == len(colours) and "none" not in colours
        for curve in chart["curves"]:
            x0, y0, x1, y1 = curve["box"]
            assert left <= x0 < x1 <= right and top <= y0 <= y1 <= bottom
            assert x1 - x0 > (right - left) / 4, "a curve of two epochs goes over a part of the width"


@pytest.mark.parametrize("width", [1200, 500])
def test_report(chromium, width, tmp_path):
    predictions = predictions_of([0, 1, 2, 2], [0, 1, 1, 2], ["ant", "bee", "cat"])
    seen = look_at(chromium, write_report(run_folder(tmp_path, [*LINES, CLOSING]), predictions), width)
    check_charts(seen, charts=6, curves_of_the_first=3)
    assert seen["pictures"] == [16] * 4, "the one mistake, and a right answer of each class"
    # What the pointer is told at the end of the loss: the last values of the three curves.
    assert {"0.625", "0.25", "0.0725"} <= set(re.findall(r"\d+\.\d+", seen["tip"]))
    left, _, right, _ = seen["tip_box"]
    assert left >= 0 and right <= seen["page"][1]


def test_comparison(chromium, tmp_path):
    runs = []
    for name, top1 in (("slow", 50.0), ("fast", 75.0)):
        lines = [train(1), val(1, top1), train(2, loss=0.5), val(2, top1 + 10), val(2, top1 + 10, best=True)]
        folder = tmp_path / name
        folder.mkdir()
        runs.append(read_run(run_folder(folder, lines, {**CONFIG, "SEED": len(runs)})))
    seen = look_at(chromium, write_comparison(runs, tmp_path / "compare.html"))
    check_charts(seen, charts=5, curves_of_the_first=2)
    slow, fast = (curve["box"] for curve in seen["charts"][0]["curves"])
    assert fast[1] < slow[1] and fast[3] < slow[3], "the better accuracy is drawn above the other"
    assert re.search(r"slow.*60", seen["tip"]) and re.search(r"fast.*85", seen["tip"])
