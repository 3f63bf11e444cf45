"""prepare_data.py audit: what was planted is found, nothing else, and the lists that it writes train."""

from __future__ import annotations

import html
import json
import re

import numpy as np
import pytest
from PIL import Image

from paddlevit.commands.prepare_data import main
from paddlevit.commands.train import main as train
from paddlevit.data.prepare import write_digits
from paddlevit.data.sources import open_imagenet

HOSTILE = "<img src=x onerror=alert(1)> & '"


def saved_again(image, path):
    """Nearly the same image in the five ways that a path may name."""
    image = image.convert("RGB")
    if "large" in path.name or "small" in path.name:
        image = image.resize([48 if "large" in path.name else 16] * 2, Image.Resampling.BICUBIC)
    if "light" in path.name:
        image = Image.fromarray((np.asarray(image).astype(int) + 5).clip(0, 255).astype("uint8"))
    image.save(path, **({"quality": 75} if path.suffix == ".jpg" else {}))


def plant(folder, seed):
    """Give 36 of the digits another label, copy 50 others, and put in one that is broken, turned or odd. The names of
    the former, and the pairs of paths of the latter.
    """
    rng = np.random.RandomState(seed)
    for split in ("train", "val"):
        (folder / f"{split}_list.txt").unlink()
    files = sorted(folder.glob("*/*/*.png"))
    order = rng.permutation(len(files)).tolist()
    flipped, pairs = [], []
    for i in order[:36]:
        file = files[i]
        to = file.parents[1] / str((int(file.parent.name) + rng.randint(1, 10)) % 10) / file.name
        flipped.append(str(file.rename(to)))
    for count, i in enumerate(order[36:86]):
        kind = ("same.png", "again.jpg", "large.png", "light.png", "small.png")[count % 5]
        split = "val" if count // 5 % 3 == 0 else "train"
        label = int(files[i].parent.name) + (count % 10 == 5)  # some in another class
        to = folder / split / str(label % 10) / f"{files[i].stem}_{kind}"
        saved_again(Image.open(files[i]), to)
        pairs.append({str(files[i]), str(to)})
    (folder / "train" / "3" / "broken.jpg").write_bytes(b"no image")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(files[order[90]]).rotate(90).convert("RGB").save(folder / "val" / "1" / "turned.jpg", exif=exif)
    Image.linear_gradient("L").resize((200, 40)).save(folder / "train" / "3" / "odd.png")
    return flipped, pairs


def expected_without(group):
    """The paths of a pair that no list to train on has."""
    train = [image["image"] for image in group["images"] if image["split"] == "train"]
    if group["leak"]:
        return train
    return train[0 if group["disagree"] else 1 :] if group["same_pixels"] else []


def listing(folder):
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.slow
def test_planted_in_the_digits(tmp_path, capsys):
    data, output = tmp_path / "digits", tmp_path / "audit"
    write_digits(data)
    flipped, pairs = plant(data, 0)
    before = listing(data)
    assert main(["audit", str(data), "-output", str(output), "-workers", "0", "-seed", "0"]) == 0
    assert listing(data) == before
    found = json.loads((output / "audit.json").read_text())
    groups = [{image["image"] for image in group["images"]} for group in found["duplicates"]]
    assert sorted(map(sorted, groups)) == sorted(map(sorted, pairs)), "all, and no others"
    for group in found["duplicates"]:
        images = group["images"]
        assert group["leak"] == (len({image["split"] for image in images}) == 2)
        assert group["disagree"] == (len({image["class"] for image in images}) == 2)
        assert group["same_pixels"] == any("_same" in image["image"] for image in images)
    # A copy that was put into another class has a wrong label, too.
    wrong = {*flipped, *(i["image"] for g in found["duplicates"] if g["disagree"] for i in g["images"])}
    suspects = {suspect["image"] for suspect in found["suspects"]}
    assert len(suspects.intersection(flipped)) >= 0.9 * len(flipped)
    assert len(suspects & wrong) >= 0.7 * len(suspects)
    assert [image["size"] for image in found["odd"]] == [[200, 40]]
    assert [image["image"] for image in found["turned"]] == [str(data / "val" / "1" / "turned.jpg")]
    assert len(found["unreadable"]) == 1 and "broken.jpg is not a readable image" in found["unreadable"][0]
    superfluous = {path for group in found["duplicates"] for path in expected_without(group)}
    assert {image["image"] for image in found["removed"]} == superfluous | {str(data / "train" / "3" / "broken.jpg")}
    said = capsys.readouterr().out
    assert re.search(rf"^left out +{len(superfluous) + 1} ", said, re.M) and f"-data_path {output}" in said
    source = open_imagenet(output, "train")
    assert len(source) == len(open_imagenet(data, "train")) - len(superfluous) - 1
    assert len(open_imagenet(output, "val")) == len(open_imagenet(data, "val"))
    page = (output / "audit.html").read_text()
    assert page.count("<img ") >= len(suspects) + 80 and 'src="http' not in page


@pytest.fixture
def colors(tmp_path):
    """Red and green noise, of which one is in train twice, one in train and val, and one in both classes."""
    data, rng = tmp_path / "colors", np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 3)):
        for label, name in enumerate((HOSTILE, "b")):
            (data / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (8, 8, 3), dtype=np.uint8)
                pixels[..., label] += 100
                Image.fromarray(pixels).resize((32, 32)).save(data / split / name / f"{HOSTILE}{i}.png")
    first = Image.open(data / "train" / HOSTILE / f"{HOSTILE}0.png")
    first.save(data / "train" / HOSTILE / "zcopy.png")
    Image.open(data / "train" / "b" / f"{HOSTILE}1.png").save(data / "val" / "b" / "leak.png")
    Image.open(data / "train" / "b" / f"{HOSTILE}2.png").save(data / "train" / HOSTILE / "other.png")
    return data


def test_the_lists_train_and_names_stay_text(colors, tmp_path, capsys):
    output = tmp_path / "audit"
    assert main(["audit", str(colors), "-output", str(output), "-workers", "2"]) == 0
    found = json.loads((output / "audit.json").read_text())
    assert sorted((image["class"], image["why"]) for image in found["removed"]) == sorted(
        [
            (HOSTILE, "is in several classes"),
            ("b", "is in several classes"),
            ("b", "is in val too"),
            (HOSTILE, f"has the pixels of {colors / 'train' / HOSTILE / HOSTILE}0.png"),
        ]
    )
    page = (output / "audit.html").read_text()
    assert HOSTILE not in page and html.escape(HOSTILE, quote=False).split("'")[0] in page
    run = ["-cfg", "pit_digits", "-data_path", output, "-output", tmp_path / "run", "-batch_size", 8, "-num_workers", 0]
    short = ["TRAIN.NUM_EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0, "REPORT_FREQ", 1]
    assert train([str(word) for word in (*run, "-opts", *short)], nprocs=1) == 0
    assert "data: 18 images to train on, 7 to validate" in (tmp_path / "run" / "log.txt").read_text()
    again = ["-output", str(tmp_path / "by-weights"), "-workers", "0"]
    assert main(["audit", str(output), *again, "-weights", str(tmp_path / "run")]) == 0
    assert re.search("^left out +0 ", capsys.readouterr().out.split("shows them")[1], re.M)


def test_blank_images_of_other_colors_are_not_the_same(tmp_path):
    for split in ("train", "val"):
        for i, name in enumerate(("black", "white", "red", "grey")):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            color = ((0, 0, 0), (255, 255, 255), (200, 0, 0), (90, 90, 90))[i]
            Image.new("RGB", (32 if split == "val" else 48, 32), color).save(tmp_path / "data" / split / name / "a.png")
    assert main(["audit", str(tmp_path / "data"), "-output", str(tmp_path / "out"), "-workers", "0"]) == 0
    found = json.loads((tmp_path / "out" / "audit.json").read_text())["duplicates"]
    assert [[image["class"] for image in group["images"]] for group in found] == [
        [name] * 2 for name in ("black", "grey", "red", "white")
    ]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_few_images_of_one_class(tmp_path, count):
    for split, files in (("train", [*range(count), "broken"]), ("val", ["broken"])):
        (tmp_path / "data" / split / "one").mkdir(parents=True)
        for file in files:
            path = tmp_path / "data" / split / "one" / f"{file}.png"
            path.touch()
            if file != "broken":
                Image.linear_gradient("L").rotate(30 * file).save(path)
    assert main(["audit", str(tmp_path / "data"), "-output", str(tmp_path / "out"), "-workers", "0"]) == 0
    found = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert found["probe_accuracy"] == (1.0 if count == 5 else None) and not found["suspects"]
    assert [image["split"] for image in found["removed"]] == ["train"] and len(found["unreadable"]) == 2
    assert ("Not checked" in (tmp_path / "out" / "audit.html").read_text()) == (count < 5)


def test_what_cannot_be_audited(colors, tmp_path, capsys):
    def refused(*words):
        assert main(["audit", *map(str, words), "-workers", "0"]) == 2
        return capsys.readouterr().err

    assert "paddlevit prepare split" in refused(colors / "train")
    assert f"{colors} is not empty" in refused(colors, "-output", colors)
    assert "holds the data" in refused(colors, "-output", colors, "-force")
    assert main(["zip", str(colors), "-output", str(tmp_path / "zip")]) == 0
    assert "allowed: list files, or folders of classes" in refused(tmp_path / "zip", "-output", tmp_path / "out")
