"""What people ask for who have their own images: scores and weights of classes, the best by another score, patience."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from paddlevit.commands.train import main
from paddlevit.config import get_config
from paddlevit.data.loader import balanced_shares, train_order
from paddlevit.errors import UserError
from paddlevit.run import build
from paddlevit.run import train as run_room
from paddlevit.runtime.files import sha256
from paddlevit.training import checkpoint
from paddlevit.weights import read_state_dict


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Dark, grey and bright images, of which there are 24, 6 and 2 to train on, and 6, 3 and 1 to validate."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, counts in (("train", (24, 6, 2)), ("val", (6, 3, 1))):
        for label, count in enumerate(counts):
            (folder / split / f"class {label}").mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 80, (32, 32)) + 85 * label
                Image.fromarray(pixels.astype("uint8")).save(folder / split / f"class {label}" / f"{i}.png")
    return folder


def run(data, output, *opts, flags=()):
    args = ["-cfg", "pit_digits", "-data_path", data, "-output", output, "-batch_size", 8, "-num_workers", 0, *flags]
    opts = ["TRAIN.WARMUP_EPOCHS", 0, "REPORT_FREQ", 1, "TRAIN.MODEL_EMA", "false", *opts]
    return main([str(word) for word in (*args, "-opts", *opts)], nprocs=1)


def rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_classes_have_scores_everywhere(data, tmp_path):
    assert run(data, tmp_path / "run", "TRAIN.NUM_EPOCHS", 2) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all({"balanced_acc", "macro_f1"} <= line.keys() for line in lines if line["phase"] == "val")
    report = (tmp_path / "run" / "report.html").read_text()
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "macro F1" in report and "top-1" in log and "top-5" not in (log + report).lower(), "of three classes"
    best = ["-eval", "-pretrained", tmp_path / "run" / "best.pdparams"]
    assert run(data, tmp_path / "eval", "SAVE_PREDICTIONS", "true", flags=best) == 0
    result, scores = (
        json.loads((tmp_path / "eval" / "eval.json").read_text()),
        rows(tmp_path / "eval" / "per_class.csv"),
    )
    assert scores == rows(tmp_path / "run" / "per_class.csv")
    assert [row["class"] for row in scores] == ["class 0", "class 1", "class 2"]
    assert [row["images"] for row in scores] == ["6", "3", "1"]
    assert np.mean([float(row["recall"]) for row in scores]) == pytest.approx(result["balanced_acc"], abs=1e-4)
    predictions = rows(tmp_path / "eval" / "predictions.csv")
    right = [row["predicted"] == row["class"] for row in predictions]
    assert len(right) == 10 and 100 * np.mean(right) == pytest.approx(result["acc1"])
    assert predictions[0]["image"] == "val/class 0/0.png" and 0 < float(predictions[0]["probability"]) <= 1


BEST = [
    ("macro_f1", [(50, float("nan")), (60, 0.5), (60, 0.6), (55, 0.1)], 2),
    ("acc1", [(50, 0.9), (50, 0.7), (50, 0.8), (40, 0.1)], 2),  # of equal ones that with the smallest loss
    ("loss", [(50, 0.9), (60, 0.5), (70, 0.6), (80, float("nan"))], 2),
]


@pytest.mark.parametrize(
    ("by", "results", "kept"), [BEST[0], *(pytest.param(*each, marks=pytest.mark.slow) for each in BEST[1:])]
)
def test_the_best_are_the_best_in_what_was_asked_for(data, tmp_path, monkeypatch, by, results, kept):
    scripted(monkeypatch, results)
    assert run(data, tmp_path, "TRAIN.NUM_EPOCHS", 4, "TRAIN.BEST_BY", by) == 0
    best, kept = tmp_path / "best.pdparams", tmp_path / f"epoch_{kept:03d}.pdparams"
    assert sha256(best) == sha256(kept)


def scripted(monkeypatch, results):
    """The n-th evaluation has this (score in percent, loss); what comes after them is like the last."""
    evaluate, left = run_room.evaluate, list(results)

    def pretend(*args, **options):
        score, loss = left.pop(0) if len(left) > 1 else left[0]
        scores = {"acc1": float(score), "macro_f1": float(score), "balanced_acc": float(score), "loss": loss}
        return {**evaluate(*args, **options), **scores}

    monkeypatch.setattr(run_room, "evaluate", pretend)


@pytest.mark.parametrize(("delta", "last"), [pytest.param(0, 5, marks=pytest.mark.slow), (1.5, 3)])
def test_patience_ends_a_run_which_says_why_and_stays_ended(data, tmp_path, monkeypatch, capsys, delta, last):
    results = [(50, 1.0), (50, 0.9), (51, 1.0), (51, 1.0), (51, 1.0)]
    scripted(monkeypatch, results)
    opts = ["TRAIN.NUM_EPOCHS", 9, "TRAIN.MIN_DELTA", delta, "SAVE_FREQ", 4]
    assert run(data, tmp_path / "run", *opts, flags=["-patience", 2]) == 0
    assert f"training ends after epoch {last} of 9: acc1 has not improved for 2 epochs" in capsys.readouterr().out
    assert checkpoint.newest(tmp_path / "run").stem == f"epoch_{last:03d}"
    assert run(data, tmp_path / "run", *opts, flags=["-patience", 2, "-resume", "auto"]) == 0
    assert checkpoint.newest(tmp_path / "run").stem == f"epoch_{last:03d}", "nothing was left to train"


def test_other_optimizers_schedules_and_losses_train_and_resume(data, tmp_path):
    opts = ["TRAIN.OPTIMIZER.NAME", "SGD", "TRAIN.LR_DECAY", "step", "TRAIN.LR_STEP_EPOCHS", 1, "TRAIN.LOSS", "bce"]
    opts += ["TRAIN.WARMUP_PREFIX", "true", "TRAIN.MIXUP_ALPHA", 0.8, "TRAIN.MIXUP_OFF_EPOCHS", 1]
    assert run(data, tmp_path / "whole", "TRAIN.NUM_EPOCHS", 2, *opts) == 0
    (tmp_path / "half").mkdir()
    for path in (tmp_path / "whole").glob("epoch_001*"):
        (tmp_path / "half" / path.name).write_bytes(path.read_bytes())
    assert run(data, tmp_path / "half", "TRAIN.NUM_EPOCHS", 2, *opts, flags=["-resume", "auto"]) == 0
    whole, half = (read_state_dict(tmp_path / name / "epoch_002.pdparams") for name in ("whole", "half"))
    assert all(np.array_equal(whole[name], half[name]) for name in whole)


def weights(data, how):
    config = get_config("pit_digits", ["DATA.DATA_PATH", str(data), "MODEL.NUM_CLASSES", 3, "TRAIN.CLASS_WEIGHTS", how])
    found = build._class_weights(config, np.repeat([0, 1, 2], (24, 6, 2)))
    return None if found is None else found.numpy().tolist()


def test_weights_of_classes(data, tmp_path):
    assert weights(data, "none") is None
    assert weights(data, "balanced") == pytest.approx([32 / (3 * count) for count in (24, 6, 2)])
    absent = get_config("pit_digits", ["MODEL.NUM_CLASSES", 4, "TRAIN.CLASS_WEIGHTS", "balanced"])
    assert build._class_weights(absent, np.repeat([0, 1, 3], 2)).numpy().tolist() == [1, 1, 0, 1]
    (tmp_path / "weights.txt").write_text("0.5\n1\n3e0\n")
    assert weights(data, str(tmp_path / "weights.txt")) == [0.5, 1.0, 3.0]
    assert run(data, tmp_path / "run", "TRAIN.NUM_EPOCHS", 1, "TRAIN.CLASS_WEIGHTS", "balanced") == 0
    assert "class weights (TRAIN.CLASS_WEIGHTS balanced): 0.444 to 5.33" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1\n2\n", "one number of 0 or more for each of 3 classes, not all of them 0, got 2"),
        ("1\n2\n-1\n", "the smallest -1"),
        ("0\n0\n0\n", "not all of them 0"),
        ("1\n2\nmany\n", "every line must be a number, could not convert string to float: 'many'"),
    ],
)
def test_files_that_hold_no_weights_of_classes(data, tmp_path, text, said):
    (tmp_path / "weights.txt").write_text(text)
    with pytest.raises(UserError, match="TRAIN.CLASS_WEIGHTS .*weights.txt") as error:
        weights(data, str(tmp_path / "weights.txt"))
    assert said in str(error.value)


def test_balance_draws_classes_equally_often(data, tmp_path, capsys):
    labels = np.repeat([0, 1, 2], (240, 60, 20))
    for balance, wanted in ((0.0, (240, 60, 20)), (1.0, (320 / 3,) * 3)):
        shares = balanced_shares(labels, balance)
        for epoch in range(3):
            order = train_order(320, 0, epoch=epoch, shares=shares)
            assert len(order) == 320 and np.array_equal(order, train_order(320, 0, epoch=epoch, shares=shares))
            times = np.bincount(order, minlength=320)
            assert (np.abs(times - shares) < 1).all()
            assert np.abs(np.bincount(labels[order]) - wanted).max() <= 30, "by chance"
    many = sum(np.bincount(labels[train_order(320, 1, epoch=e, shares=shares)], minlength=3) for e in range(200))
    np.testing.assert_allclose(many / 200, 320 / 3, rtol=0.02)
    both = ["TRAIN.NUM_EPOCHS", 1, "TRAIN.BALANCE", 1, "TRAIN.CLASS_WEIGHTS", "balanced"]
    assert run(data, tmp_path / "run", *both) == 0
    out = capsys.readouterr().out
    assert (
        "TRAIN.BALANCE 1: an epoch has an image 0.444 to 5.33 times" in out and "rare classes are weighted twice" in out
    )
