"""The page of a run shows the figures it was given, escaped, and fetches nothing."""

from __future__ import annotations

import base64
import json
import math
import os
import re
from collections import Counter
from datetime import datetime

import numpy as np
import pytest
from run_pages import (
    CLOSING,
    CONFIG,
    LINES,
    Page,
    picture,
    predictions_of,
    random_predictions,
    report,
    run_folder,
    train,
    val,
)

from paddlevit.report.page import write_report


def test_headline_equals_the_lines(tmp_path):
    page = report(tmp_path, [*LINES, CLOSING])
    assert page.headline == {
        "best top-1": ["98.12 %", "EMA weights, epoch 2"],
        "top-5": ["99.75 %", "on 360 images"],
        "validation loss": ["0.0725", "of the best"],
        "training loss": ["0.625", "last line"],
        "images/s": ["1,000", "training, median"],
    }
    shown, _, _ = page.text.partition("Configuration")
    assert "pit_digits" in shown and "./data/digits" in shown and "imagenet2012" not in shown
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
    assert page.headline["training time"] == ["01:16", "without validation"]


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
    assert head == ["true class", "predicted", "images", "of the true class"]
    assert [int(row[2]) for row in rows] == sorted(pairs.values(), reverse=True)[:30]
    for true, predicted, count, share in rows:
        true, predicted = int(true.split()[1]), int(predicted.split()[1])
        assert int(count) == pairs[true, predicted]
        assert share == f"{100 * pairs[true, predicted] / images[true]:.1f} %"
    right = int((predictions.labels == predictions.predicted).sum())
    assert f"{right:,} of 3,000 images are correct, {3000 - right:,} wrong." in page.text


def test_class_accuracy_is_worst_first(tmp_path):
    labels, predicted = [0] * 4 + [1] * 2 + [3] * 8 + [4] * 2, [0, 0, 0, 1] + [1, 1] + [3] * 2 + [0] * 6 + [3, 4]
    page = report(tmp_path, LINES, predictions_of(labels, predicted, ["a", "b", "c", "d", "e"]))
    assert [[row[0], row[1], row[5]] for row in page.tables[1][1:]] == [
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
def test_most_confident_mistakes_and_least_confident_right_answers(tmp_path, kind):
    fetched = []

    def thumbnail(index):
        fetched.append(index)
        return picture(index, kind)

    predictions = random_predictions(10, 200, thumbnail=thumbnail)
    wrong = [i for i in range(200) if predictions.labels[i] != predictions.predicted[i]]
    mistakes = sorted(wrong, key=lambda i: -predictions.confidence[i])[:12]
    unsure = sorted(set(range(200)) - set(wrong), key=lambda i: predictions.confidence[i])
    right = list({predictions.labels[i]: i for i in reversed(unsure)}.values())  # the least confident of each class
    right.sort(key=lambda i: predictions.confidence[i])
    expected = mistakes + right
    page = report(tmp_path, LINES, predictions)
    assert fetched == expected and len(right) == 10
    sources = [attrs["src"] for attrs in page.attributes("img")]
    assert [base64.b64decode(src.split(",")[1]) for src in sources] == [picture(i, kind) for i in expected]
    assert all(src.startswith(f"data:image/{kind.lower()};base64,") for src in sources)
    for i in mistakes:
        told = f"predicted class {predictions.predicted[i]} {100 * predictions.confidence[i]:.1f} %"
        assert f"{told}true class class {predictions.labels[i]}val/{i}.png" in page.text


def test_what_the_model_was_trained_on_and_with(tmp_path):
    known = {"paddlevit": "0.1.0 (abc)", "PaddlePaddle": "3.3.1", "device": "cpu", "training images": "1,437 (def)"}
    (tmp_path / "certificate.json").write_text(json.dumps(known))
    path = write_report(run_folder(tmp_path, LINES), None, [picture(3), picture(4, "JPEG")])
    page = Page(path.read_text(encoding="utf-8"))
    sources = [attrs["src"].split(",")[1] for attrs in page.attributes("img")]
    assert [base64.b64decode(source) for source in sources] == [picture(3), picture(4, "JPEG")]
    for words in ("1,437 training images", "paddlevit 0.1.0, PaddlePaddle 3.3.1", "cpu", "Training images"):
        assert words in page.text
    assert f"paddlevit predict -pretrained {tmp_path}/best.pdparams photo.jpg" in page.text
    (tmp_path / "certificate.json").write_text("[]")
    assert "PaddlePaddle" not in report(tmp_path, LINES).text, "what others wrote there is no reason to fail"


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
    assert "No class was predicted for another." in report(tmp_path, LINES, many).text


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
    assert "caf\\udce9.png" in page.text


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
