"""The pages of made-up runs, parsed, for the tests of the report."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import yaml
from PIL import Image

from paddlevit.report.page import write_report
from paddlevit.report.predictions import Predictions

VOID = {"meta", "img", "br", "link", "input"}
CONFIG = {
    "MODEL": {"NAME": "pit_digits", "TYPE": "pit"},
    "DATA": {"DATASET": "imagenet2012", "DATA_PATH": "./data/digits"},
    "TRAIN": {"NUM_EPOCHS": 3, "SMOOTHING": 0.1, "MIXUP_ALPHA": 0.0, "CUTMIX_ALPHA": 0.0},
}


class Page(HTMLParser):
    """The parsed page; every element must be closed in order."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.source, self.open, self.tags = text, [], []  # tags: name, attributes, enclosing classes
        self.texts, self.tables, self.titles, self.headline = [], [], [], {}
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = re.sub(r"\s+", " ", "".join(self.texts))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs, " ".join(classes for _, classes in self.open).split()))
        if tag not in VOID:
            self.open.append((tag, attrs.get("class") or ""))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs), " ".join(classes for _, classes in self.open).split()))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        inside = [tag for tag, _ in self.open]
        if "style" in inside or "script" in inside:
            return
        self.texts.append(data)
        if "svg" in inside and inside[-1] == "title":
            self.titles.append(data)
        if "td" in inside or "th" in inside:
            self.tables[-1][-1][-1] += data
        if inside[-1:] == ["dt"]:
            self._tile = data
        if "dl" in inside and inside[-1] in ("b", "span"):
            self.headline.setdefault(self._tile, []).append(data)

    def attributes(self, tag):
        return [attrs for name, attrs, _ in self.tags if name == tag]


def train(epoch, step=10, **values):
    line = {"phase": "train", "epoch": epoch, "step": step, "steps_per_epoch": 10, "loss": 1.5, "lr": 1e-3}
    return {**line, "images_per_sec": 1000.0, "data_wait": 0.02, **values}


def val(epoch, acc1, weights="model", **values):
    line = {"phase": "val", "epoch": epoch, "weights": weights, "loss": 0.25, "acc1": acc1, "acc5": 99.5}
    return {**line, "num_images": 360, **values}


def run_folder(folder, lines, config=CONFIG):
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


def report(folder, lines, predictions=None, config=CONFIG):
    path = write_report(run_folder(folder, lines, config), predictions)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def picture(index, kind="PNG"):
    data = io.BytesIO()
    Image.fromarray(np.full((16, 16), index % 256, "uint8")).save(data, kind)
    return data.getvalue()


def predictions_of(labels, predicted, class_names, **values):
    labels, predicted = np.asarray(labels, "int64"), np.asarray(predicted, "int64")
    confidence = np.random.default_rng(7).random(len(labels)).astype("float32")
    known = {"scores": dict.fromkeys(("precision", "f1"), np.full(100_000, 50.0))}
    known |= {"confidence": confidence, "names": lambda i: f"val/{i}.png", "thumbnail": picture, **values}
    return Predictions(labels=labels, predicted=predicted, class_names=class_names, **known)


def random_predictions(classes, images, seed=0, right=0.6, **values):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    predicted = np.where(rng.random(images) < right, labels, rng.integers(0, classes, images))
    return predictions_of(labels, predicted, [f"class {i}" for i in range(classes)], **values)


LINES = [
    *(train(1, step, loss=2.0 - step / 10) for step in (5, 10)),
    val(1, 61.25),
    val(1, 55.5, "ema"),
    train(2, 5, loss=0.75),
    train(2, loss=0.625, images_per_sec=1234.0),
    val(2, 97.5, acc5=99.25),
    val(2, 98.125, "ema", loss=0.0725),
]
CLOSING = val(2, 98.125, "ema", loss=0.0725, acc5=99.75, best=True)
