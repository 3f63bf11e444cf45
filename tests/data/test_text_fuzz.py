"""Text that people write, damaged at random: configurations, lists, maps, class names, metrics. Read, or a UserError.

FUZZ_EXAMPLES in the environment says how many of each (150 where it does not).
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from paddlevit.config import CONFIG_DIR, get_config
from paddlevit.data.index import read_class_names, read_list
from paddlevit.data.sources import open_imagenet
from paddlevit.errors import UserError
from paddlevit.report.history import read_run

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))
# What readers of text stumble over: YAML's marks and words, numbers, separators, line ends, encodings, control codes.
PIECES = ["{", "}", "[", "]", ": ", "\n", "- ", "#", "&a ", "*a", "!!python/name:os.system ", "? ", "|", "%", '"', "~"]
PIECES += [
    "null",
    "on",
    "1:30",
    "010",
    "1e999",
    "-1",
    "9" * 20,
    "nan",
    "\t",
    " ",
    "\r",
    "\r\n",
    "\x00",
    "\x85",
    "\u2028",
]
PIECES += ["\ufeff", "\u0301", "é", "../", "/etc/passwd", "BASE: bad.yaml\n", "TRAIN:\n", "MODEL: {TYPE: hvt}\n"]
PIECES += ["\ud800", "a" * 300, "{" * 200, '{"phase": "val"', "\x1b[2J"]


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    data = content
    for _ in range(int(rng.integers(1, 6))):
        start, end = sorted(int(at) for at in rng.integers(len(data) + 1, size=2))
        piece = PIECES[rng.integers(len(PIECES))].encode("utf-8", "surrogatepass")
        kind = rng.integers(6)
        if kind < 3:
            data = data[:start] + piece + data[start:]
        elif kind == 3:
            data = data[:start] + data[min(end, start + 20) :]
        elif kind == 4:
            data = data[:start] + bytes(rng.integers(0, 256, 3, dtype=np.uint8)) + data[start:]
        else:
            data = data[: max(end, 1)]
    if rng.random() < 0.05:
        return data.decode("utf-8", "replace").encode("utf-16")
    return data


def configuration(folder, content):
    (folder / "bad.yaml").write_bytes(content)
    get_config(folder / "bad.yaml")


def listing(folder, content):
    (folder / "train_list.txt").write_bytes(content)
    read_list(folder / "train_list.txt")


def mapping(folder, content):
    (folder / "train_map.txt").write_bytes(content)
    (folder / "val_map.txt").write_text("a.png\t0\n")
    for split in ("train", "val"):
        if not (folder / f"{split}.zip").exists():
            with zipfile.ZipFile(folder / f"{split}.zip", "w") as archive:
                archive.writestr("a.png", b"")
                archive.writestr("folder/b.png", b"")
    len(open_imagenet(folder, "train"))


def names(folder, content):
    (folder / "class_names.txt").write_bytes(content)
    read_class_names(folder / "class_names.txt")


def metrics(folder, content):
    (folder / "metrics.jsonl").write_bytes(content)
    (folder / "config.yaml").write_text("SEED: 0\n")
    read_run(folder)


LINE = (
    b'{"phase": "train", "epoch": 1, "step": 2, "steps_per_epoch": 4, "loss": 0.5, "lr": 0.1, "images_per_sec": 9.0}\n'
)
SOUND = {
    configuration: (CONFIG_DIR / "pit" / "pit_ti_224.yaml").read_bytes(),
    listing: b"train/a b/1.jpg 0\ntrain/c\xc3\xa9/2.png 1\nval/3.JPEG 12\n",
    mapping: b"a.png\t0\nfolder/b.png\t1\n",
    names: "cat\nd\u00f6g\n\nhot dog\n".encode(),
    metrics: LINE * 2 + LINE.replace(b"train", b"val").replace(b'"lr"', b'"weights": "ema", "acc1"'),
}


@pytest.mark.parametrize("read", SOUND, ids=lambda read: read.__name__)
def test_damaged_text_is_read_or_refused_by_name(tmp_path: Path, read):
    read(tmp_path, SOUND[read])
    refused = 0
    for seed in range(EXAMPLES):
        content = damaged(SOUND[read], np.random.default_rng(seed))
        try:
            read(tmp_path, content)
        except UserError as error:
            refused += 1
            assert str(tmp_path) in str(error) or "bad.yaml" in str(error) or read is configuration, (seed, content)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {content!r}") from error
    assert refused
