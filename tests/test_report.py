"""The page of a run: what it shows against independent figures, and what it survives."""

import base64
import io
import json
import math
import os
import re
from collections import Counter
from datetime import datetime
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from paddlevit.errors import MissingFileError, UserError
from paddlevit.report import Predictions, write_report
from paddlevit.report.chart import axis_ticks, thinned, tick_labels

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
    known = {"confidence": confidence, "names": lambda i: f"val/{i}.png", "thumbnail": picture, **values}
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


def test_headline_equals_the_lines(tmp_path):
    page = report(tmp_path, [*LINES, CLOSING])
    assert page.headline == {
        "best top-1": ["98.12 %", "EMA weights, epoch 2"],
        "top-5": ["99.75 %", "on 360 images"],
        "validation loss": ["0.0725", "of the best"],
        "training loss": ["0.625", "last line"],
        "images/s": ["1,000", "training, median"],
    }
    assert "pit_digits" in page.text and "imagenet2012" in page.text and "./data/digits" in page.text
    assert "not finished" not in page.text
    assert "includes label smoothing, so" in page.text


def test_date_is_that_of_the_last_line(tmp_path):
    path = run_folder(tmp_path, LINES) / "metrics.jsonl"
    noon = datetime(2021, 3, 4, 12, 5).timestamp()
    os.utime(path, (noon, noon))
    write_report(tmp_path)
    assert "2021-03-04 12:05" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_training_time_adds_up_the_seconds(tmp_path):
    page = report(tmp_path, [train(1, 5, seconds=30.0), train(1, seconds=45.5), val(1, 50.0, best=True)])
    assert page.headline["training time"] == ["1 min 16 s", "without validation"]


def test_points_of_the_curves(tmp_path):
    page = report(tmp_path, [*LINES, CLOSING])
    assert page.titles.count("epoch 1.5: training 0.75") == 1
    assert [t for t in page.titles if t.endswith("%") and ": validation " in t] == [
        *("epoch 1: validation 61.25 %", "epoch 2: validation 97.50 %"),
        *("epoch 1: validation 99.50 %", "epoch 2: validation 99.25 %"),
    ]
    assert "epoch 2: validation, EMA 98.12 %" in page.titles
    assert not any("99.75" in title for title in page.titles), "the closing line is no point of a curve"
    assert len([t for t in page.titles if ": training 0.001" in t]) == 4
    assert page.titles.count("epoch 2: training 2.00 %") == 1


def test_points_lie_where_the_axis_says(tmp_path):
    page = report(tmp_path, [val(1, 20.0), val(2, 40.0), val(4, 90.0)])
    chart = page.source.split("<h3>Top-1 accuracy, %</h3>")[1].split("</figure>")[0]
    ticks = re.findall(r'<text class="(.)" x="([\d.]+)" y="([\d.]+)">([\d.]+)</text>', chart)
    y_of = {float(label): float(y) - 4 for kind, _, y, label in ticks if kind == "y"}
    x_of = {float(label): float(x) for kind, x, _, label in ticks if kind == "x"}
    circles = [tuple(map(float, pair)) for pair in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', chart)]
    low, high = min(y_of), max(y_of)
    for (x, y), (epoch, value) in zip(circles, [(1, 20.0), (2, 40.0), (4, 90.0)]):
        assert x == pytest.approx(x_of[epoch], abs=0.11)
        assert y == pytest.approx(y_of[low] + (value - low) / (high - low) * (y_of[high] - y_of[low]), abs=0.2)
    assert len(circles) == 3


def test_page_fetches_nothing(tmp_path):
    page = report(tmp_path, LINES, random_predictions(10, 360))
    assert not re.search(r"https?:|@import|url\(|//[a-z]+\.", page.source.replace("\n//", "\n"))
    for tag, attrs, _ in page.tags:
        assert tag not in ("link", "iframe", "object", "base", "form", "a")
        assert not {"href", "srcset", "xlink:href", "action", "poster"} & set(attrs)
        assert attrs.get("src", "data:").startswith("data:")
        assert tag != "script" or attrs == {}
    policy = next(attrs["content"] for attrs in page.attributes("meta") if "http-equiv" in attrs)
    assert policy.startswith("default-src 'none'")


@pytest.mark.parametrize(("classes", "images"), [(1, 5), (2, 40), (10, 360), (50, 2000)])
def test_confusion_matrix_equals_numpy(tmp_path, classes, images):
    predictions = random_predictions(classes, images, seed=classes)
    expected = np.zeros((classes, classes), int)
    for true, predicted in zip(predictions.labels, predictions.predicted):
        expected[true, predicted] += 1
    head, *rows = report(tmp_path, LINES, predictions).tables[0]
    assert head[1:] == [row[0] for row in rows] == [f"class {i}" for i in range(classes)]
    shown = [[int(cell or 0) for cell in row[1:]] for row in rows]
    np.testing.assert_array_equal(shown, expected)


def test_heat_follows_the_share_of_the_row(tmp_path):
    page = report(tmp_path, LINES, predictions_of([0] * 100 + [1] * 4, [0] * 99 + [1] + [0, 0, 0, 1], "ab"))
    cells = [(a.get("class") or "") for tag, a, around in page.tags if tag == "td" and "matrix" in around]
    assert cells[1:] == ["r h9", "w h1", "w h8", "r h5"]


def test_many_classes_show_the_most_frequent_confusions(tmp_path):
    predictions = random_predictions(60, 3000, right=0.3)
    pairs = Counter((t, p) for t, p in zip(predictions.labels.tolist(), predictions.predicted.tolist()) if t != p)
    images = Counter(predictions.labels.tolist())
    page = report(tmp_path, LINES, predictions)
    head, *rows = page.tables[0]
    assert head == ["true class", "taken for", "images", "of the true class"]
    assert [int(row[2]) for row in rows] == sorted(pairs.values(), reverse=True)[:30]
    for true, predicted, count, share in rows:
        true, predicted = int(true.split()[1]), int(predicted.split()[1])
        assert int(count) == pairs[true, predicted]
        assert share == f"{100 * pairs[true, predicted] / images[true]:.1f} %"
    right = int((predictions.labels == predictions.predicted).sum())
    assert f"{right:,} of 3,000 images are right, {3000 - right:,} wrong." in page.text


def test_class_accuracy_is_worst_first(tmp_path):
    labels, predicted = [0] * 4 + [1] * 2 + [3] * 8 + [4] * 2, [0, 0, 0, 1] + [1, 1] + [3] * 2 + [0] * 6 + [3, 4]
    page = report(tmp_path, LINES, predictions_of(labels, predicted, ["a", "b", "c", "d", "e"]))
    assert [[row[0], row[1], row[3]] for row in page.tables[1][1:]] == [
        ["d", "25.0 %", "2 of 8"],
        ["e", "50.0 %", "1 of 2"],
        ["a", "75.0 %", "3 of 4"],
        ["b", "100.0 %", "2 of 2"],
    ]
    assert "1 class has no validation image." in page.text


def test_class_accuracy_is_collapsed_beyond_thirty(tmp_path):
    page = report(tmp_path, LINES, random_predictions(40, 2000))
    _, first, rest = page.tables
    assert (len(first), len(rest)) == (31, 11)
    assert "The other 10 classes" in page.text
    shown = [float(row[1].split()[0]) for row in first[1:] + rest[1:]]
    assert shown == sorted(shown)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_most_confident_mistakes(tmp_path, kind):
    fetched = []

    def thumbnail(index):
        fetched.append(index)
        return picture(index, kind)

    predictions = random_predictions(10, 200, thumbnail=thumbnail)
    wrong = [i for i in range(200) if predictions.labels[i] != predictions.predicted[i]]
    expected = sorted(wrong, key=lambda i: -predictions.confidence[i])[:12]
    page = report(tmp_path, LINES, predictions)
    assert fetched == expected
    sources = [attrs["src"] for attrs in page.attributes("img")]
    assert [base64.b64decode(src.split(",")[1]) for src in sources] == [picture(i, kind) for i in expected]
    assert all(src.startswith(f"data:image/{kind.lower()};base64,") for src in sources)
    for i in expected:
        told = f"taken for class {predictions.predicted[i]} {100 * predictions.confidence[i]:.1f} %"
        assert f"{told}true class class {predictions.labels[i]}val/{i}.png" in page.text


def test_unreadable_picture_is_named(tmp_path, caplog):
    def thumbnail(index):
        if index == 1:
            raise OSError("disk gone")
        return b"<svg onload=alert(1)>"

    with caplog.at_level("WARNING", logger="paddlevit"):
        page = report(tmp_path, LINES, predictions_of([0, 0], [1, 1], ["a", "b"], thumbnail=thumbnail))
    assert page.text.count("no picture") == 2 and not page.attributes("img")
    assert "val/1.png: disk gone" in caplog.text and "val/0.png" in caplog.text


def test_without_mistakes_or_images(tmp_path):
    page = report(tmp_path, LINES, predictions_of([0, 1], [0, 1], ["a", "b"]))
    assert "Most confident mistakes There are none." in page.text.replace("mistakesThere", "mistakes There")
    assert "no validation image" in report(tmp_path, LINES, predictions_of([], [], ["a"])).text
    many = predictions_of(range(60), range(60), [])
    assert "No class was taken for another." in report(tmp_path, LINES, many).text


def test_classes_without_names_are_numbers(tmp_path):
    page = report(tmp_path, LINES, predictions_of([0, 2], [1, 2], ["cat"]))
    assert page.tables[0][0][1:] == ["cat", "1", "2"]


HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "a & b &amp; c &lt;",
    "猫 กขค سمكة",
    "x" * 500,
    "{braces} %s {0}",
    "</title></pre></style>",
]


def test_every_string_is_escaped(tmp_path):
    config = {**CONFIG, "MODEL": {"NAME": HOSTILE[0]}, "DATA": {"DATASET": HOSTILE[2], "DATA_PATH": HOSTILE[1]}}
    labels = list(range(len(HOSTILE)))
    predictions = predictions_of(labels, labels[1:] + [0], HOSTILE, names=lambda i: f"{HOSTILE[i]}.png")
    page = report(tmp_path, LINES, predictions, config)
    assert len(page.attributes("script")) == 1
    assert not any(name.startswith("on") for _, attrs, _ in page.tags for name in attrs)
    assert [attrs["src"][:11] for attrs in page.attributes("img")] == ["data:image/"] * len(HOSTILE)
    assert page.tables[0][0][1:] == HOSTILE
    assert {row[0] for row in page.tables[1][1:]} == set(HOSTILE)
    assert all(f"{name}.png" in page.text for name in HOSTILE)
    assert (tmp_path / "config.yaml").read_text(encoding="utf-8") in "".join(page.texts)


def test_file_name_that_is_no_unicode(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    page = report(tmp_path, LINES, predictions_of([0], [1], ["a", "b"], names=lambda i: name))
    assert "caf?.png" in page.text


def test_thousand_classes_stay_small(tmp_path):
    predictions = random_predictions(1000, 50_000, right=0.8)
    lines = [train(1 + i // 25, 1 + i % 25, steps_per_epoch=25, loss=math.sin(i) + 3) for i in range(7500)]
    page = report(tmp_path, [*lines, *(val(epoch, epoch / 4) for epoch in range(1, 301))], predictions)
    assert (tmp_path / "report.html").stat().st_size < 1_000_000
    assert len(page.tables) == 3 and len(page.tables[1]) + len(page.tables[2]) == 1002
    assert len(page.titles) < 6 * 310
    loss_chart = page.source.split("<h3>Loss</h3>")[1].split("</figure>")[0]
    losses = [float(value) for value in re.findall(r": training ([\d.]+)<", loss_chart)]
    assert 250 < len(losses) <= 302
    assert max(losses) == pytest.approx(4, abs=1e-3) and min(losses) == pytest.approx(2, abs=1e-3)


BROKEN = [
    json.dumps(train(1))[:-9],
    json.dumps(train(1))[:-9] + "\n",
    "\x00\xff binary\n",
    "[1, 2]\n",
    "null\n",
    '{"phase": "train"}\n',
    '{"phase": "test", "epoch": 1}\n',
    '{"phase": "val", "epoch": NaN}\n',
    '{"phase": "val", "epoch": "three"}\n',
    "[" * 100_000 + "\n",
]


@pytest.mark.parametrize("line", BROKEN)
def test_broken_line_is_left_out_and_told(tmp_path, line):
    page = report(tmp_path, [*LINES, line])
    assert "could not be read and are left out: 1." in page.text
    assert page.headline["best top-1"][0] == "98.12 %"


def test_blank_lines_are_no_broken_lines(tmp_path):
    assert "left out" not in report(tmp_path, ["\n", *LINES, "\n", "  \n"]).text


ODD = [math.nan, math.inf, -math.inf, None, "0.5", True, [1.0], 10**400, 1e300, -1e300]


@pytest.mark.parametrize("odd", ODD, ids=lambda value: str(value)[:8])
@pytest.mark.parametrize("key", ["loss", "lr", "images_per_sec", "data_wait", "step", "steps_per_epoch"])
def test_odd_training_value_leaves_a_gap(tmp_path, key, odd):
    page = report(tmp_path, [train(1), train(2, **{key: odd}), train(3), val(3, 50.0)])
    assert "nan" not in page.source.lower().replace("nan_to_num", "") and "inf " not in page.text
    assert len([t for t in page.titles if t.startswith("epoch 1: ")]) == 4
    assert len([t for t in page.titles if t.startswith("epoch 3: ")]) == 7
    assert page.headline["training loss"][0] == "1.5"


def test_gap_breaks_the_line(tmp_path):
    page = report(tmp_path, [train(epoch, loss=math.nan if epoch == 3 else epoch) for epoch in range(1, 7)])
    path = re.search(r'<g class="curve train"><path d="([^"]*)"', page.source).group(1)
    assert [len(part.split("L")) for part in path.split("M")[1:]] == [2, 3]
    assert "a gap in its curve: 1." in page.text


def test_all_values_odd(tmp_path):
    line = {"phase": "val", "epoch": 1, "weights": None, "loss": None, "acc1": math.nan, "acc5": "x"}
    page = report(tmp_path, [line, {"phase": "train", "epoch": 1}])
    assert page.headline == {} and page.titles == []


@pytest.mark.parametrize("line", [train(1), train(1, step=1), val(1, 50.0), val(7, 50.0, "ema"), CLOSING, train(0, 0)])
def test_a_single_line_is_enough(tmp_path, line):
    page = report(tmp_path, [line])
    assert page.headline


def test_last_line_of_a_repeated_epoch_wins(tmp_path):
    lines = [train(1), val(1, 10.0), train(2), val(2, 20.0), val(2, 21.0, "ema"), train(3), val(3, 99.0)]
    page = report(tmp_path, [*lines, train(2, 5, loss=7.0), train(2, loss=6.0), val(2, 40.0), val(2, 41.0, "ema")])
    accuracy = [t for t in page.titles if "%" in t and "99.50" not in t and "training" not in t]
    assert accuracy == [
        "epoch 1: validation 10.00 %",
        "epoch 2: validation 40.00 %",
        "epoch 2: validation, EMA 41.00 %",
    ]
    losses = [t for t in page.titles if re.search(r": training \d\.?\d*$", t) and "0.001" not in t]
    assert losses == ["epoch 1: training 1.5", "epoch 1.5: training 7", "epoch 2: training 6"]
    assert page.headline["best top-1"] == ["41.00 %", "EMA weights, epoch 2"]


def test_validation_line_repeated_alone(tmp_path):
    page = report(tmp_path, [val(1, 10.0), val(1, 30.0, "ema"), val(1, 20.0)])
    assert "epoch 1: validation 20.00 %" in page.titles and "epoch 1: validation, EMA 30.00 %" in page.titles
    assert not any("10.00" in title for title in page.titles)


def test_run_that_goes_on_after_its_closing_line(tmp_path):
    page = report(tmp_path, [train(1), val(1, 50.0), val(1, 50.0, best=True), train(2, step=5)])
    assert "not finished: its last line is from epoch 2 of 3." in page.text
    assert page.headline["best top-1"] == ["50.00 %", "model weights, epoch 1"]


def test_steps_per_epoch_may_be_missing(tmp_path):
    lines = [{key: value for key, value in train(1, step).items() if key != "steps_per_epoch"} for step in (10, 20, 40)]
    titles = report(tmp_path, lines).titles
    assert [t.split(":")[0] for t in titles[:3]] == ["epoch 0.25", "epoch 0.5", "epoch 1"]


@pytest.mark.parametrize("text", [None, "", "\n\n", "{broken", "[]\n"])
def test_metrics_without_figures_are_a_users_mistake(tmp_path, text):
    run_folder(tmp_path, LINES)
    (tmp_path / "metrics.jsonl").unlink()
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "metrics.jsonl"))):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_config_must_be_there_and_be_yaml(tmp_path):
    path = run_folder(tmp_path, LINES) / "config.yaml"
    for text in ("a: [1", "- 1\n", ""):
        path.write_text(text)
        with pytest.raises(UserError, match=re.escape(str(path))):
            write_report(tmp_path)
    path.unlink()
    with pytest.raises(MissingFileError, match=re.escape(str(path))):
        write_report(tmp_path)


def test_config_without_the_usual_keys(tmp_path):
    page = report(tmp_path, LINES, config={"MODEL": 3, "DATA": None})
    assert tmp_path.name in page.text


def test_full_disk_leaves_the_earlier_report(tmp_path, monkeypatch):
    report(tmp_path, LINES)
    before = (tmp_path / "report.html").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="report.html: No space left"):
        report(tmp_path, [*LINES, CLOSING])
    assert (tmp_path / "report.html").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "metrics.jsonl", "report.html"]


FIGURES = st.floats(-1e29, 1e29, allow_nan=False) | st.floats(-2, 2)


@given(FIGURES, FIGURES)
@settings(max_examples=300, deadline=None)
def test_axis_encloses_its_values_in_round_steps(one, other):
    low, high = min(one, other), max(one, other)
    ticks = axis_ticks(low, high)
    step = ticks[1] - ticks[0]
    assert 2 <= len(ticks) <= 8
    assert ticks[0] - 1e-6 * step <= low and high <= ticks[-1] + 1e-6 * step
    assert f"{step:.5e}"[:7] in ("1.00000", "2.00000", "5.00000")
    assert len(set(tick_labels(ticks))) == len(ticks)


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.0, 1.0, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (97.2, 99.1, ["97.0", "97.5", "98.0", "98.5", "99.0", "99.5"]),
        (0.0, 5e-4, ["0", "1e-4", "2e-4", "3e-4", "4e-4", "5e-4"]),
        (0.0, 1.1e-4, ["0", "5e-5", "1.0e-4", "1.5e-4"]),
        (0.0, 12_000, ["0", "5,000", "10,000", "15,000"]),
        (100.0, 100.0, ["0", "20", "40", "60", "80", "100"]),
        (0.0, 0.0, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
    ],
)
def test_tick_labels(low, high, labels):
    assert tick_labels(axis_ticks(low, high)) == labels


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=2000))
@settings(max_examples=60, deadline=None)
def test_thinning_keeps_ends_and_extremes(values):
    points = [(float(i), value) for i, value in enumerate(values)]
    kept = thinned(points, most=100)
    assert len(kept) <= 102 and kept == sorted(set(kept)) and set(kept) <= set(points)
    assert kept[0] == points[0] and kept[-1] == points[-1]
    assert {min(values), max(values)} <= {y for _, y in kept}
