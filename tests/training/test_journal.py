"""metrics.jsonl as the journal writes it, and the same figures where people look at curves."""

from __future__ import annotations

import json
import math
import sys
import types

import paddle
import pytest
from PIL import Image

from paddlevit.commands.train import main
from paddlevit.errors import UserError
from paddlevit.training.journal import Journal, open_scalars

RESULT = {"loss": 0.5, "acc1": 80.0, "acc5": 99.0, "num_images": 30}
KINDS = ["tensorboard", "visualdl"]


def journal(folder, **values):
    plan = {"report_freq": 2, "num_epochs": 3, "steps_per_epoch": 4, "images_per_batch": 10, **values}
    return Journal(folder / "metrics.jsonl", **plan)


def train(journal, epoch, losses, first=0):
    journal.start_epoch(epoch, first)
    for loss in losses:
        journal.step(paddle.to_tensor([loss]), 0.001, 0.25)


def lines(folder):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def listen(journal):
    heard = []
    journal.write_curves = lambda values, images: heard.append((images, values))
    return heard


def test_lines_of_an_epoch(tmp_path):
    own = journal(tmp_path)
    train(own, 1, [1.0, 2.0, 3.0, 5.0])
    own.evaluation(1, "ema", RESULT, best=True)
    *train_lines, val_line = lines(tmp_path)
    assert [(line["epoch"], line["step"], line["loss"], line["lr"]) for line in train_lines] == [
        (1, 2, 1.5, 0.25),
        (1, 4, 4.0, 0.25),
    ]
    assert val_line == {"phase": "val", "epoch": 1, "weights": "ema", **RESULT, "best": True}


def test_figures_that_are_not_finite_are_null(tmp_path):
    own = journal(tmp_path)
    train(own, 1, [math.nan, math.inf, 1.0, math.nan])
    own.evaluation(1, "model", {**RESULT, "loss": math.nan})
    assert [line["loss"] for line in lines(tmp_path)] == [None, 1.0, None]


def test_every_figure_is_mirrored_by_images_seen(tmp_path):
    own = journal(tmp_path)
    heard = listen(own)
    train(own, 1, [1.0, 2.0, 3.0, 5.0])
    own.evaluation(1, "model", RESULT)
    own.evaluation(1, "ema", {**RESULT, "loss": math.nan})
    own.evaluation(1, "ema", RESULT, best=True)
    train_lines = lines(tmp_path)[:2]
    assert heard == [
        *((10 * line["step"], {f"train/{key}": line[key] for key in KEYS}) for line in train_lines),
        (40, {"val/loss": 0.5, "val/acc1": 80.0, "val/acc5": 99.0}),
        (40, {"val_ema/acc1": 80.0, "val_ema/acc5": 99.0}),
    ]


KEYS = ("loss", "lr", "images_per_sec", "data_wait")


def test_a_resumed_run_mirrors_what_it_goes_on_from_and_nothing_twice(tmp_path):
    first = journal(tmp_path)
    for epoch in (1, 2, 3):
        train(first, epoch, [1.0] * 4)
        first.evaluation(epoch, "model", RESULT)
    again = journal(tmp_path)
    heard = listen(again)
    again.rewind(1, 2, evaluated=1)
    assert [images for images, _ in heard] == [20, 40, 40, 60]
    train(again, 2, [7.0, 7.0], first=2)
    assert [images for images, _ in heard] == [20, 40, 40, 60, 80]
    assert heard[-1][1]["train/loss"] == 7.0


def test_lines_of_another_batch_size_stay_at_their_place_in_the_epoch(tmp_path):
    train(journal(tmp_path, steps_per_epoch=8, images_per_batch=5), 1, [1.0] * 8)
    again = journal(tmp_path)
    heard = listen(again)
    again.rewind(1, 0, evaluated=1)
    assert [images for images, _ in heard] == [10, 20, 30, 40]


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_package_is_named(tmp_path, kind, monkeypatch):
    package = {"tensorboard": "tensorboardX", "visualdl": "visualdl"}[kind]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"LOG_TO is {kind}.*pip install {package}"):
        open_scalars(kind, tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=full))
    with pytest.raises(UserError, match="tensorboard: No space left"):
        open_scalars("tensorboard", tmp_path)


def test_a_run_that_goes_on_writes_each_point_once(tmp_path, monkeypatch):
    writers = []

    class Writer:
        def __init__(self, folder, *, purge_step, **options):
            assert (folder, purge_step) == (str(tmp_path / "run" / "tensorboard"), 0)
            self.points = []
            writers.append(self)

        def add_scalar(self, tag, value, step):
            self.points.append((tag, step))

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=Writer))
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (32, 32), i).save(tmp_path / split / name / f"{i}.png")
    folders = ["-data_path", str(tmp_path), "-output", str(tmp_path / "run"), "-resume", "auto"]
    values = ["LOG_TO", "tensorboard", "REPORT_FREQ", "1", "TRAIN.WARMUP_EPOCHS", "0", "TRAIN.NUM_EPOCHS"]
    for epochs in ("1", "2"):
        argv = ["-cfg", "pit_digits", "-batch_size", "2", "-device", "cpu", *folders, "-opts", *values, epochs]
        assert main(argv) == 0
    first, second = (writer.points for writer in writers)
    assert second[: len(first)] == first and len(set(second)) == len(second)
    assert [step for tag, step in second if tag == "train/lr"] == [2, 4, 6, 8, 10, 12]
    assert [step for tag, step in second if tag == "val_ema/acc1"] == [6, 12]


def write_twice(kind, folder):
    """Two starts of a run, as the journal makes them: the second one repeats the first point and replaces the other."""
    for last in (1.0, 2.0):
        write = open_scalars(kind, folder)
        write({"train/loss": 3.0, "val/acc1": 50.0}, 10)
        write({"train/loss": last}, 20)
        yield write


def test_tensorboard_files_hold_each_point_once(tmp_path):
    tensorboardx = pytest.importorskip("tensorboardX", reason="pip install '.[log]'")
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    for number, write in enumerate(write_twice("tensorboard", tmp_path)):
        writer = next(cell.cell_contents for cell in write.__closure__ if hasattr(cell.cell_contents, "close"))
        assert isinstance(writer, tensorboardx.SummaryWriter)
        writer.close()
        # Its name is the second in which it was made.
        (file,) = (tmp_path / "tensorboard").glob("events.*")
        file.rename(tmp_path / f"{number}")
    points = {}
    for number in (0, 1):
        for event in events(Event, tmp_path / f"{number}"):
            if event.session_log.status == SessionLog.START:
                points = {key: value for key, value in points.items() if key[1] < event.step}
            for value in event.summary.value:
                points[value.tag, event.step] = [*points.get((value.tag, event.step), []), value.simple_value]
    assert points == {("train/loss", 10): [3.0], ("val/acc1", 10): [50.0], ("train/loss", 20): [2.0]}


def events(kind, path):
    """The records of an event file: length, checksum, data, checksum."""
    data, at = path.read_bytes(), 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        yield kind.FromString(data[at + 12 : at + 12 + length])
        at += length + 16


def test_visualdl_files_hold_each_point_once(tmp_path):
    visualdl = pytest.importorskip("visualdl", reason="pip install '.[log]'")
    for _ in write_twice("visualdl", tmp_path):
        (file,) = (tmp_path / "visualdl").iterdir()
    reader = visualdl.LogReader(file_path=str(file))
    points = {tag: [(p.id, p.value) for p in reader.get_data("scalar", tag)] for tag in ("train/loss", "val/acc1")}
    assert points == {"train/loss": [(10, 3.0), (20, 2.0)], "val/acc1": [(10, 50.0)]}
