"""The fastest precision of a model, measured on the user's images and processor, that keeps its top-1."""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

from paddlevit.classifier import Classifier
from paddlevit.commands.benchmark import by_turns
from paddlevit.commands.comparison import Comparison, calibration_images, compare, comparison_images
from paddlevit.commands.parser import table
from paddlevit.export import export, open_exported
from paddlevit.export.read import Exported
from paddlevit.export.write import Bound

_BATCH_SIZE, _ROUNDS = 8, 9
_MIXED = "int8 mixed"  # what costs too much stays in f32


class Taken(NamedTuple):
    """An exported file, how it compares with the model, on which images, and the table that it was chosen by."""

    path: Path
    precision: str
    compared: Comparison
    where: str
    measured: dict[str, Any] | None = None


def exported_as_asked(classifier: Classifier, args: argparse.Namespace, folder: Path) -> Taken:
    """Exported in the one -precision that is asked for, and compared on what `comparison_images` has."""
    calibration = calibration_images(classifier, args) if args.precision == "int8" else None
    images, where = comparison_images(classifier, args)
    path = export(classifier.model, classifier.image_shape, args.format, folder, calibration=calibration)
    (compared,) = compare(classifier, [open_exported(path, precision=args.precision)], images)
    return Taken(path, args.precision, compared, where)


def fastest_within(classifier: Classifier, args: argparse.Namespace, folder: Path) -> Taken:
    """Of OpenVINO in f32, bf16 and int8 the fastest that loses at most -max_drop points of top-1 on the validation
    images of -data_path; its file alone stays in `folder`. Where int8 would be that but for its top-1, mixed int8 is
    tried too. f32 is always within the bound.
    """
    calibration = calibration_images(classifier, args)
    images, where = comparison_images(classifier, args)
    batches: Any = list(images)
    write = functools.partial(export, classifier.model, classifier.image_shape, "openvino", folder)
    plain, int8 = write(), write(calibration=calibration)
    files = {name: open_exported(int8 if name == "int8" else plain, precision=name) for name in ("f32", "bf16", "int8")}
    files = {name: file for name, file in files.items() if file.precision == name}  # not all processors have bf16
    compared = dict(zip(files, compare(classifier, list(files.values()), batches)))
    rows = _rows(files, compared, batches[0][0], args.max_drop)
    if min(rows, key=lambda row: row["ms_per_image"])["precision"] == "int8" and not rows[-1]["within"]:
        mixed = write(calibration=calibration, bound=Bound(batches, args.max_drop))  # in place of int8
        files[_MIXED] = open_exported(mixed, precision="int8")
        compared[_MIXED] = compare(classifier, [files[_MIXED]], batches)[0]
        rows = _rows(files, compared, batches[0][0], args.max_drop)
    best = min((row for row in rows if row["within"]), key=lambda row: row["ms_per_image"])["precision"]
    path = files[best].path
    for file in {plain, int8} - {path}:
        file.unlink()
        file.with_suffix(".bin").unlink()
    num_images = compared[best].num_images
    measured = {"taken": best, "max_drop": args.max_drop, "images": num_images, "rows": rows}
    return Taken(path, files[best].precision, compared[best], where, measured)


def _rows(
    files: dict[str, Exported], compared: dict[str, Comparison], images: Any, max_drop: float
) -> list[dict[str, Any]]:
    """A row for each precision: milliseconds per image, by turns, and top-1 in percent."""
    images = images[:_BATCH_SIZE]
    steps = {name: functools.partial(file, images) for name, file in files.items()}
    seconds = by_turns(steps, _ROUNDS, time.perf_counter)
    rows = []
    for name, each in compared.items():
        model, exported = each.accuracy or (0.0, 0.0)
        ms = 1e3 * statistics.median(seconds[name]) / len(images)
        drop = round(model - exported, 6)
        rows.append({"precision": name, "ms_per_image": round(ms, 4), "top1": round(exported, 4), "drop": drop})
        rows[-1]["within"] = drop <= max_drop or name == "f32"
    return rows


def as_text(measured: dict[str, Any]) -> str:
    """The table, the row that was taken marked."""
    rows = [("precision", "ms/image", "top-1", "drop", "")]
    for row in measured["rows"]:
        note = "taken" if row["precision"] == measured["taken"] else "" if row["within"] else "loses too much"
        numbers = f"{row['ms_per_image']:.3f}", f"{row['top1']:.2f} %", f"{row['drop']:+.2f}"
        rows.append((row["precision"], *numbers, note))
    return table(rows, ">")
