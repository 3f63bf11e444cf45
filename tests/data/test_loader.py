"""Loaders: the right images in the right order on any number of workers, and what goes wrong on the way."""

from __future__ import annotations

import itertools
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paddlevit.config import get_config
from paddlevit.data import build as room
from paddlevit.data import build_eval_loader, build_train_loader
from paddlevit.data.dataset import ImageDataset
from paddlevit.errors import MissingFileError, UserError
from paddlevit.runtime.seeding import SAMPLES, generator

NUM_TRAIN, NUM_VAL, SIDE = 37, 11, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, count in (("train", NUM_TRAIN), ("val", NUM_VAL)):
        (root / split).mkdir()
        with open(root / f"{split}_list.txt", "w") as lines:
            for i in range(count):
                pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / f"{i}.png")
                lines.write(f"{split}/{i}.png {i % 5}\n")
    return root


def config(folder, *opts):
    own = ["DATA.DATA_PATH", str(folder), "DATA.IMAGE_SIZE", SIDE, "DATA.BATCH_SIZE", 6, "TRAIN.HFLIP", 0.5, "SEED", 3]
    plain = ["TRAIN.RAND_AUGMENT", False, "TRAIN.COLOR_JITTER", 0.0, "TRAIN.RANDOM_ERASE_PROB", 0.0]
    return get_config("pit_digits", [*own, *plain, *opts])


def arrays(batches):
    return [(images.numpy(), labels.numpy()) for images, labels in batches]


def same(some, others):
    return len(some) == len(others) and all((a[0] == b[0]).all() and (a[1] == b[1]).all() for a, b in zip(some, others))


def normalized(path, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)):
    pixels = np.asarray(Image.open(path)).astype("float64") / 255
    return ((pixels - mean) / std).transpose(2, 0, 1)


@pytest.fixture(scope="module", params=[0, 2], ids=["no workers", "2 workers"])
def workers(request):
    return request.param


@pytest.fixture(scope="module")
def train_loader(folder, workers):
    return build_train_loader(config(folder, "DATA.NUM_WORKERS", workers, "TRAIN.RANDOM_ERASE_PROB", 0.3))


@pytest.fixture(scope="module")
def eval_loader(folder, workers):
    return build_eval_loader(config(folder, "DATA.NUM_WORKERS", workers, "DATA.BATCH_SIZE_EVAL", 4))


@pytest.fixture(scope="module")
def expected(folder):
    """Batches of three epochs, made without a loader's machinery."""
    settings = config(folder)
    source = room.open_source(settings, "train")
    loader = build_train_loader(config(folder, "TRAIN.RANDOM_ERASE_PROB", 0.3))
    dataset = ImageDataset(source, room.build_train_transform(settings))
    erase = room.build_erasing(config(folder, "TRAIN.RANDOM_ERASE_PROB", 0.3))
    epochs = {}
    for epoch in range(3):
        epochs[epoch] = []
        for step, samples in enumerate(loader._sampler.batches(epoch)):
            pixels = [dataset.pixels(i, generator(key, SAMPLES)) for i, key in samples]
            images = loader.normalize(np.stack(pixels))
            labels = np.asarray([source.label(i) for i, _ in samples])
            epochs[epoch].append((erase(images, (3, epoch, step, 0)).numpy(), labels))
    return epochs


def test_evaluation_is_every_image_in_order(eval_loader, folder):
    for _ in range(2):
        batches = arrays(eval_loader)
        assert [len(labels) for _, labels in batches] == [4, 4, 3] and len(eval_loader) == 3
        images, labels = (np.concatenate(part) for part in zip(*batches))
        assert images.dtype == np.float32 and labels.dtype == np.int64
        assert labels.tolist() == [i % 5 for i in range(NUM_VAL)]
        for i in range(NUM_VAL):
            np.testing.assert_allclose(images[i], normalized(folder / f"val/{i}.png"), atol=2e-6)
    assert eval_loader.indices.tolist() == list(range(NUM_VAL)) and eval_loader.num_images == NUM_VAL
    assert eval_loader.class_names == [str(i) for i in range(5)]


def test_training_batches_depend_on_seed_epoch_and_step_alone(train_loader, expected):
    assert train_loader.steps_per_epoch == 6 and train_loader.num_images == NUM_TRAIN and train_loader.batch_size == 6
    for epoch in (0, 1, 2, 1):
        assert same(arrays(train_loader.epoch(epoch)), expected[epoch])
    assert not any(same([a], [b]) for a in expected[0] for b in expected[1] + expected[2])
    for first_step in (1, 5, 6):
        assert same(arrays(train_loader.epoch(2, first_step)), expected[2][first_step:])


def test_an_epoch_may_be_left(train_loader, eval_loader, expected):
    for step in range(4):
        for i, _ in enumerate(train_loader.epoch(0)):
            if i == step:
                break
        next(iter(eval_loader))
        assert same(arrays(train_loader.epoch(1)), expected[1])
        assert sum(len(labels) for _, labels in eval_loader) == NUM_VAL


def test_a_left_epoch_does_not_go_on(train_loader):
    left = train_loader.epoch(0)
    next(left)
    next(train_loader.epoch(1))
    with pytest.raises(AssertionError, match="another run"):
        next(left)


def test_names_of_a_batch(train_loader, folder):
    for step, (_, labels) in enumerate(train_loader.epoch(1)):
        names = train_loader.names(1, step)
        assert [int(Path(name).stem) % 5 for name in names] == labels.tolist()
        assert all(os.path.exists(name) for name in names)


@pytest.mark.parametrize("repeats", [1, 3])
def test_processes_share_a_step(folder, repeats):
    def epoch(batch_size, rank, world_size):
        options = ["DATA.BATCH_SIZE", batch_size, "TRAIN.REPEATED_AUG", repeats]
        loader = build_train_loader(config(folder, *options), rank=rank, world_size=world_size)
        assert loader.steps_per_epoch == 3
        return arrays(loader.epoch(1))

    def rows(images, labels):
        return sorted((int(label), image.tobytes()) for image, label in zip(images, labels))

    alone, first, second = epoch(12, 0, 1), epoch(6, 0, 2), epoch(6, 1, 2)
    for whole, a, b in zip(alone, first, second):
        assert rows(*whole) == rows(*(np.concatenate(part) for part in zip(a, b)))


def test_a_part_of_the_images_is_no_share_of_a_process(folder, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("paddlevit"), "propagate", True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    loader = build_eval_loader(config(folder, "DATA.NUM_WORKERS", 1), most=3)
    assert len(loader.indices) <= 3 and "processes are more than the" not in caplog.text


def test_processes_share_the_evaluation(folder):
    seen = []
    for rank in range(13):
        loader = build_eval_loader(config(folder), rank=rank, world_size=13)
        assert loader.num_images == NUM_VAL
        labels = sum((labels.tolist() for _, labels in loader), [])
        assert labels == [i % 5 for i in loader.indices]
        seen += loader.indices.tolist()
    assert sorted(seen) == list(range(NUM_VAL))


def test_grey_images(folder):
    ((images, _), *_) = build_eval_loader(config(folder, "DATA.IMAGE_CHANNELS", 1))
    assert images.shape == [6, 1, SIDE, SIDE]
    grey = np.asarray(Image.open(folder / "val/0.png").convert("L")) / 255
    mean, std = np.mean([0.485, 0.456, 0.406]), np.mean([0.229, 0.224, 0.225])
    np.testing.assert_allclose(images[0, 0].numpy(), (grey - mean) / std, atol=2e-6)
    with pytest.raises(UserError, match=r"DATA.IMAGE_CHANNELS must be 1 \(grey\) or 3, got 2"):
        build_eval_loader(config(folder, "DATA.IMAGE_CHANNELS", 2))


def test_thumbnails(eval_loader, tmp_path):
    (tmp_path / "small.png").write_bytes(eval_loader.thumbnail(3))
    with Image.open(tmp_path / "small.png") as image:
        assert image.format == "PNG"
        assert (np.asarray(image) == np.asarray(eval_loader.source.image(3))).all()


@pytest.mark.parametrize("build", [build_train_loader, build_eval_loader])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("IMAGENET_MEAN", [0.5]),
        ("IMAGENET_STD", [0.5, 0.5]),
        ("IMAGE_CHANNELS", 4),
    ],
)
def test_settings_that_cannot_be_used(folder, build, key, value):
    with pytest.raises(UserError, match=f"DATA.{key} must .*, got "):
        build(config(folder, f"DATA.{key}", value))


def test_unreadable_images_are_named(folder, workers, tmp_path):
    for name in ("train", "train_list.txt", "val"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "bad.png").write_bytes((folder / "val" / "0.png").read_bytes()[:60])
    (tmp_path / "gone.png").write_bytes(b"")
    lines = [f"val/{i}.png {i}" for i in range(5)]
    (tmp_path / "val_list.txt").write_text("\n".join([*lines, "gone.png 1", *lines, "bad.png 2"]))
    loader = build_eval_loader(config(tmp_path, "DATA.NUM_WORKERS", workers, "DATA.BATCH_SIZE", 1))
    with pytest.raises(UserError) as caught:
        list(loader)
    hint = "`paddlevit prepare check` lists all that cannot be read"
    assert str(caught.value) == f"{tmp_path}/gone.png is empty; {hint}" and caught.value.__cause__ is None
    (tmp_path / "gone.png").unlink()
    with pytest.raises(MissingFileError, match=r"val_list.txt, line 6: there is no file .*gone.png"):
        list(loader)
    (tmp_path / "gone.png").write_bytes((folder / "val" / "0.png").read_bytes())
    with pytest.raises(UserError, match=f"{tmp_path}/bad.png is not a readable image: .+"):
        list(loader)
    (tmp_path / "bad.png").write_bytes((folder / "val" / "0.png").read_bytes())
    assert sum(len(labels) for _, labels in loader) == 12


@pytest.mark.parametrize(
    ("wanted", "processes", "cores", "expected"),
    [
        (-1, 1, 1, 0),
        (-1, 1, 2, 2),
        (-1, 2, 2, 0),
        (-1, 1, 64, 8),
        (-1, 4, 16, 4),
        (-1, 4, 2, 0),
        (0, 1, 8, 0),
        (5, 1, 8, 5),
    ],
)
def test_number_of_workers(wanted, processes, cores, expected, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    assert room.num_workers(wanted, processes) == expected


def test_more_workers_than_cores_is_worth_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(room.logger, "propagate", False)
    room.logger.addHandler(caplog.handler)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)))
    room.num_workers(4, 1)
    assert not caplog.records
    room.num_workers(3, 2)
    assert "3 x 2 processes are more than the 4 cores" in caplog.text
    room.logger.removeHandler(caplog.handler)


def test_skipping_is_for_training_alone(folder, tmp_path):
    for split in ("train", "val"):
        names = [f"{split}/{i}.png" for i in range(8)]
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(b"no image" if "3.png" in name else (folder / "val/0.png").read_bytes())
        (tmp_path / f"{split}_list.txt").write_text("".join(f"{name} {i}\n" for i, name in enumerate(names)))
    settings = config(tmp_path, "DATA.ON_ERROR", "skip", "DATA.MAX_BAD", 1, "DATA.BATCH_SIZE", 8)
    ((_, labels),) = build_train_loader(settings).epoch(0)
    assert sorted(labels.tolist()) == [0, 1, 2, 4, 4, 5, 6, 7]
    with pytest.raises(UserError, match="3.png is not a readable image"):
        list(build_eval_loader(settings))


@pytest.mark.parametrize("resizer", ["pillow", "auto"])
def test_an_image_is_augmented_anew_every_time(tmp_path, resizer):
    """One picture is the whole data set: only what is drawn for it makes a difference."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "0.png")
    (tmp_path / "train_list.txt").write_text("0.png 0\n" * 16)
    opts = ["DATA.DATA_PATH", str(tmp_path), "DATA.BATCH_SIZE", 4, "TRAIN.CROP", "random_resized"]
    seen = []
    for seed, rank in itertools.product(range(2), repeat=2):
        config = get_config("pit_digits", [*opts, "SEED", seed, "TRAIN.RESIZER", resizer])
        loader = build_train_loader(config, rank=rank, world_size=2)
        seen += [image.numpy().tobytes() for epoch in range(3) for images, _ in loader.epoch(epoch) for image in images]
    assert len(seen) == 4 * 3 * 2 * 4
    assert len(set(seen)) == len(seen)
