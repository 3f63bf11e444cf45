"""Fine-tuning and CIFAR as users run them, with networks of a few thousand parameters: docs/fine-tuning.md."""

from __future__ import annotations

import json
import pickle
import tarfile
import tracemalloc

import numpy as np
import paddle
import pytest
from PIL import Image

from paddlevit import build_model, linear_probe
from paddlevit.commands.train import main
from paddlevit.config import get_config
from paddlevit.linear_probe import logistic_regression
from paddlevit.run import probe

CLASSES = 3
TINY = ["MODEL.PATCH_SIZE", "8", "MODEL.STRIDE", "4", "MODEL.BASE_DIMS", "[8, 8, 8]", "MODEL.DEPTH", "[1, 1, 1]"]
TINY += ["MODEL.NUM_HEADS", "[1, 2, 4]", "MODEL.MLP_RATIO", "2.0"]
SIZE = ["DATA.IMAGE_SIZE", "48"]
SHORT = ["TRAIN.NUM_EPOCHS", "2", "TRAIN.WARMUP_EPOCHS", "1.0", "REPORT_FREQ", "1"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Three classes of coloured noise, 32 images to train on and 9 to validate."""
    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for split, count in (("train", 32), ("val", 9)):
        lines = []
        for i in range(count):
            pixels = rng.integers(0, 120, (40, 48, 3), dtype=np.uint8)
            pixels[..., i % CLASSES] += 100
            name = f"{split}/{i}.png"
            (folder / split).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(folder / name)
            lines.append(f"{name} {i % CLASSES}\n")
        (folder / f"{split}_list.txt").write_text("".join(lines))
    return folder


def weights_of(path, cfg, opts):
    paddle.seed(3)
    model = build_model(get_config(cfg, opts))
    paddle.save(model.state_dict(), str(path))
    return {name: value.numpy() for name, value in model.state_dict().items()}


def go(cfg, folder, output, *more, opts=()):
    args = ["-cfg", cfg, "-data_path", folder, "-output", output, "-batch_size", 16, "-num_workers", 0, *more]
    return main([str(arg) for arg in (*args, "-opts", *SHORT, *opts)], nprocs=1)


def saved(output, epoch=2):
    return {name: value.numpy() for name, value in paddle.load(str(output / f"epoch_{epoch:03d}.pdparams")).items()}


def log(output):
    return (output / "log.txt").read_text()


def test_larger_images_with_the_teacher_that_was_there_before(photographs, tmp_path):
    """pit_b_distilled_384's recipe: embeddings of positions interpolated, everything else as it was, and tiny steps."""
    classes = ["MODEL.NUM_CLASSES", CLASSES]
    started = weights_of(tmp_path / "at32.pdparams", "pit_b_distilled_224", [*TINY, *classes, "DATA.IMAGE_SIZE", 32])
    teacher = tmp_path / "teacher.yaml"
    teacher.write_text("MODEL: {TYPE: regnet, WIDTHS: [16, 16], DEPTHS: [1, 1], GROUP_WIDTH: 8, STEM_WIDTH: 8}\n")
    weights_of(tmp_path / "teacher.pdparams", teacher, classes)
    more = ["-image_size", 48, "-pretrained", tmp_path / "at32", "-teacher", teacher]
    more += ["-teacher_model_path", tmp_path / "teacher", "-accum_iter", 2]
    opts = [*TINY, "TRAIN.LINEAR_SCALED_LR", 32]  # what a step has here: the peak is that of the recipe
    assert go("pit_b_distilled_384", photographs, tmp_path / "run", *more, opts=opts) == 0
    trained = saved(tmp_path / "run")
    assert trained["pos_embed"].shape[2:] == (11, 11) and started["pos_embed"].shape[2:] == (7, 7)
    assert "1 resized: pos_embed" in log(tmp_path / "run")
    # One optimizer step an epoch, both at the first rate of the warm-up, 1e-6: that is how far Adam moves a weight.
    moved = {name: np.abs(trained[name] - started[name]).max() for name in started if name != "pos_embed"}
    assert max(moved.values()) == pytest.approx(2e-6, rel=0.05)
    assert trained["pos_embed"].mean() == pytest.approx(started["pos_embed"].mean(), abs=2e-3)


def test_a_teacher_of_other_classes_is_refused(photographs, tmp_path, capfd):
    teacher = tmp_path / "teacher.yaml"
    teacher.write_text("MODEL: {TYPE: regnet, WIDTHS: [16, 16], DEPTHS: [1, 1], GROUP_WIDTH: 8, STEM_WIDTH: 8}\n")
    weights_of(tmp_path / "teacher.pdparams", teacher, ["MODEL.NUM_CLASSES", 7])
    more = ["-teacher", teacher, "-teacher_model_path", tmp_path / "teacher"]
    assert go("pit_b_distilled_224", photographs, tmp_path / "run", *more, opts=[*TINY, *SIZE]) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"error: the teacher (-teacher {teacher}, -teacher_model_path) must be trained on the same")
    assert "the file has 7 classes, the model 3" in error


def test_other_classes_take_a_new_head_and_lower_layers_smaller_steps(photographs, tmp_path, capfd):
    started = weights_of(tmp_path / "old.pdparams", "pit_ti_224", [*TINY, *SIZE, "MODEL.NUM_CLASSES", 7])
    more = ["-pretrained", tmp_path / "old"]
    assert go("pit_ti_224", photographs, tmp_path / "refused", *more, opts=[*TINY, *SIZE]) == 2
    error = capfd.readouterr().err
    assert "the file has 7 classes, the model 3" in error and "-reinit_head" in error
    assert go("pit_ti_224", photographs, tmp_path / "refused", *more, "-eval", opts=[*TINY, *SIZE]) == 2
    error = capfd.readouterr().err
    assert "the file has 7 classes, the model 3" in error and "reinit" not in error
    opts = [*TINY, *SIZE, "TRAIN.LAYER_DECAY", "0.1", "TRAIN.LR_SCHEDULE", "epoch", "TRAIN.WEIGHT_DECAY", "0.0"]
    assert go("pit_ti_224", photographs, tmp_path / "run", *more, "-reinit_head", opts=opts) == 0
    trained = saved(tmp_path / "run")
    assert trained["head.weight"].shape == (32, CLASSES)
    assert "2 reinitialised: head.weight, head.bias" in log(tmp_path / "run")
    assert "learning rate x 0.1 from each layer to the one below: x 0.0001 at the stem" in log(tmp_path / "run")
    moved = {name: np.abs(trained[name] - started[name]).max() for name in started if not name.startswith("head")}
    assert moved["norm.weight"] / moved["transformers.1.blocks.0.norm1.weight"] == pytest.approx(100, rel=0.3)
    # The run's own file says -reinit_head too; evaluated from it, the head is the one that was trained.
    again = ["-cfg", tmp_path / "run" / "config.yaml", "-eval", "-pretrained", tmp_path / "run" / "best.pdparams"]
    assert main([str(arg) for arg in (*again, "-output", tmp_path / "eval")], nprocs=1) == 0
    best = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert json.loads((tmp_path / "eval" / "eval.json").read_text())["loss"] == best["loss"]
    assert "reinitialised" not in log(tmp_path / "eval")


PROBE = ["TRAIN.FREEZE", '["*", "!head.*"]', "KEEP_LAST", "2"]


def test_linear_probe_keeps_the_body_and_resumes_bit_for_bit(photographs, tmp_path):
    started = weights_of(tmp_path / "body.pdparams", "pit_digits", ["MODEL.NUM_CLASSES", CLASSES])
    more = ["-pretrained", tmp_path / "body"]
    assert go("pit_digits", photographs, tmp_path / "run", *more, opts=PROBE) == 0
    trained = saved(tmp_path / "run")
    changed = {name for name in started if not np.array_equal(trained[name], started[name])}
    assert changed == {"head.weight", "head.bias"}
    frozen = [value.size for name, value in started.items() if not name.startswith("head.")]
    assert f"frozen by TRAIN.FREEZE: {len(frozen)} tensors ({sum(frozen):,} parameters)" in log(tmp_path / "run")
    assert "weight decay 0.05 on 1 tensors (384 parameters), none on 1 (3): norms, biases\n" in log(tmp_path / "run")
    first = tmp_path / "run" / "epoch_001.pdstate"
    assert go("pit_digits", photographs, tmp_path / "again", "-resume", first, opts=PROBE) == 0
    again = saved(tmp_path / "again")
    assert all(np.array_equal(again[name], trained[name]) for name in trained)
    assert go("pit_digits", photographs, tmp_path / "thawed", "-resume", first) == 2


def test_nothing_fits_a_pattern(photographs, tmp_path, capfd):
    assert go("pit_digits", photographs, tmp_path / "run", opts=["TRAIN.FREEZE", "[transformer.*]"]) == 2
    assert (
        "TRAIN.FREEZE: 'transformer.*' matches no parameter; the nearest ones are transformers"
        in capfd.readouterr().err
    )


def pickled(content):
    return pickle.dumps(content, protocol=3)


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Both data sets in their published layout, with 40 and 8 images."""
    folder, rng = tmp_path_factory.mktemp("cifar"), np.random.default_rng(1)

    def images(count, classes, key):
        labels = rng.integers(0, classes, count).tolist()
        return {b"data": rng.integers(0, 256, (count, 3072), dtype=np.uint8), key: labels}

    contents = {
        "cifar-10-python": {f"data_batch_{i}": images(8, 10, b"labels") for i in range(1, 6)},
        "cifar-100-python": {"train": images(40, 100, b"fine_labels"), "test": images(8, 100, b"fine_labels")},
    }
    contents["cifar-10-python"]["test_batch"] = images(8, 10, b"labels")
    contents["cifar-10-python"]["batches.meta"] = {b"label_names": [b"c%d" % i for i in range(10)]}
    contents["cifar-100-python"]["meta"] = {b"fine_label_names": [b"f%d" % i for i in range(100)]}
    for name, files in contents.items():
        unpacked = folder / ("cifar-10-batches-py" if name == "cifar-10-python" else name)
        unpacked.mkdir()
        for file, content in files.items():
            (unpacked / file).write_bytes(pickled(content))
        with tarfile.open(folder / f"{name}.tar.gz", "w:gz") as tar:
            tar.add(unpacked, unpacked.name)
    return folder


@pytest.mark.parametrize(("dataset", "classes", "packed"), [("cifar100", 100, True), ("cifar10", 10, False)])
def test_cifar_with_hvts_recipe(archives, tmp_path, dataset, classes, packed):
    place = archives / f"cifar-{classes}-python.tar.gz" if packed else archives
    opts = ["MODEL.EMBED_DIM", "24", "MODEL.DEPTH", "2", "MODEL.PATCH_SIZE", "8"]
    assert go("hvt_ti_1_cifar100", place, tmp_path, "-dataset", dataset, "-image_size", 64, opts=opts) == 0
    assert saved(tmp_path)["head.weight"].shape == (24, classes)
    assert "data: 40 images to train on, 8 to validate" in log(tmp_path)
    assert "effective batch: 16 images" in log(tmp_path)
    config = get_config(tmp_path / "config.yaml")
    assert config.TRAIN.WEIGHT_DECAY == 0.025 and config.TRAIN.REPEATED_AUG == 3
    assert classes == config.MODEL.NUM_CLASSES
    best = ["-eval", "-dataset", dataset, "-image_size", 64, "-pretrained", tmp_path / "best"]
    assert go("hvt_ti_1_cifar100", place, tmp_path / "eval", *best, opts=opts) == 0


def test_logistic_regression_is_scikit_learns(monkeypatch):
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 120)
    features = (rng.standard_normal((120, 10)) * 5 + 3 + 4 * np.eye(4, 10)[labels]).astype("float32")
    weight, bias = logistic_regression(features, labels, 4)
    mean, std = features.mean(axis=0), features.std(axis=0)
    theirs = LogisticRegression(C=0.1, max_iter=1000).fit((features - mean) / std, labels)
    expected = theirs.decision_function((features - mean) / std)
    logits = features @ weight + bias
    np.testing.assert_allclose(logits - logits.mean(axis=1, keepdims=True), expected, atol=0.02)
    monkeypatch.setattr(linear_probe, "_ROWS", 50)
    weight, bias = logistic_regression(features, labels, 4)
    in_parts = features @ weight + bias  # less what is the same for all classes, which has no effect
    in_parts -= (in_parts - logits).mean(axis=1, keepdims=True)
    np.testing.assert_allclose(in_parts, logits, atol=1e-5)


def test_memory_for_logits_does_not_grow_with_the_images(monkeypatch):
    monkeypatch.setattr(linear_probe, "_STEPS", 2)
    features, labels = np.zeros([50_000, 4], "float32"), np.zeros([50_000], "int64")
    tracemalloc.start()
    logistic_regression(features, labels, 100)
    assert tracemalloc.get_traced_memory()[1] < 50_000 * 100 * 4, "float32 [N, K]"
    tracemalloc.stop()


@pytest.mark.parametrize("cfg", ["pit_ti_224", "pit_ti_distilled_224"])
def test_a_probe_fits_the_heads_and_leaves_the_body(photographs, tmp_path, cfg, monkeypatch):
    beats = []
    monkeypatch.setattr(probe, "heartbeat", lambda: beats.append(1))
    monkeypatch.setattr(probe, "_ROWS", 30)
    body = weights_of(tmp_path / "w.pdparams", cfg, [*TINY, *SIZE, "MODEL.NUM_CLASSES", 7])
    assert (
        go(cfg, photographs, tmp_path / "run", "-recipe", "probe", "-pretrained", tmp_path / "w", opts=[*TINY, *SIZE])
        == 0
    )
    fitted = {name: value.numpy() for name, value in paddle.load(str(tmp_path / "run" / "best.pdparams")).items()}
    heads = {name for name in fitted if name.startswith("head")}
    assert heads == (
        {"head.weight", "head.bias"} | ({"head_dist.weight", "head_dist.bias"} if "dist" in cfg else set())
    )
    for name in set(fitted) - heads:
        np.testing.assert_array_equal(fitted[name], body[name])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["phase"], line["epoch"], line["acc1"]) for line in lines] == [("val", 0, 100.0)] * 2, (
        "colours are easy"
    )
    assert "64 features of the frozen body (linear probe)" in log(tmp_path / "run")
    assert "learning rate" not in log(tmp_path / "run"), "nothing is trained"
    assert (tmp_path / "run" / "report.html").is_file()
    assert len(beats) > linear_probe._STEPS, "or it counts as hung"


def test_fine_tuning_starts_with_the_probe_and_says_what_it_adds(photographs, tmp_path):
    weights_of(tmp_path / "w.pdparams", "pit_ti_224", [*TINY, *SIZE, "MODEL.NUM_CLASSES", 7])
    more = ["-recipe", "finetune", "-pretrained", tmp_path / "w", "-lr", 1e-5]
    assert go("pit_ti_224", photographs, tmp_path / "run", *more, opts=[*TINY, *SIZE, "TRAIN.SMOOTHING", 0.05]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["phase"] == "val"] == [0, 1, 2, 2], "equal, at a smaller loss"
    assert "top-1 of the linear probe 100.00 %, fine-tuned 100.00 %" in log(tmp_path / "run")
    config = get_config(tmp_path / "run" / "config.yaml")
    assert (config.TRAIN.BASE_LR, config.TRAIN.SMOOTHING, config.TRAIN.MIXUP_ALPHA) == (1e-5, 0.05, 0.0)
    assert (config.DATA.EXIF_ORIENTATION, config.MODEL.REINIT_HEAD) == ("apply", True)
    assert (
        go("pit_ti_224", photographs, tmp_path / "run", *more, "-resume", "auto", "-epochs", 3, opts=[*TINY, *SIZE])
        == 0
    )
    assert log(tmp_path / "run").count("linear probe)") == 1


def test_the_recipes_start_from_weights(photographs, tmp_path, capsys):
    assert go("pit_ti_224", photographs, tmp_path / "run", "-recipe", "probe", opts=[*TINY, *SIZE]) == 2
    error = "error: -recipe finetune and probe (TRAIN.PROBE only) start from weights: -pretrained FILE -reinit_head"
    assert capsys.readouterr().err == f"{error}; to train from scratch, leave -recipe out\n"
