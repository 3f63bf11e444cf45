"""export.json: what a program must know of an exported model to use it, without our configuration."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paddle import nn
from yacs.config import CfgNode

from paddlevit.calibration import Calibration
from paddlevit.errors import MissingFileError, UserError
from paddlevit.runtime.files import fingerprint

DESCRIPTION_FILE = "export.json"

_PREPROCESSING = {
    "image_size": "DATA.IMAGE_SIZE",
    "channels": "DATA.IMAGE_CHANNELS",
    "resize_mode": "DATA.RESIZE_MODE",
    "crop_pct": "DATA.CROP_PCT",
    "interpolation": "DATA.INTERPOLATION",
    "mean": "DATA.IMAGENET_MEAN",
    "std": "DATA.IMAGENET_STD",
    "exif_orientation": "DATA.EXIF_ORIENTATION",
}


def describe(config: CfgNode, model: nn.Layer, class_names: Sequence[str]) -> dict[str, Any]:
    """The description of a model, but for its files, which `with_file` adds.

    Its preprocessing: an image, turned upright where `exif_orientation` is apply, RGB or with one channel grey, whose
    shorter side becomes `resize_shorter_side_to` and whose centre is cut out, or null and both sides become
    `image_size`; then (x / 255 - mean) / std by channel.
    """
    data = config.DATA
    colors = "RGB" if data.IMAGE_CHANNELS == 3 else "grey"
    return {
        "variant": config.MODEL.NAME,
        "family": config.MODEL.TYPE,
        "num_classes": config.MODEL.NUM_CLASSES,
        "weights_sha256": fingerprint(model.state_dict()),
        "input": f"images, float32 [N, {data.IMAGE_CHANNELS}, {data.IMAGE_SIZE}, {data.IMAGE_SIZE}], {colors}",
        "output": f"logits, float32 [N, {config.MODEL.NUM_CLASSES}]",
        "preprocessing": {
            **{name: data[key.split(".")[1]] for name, key in _PREPROCESSING.items()},
            "resize_shorter_side_to": None if data.RESIZE_MODE == "squash" else int(data.IMAGE_SIZE / data.CROP_PCT),
        },
        "class_names": list(class_names),
    }


def with_file(
    description: dict[str, Any], folder: Path, file: str, precision: str, measured: dict[str, Any] | None = None
) -> dict[str, Any]:
    """`description` with "files", the newest last, and the "precision" that each is for: those of the same model that
    `folder` has already, and `file`; and what was "measured" to choose it. Raises UserError where it would keep files
    of another model.
    """
    earlier: dict[str, Any] = {"files": [], "precision": {}, "measured": {}}
    if (folder / DESCRIPTION_FILE).exists():
        earlier = read_description(folder)
    kept = [name for name in earlier["files"] if name != file and (folder / name).is_file()]
    if kept and any(earlier.get(key) != value for key, value in description.items()):
        raise UserError(f"{folder} holds another model ({', '.join(kept)}): export into another folder, or remove it")
    precisions = {**{name: earlier["precision"].get(name, "f32") for name in kept}, file: precision}
    tables = {name: table for name, table in {**earlier["measured"], file: measured}.items() if name in kept or table}
    return {**description, "files": list(precisions), "precision": precisions, "measured": tables}


def read_description(folder: Path) -> dict[str, Any]:
    """The description in `folder`. Raises UserError where there is none, or one that says too little."""
    path = folder / DESCRIPTION_FILE
    try:
        description = {"precision": {}, "measured": {}, **json.loads(path.read_bytes())}
        Calibration.of(description.get("calibration"))
        files, names, num_classes = (description[key] for key in ("files", "class_names", "num_classes"))
        complete = set(_PREPROCESSING) <= set(description["preprocessing"]) and isinstance(num_classes, int)
        complete &= bool(files) and all(os.path.basename(file) == file for file in files)  # beside it
        complete &= len(names) in (0, num_classes) and all(isinstance(name, str) for name in names)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError(f"there is no {path}: name a folder that export_model.py has written") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error!r}") from None
    if not complete:
        raise UserError(
            f"{path} is damaged: it needs files beside it, num_classes, as many class_names or none, and "
            f"{', '.join(_PREPROCESSING)}"
        )
    return description


def data_values(description: dict[str, Any]) -> dict[str, Any]:
    """The keys of the configuration, with their values, that make the images which the model was evaluated on."""
    values = {key: description["preprocessing"][name] for name, key in _PREPROCESSING.items()}
    return {"MODEL.NUM_CLASSES": description["num_classes"], **values}
