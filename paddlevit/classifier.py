"""A trained or exported model with its preparation and the names of its classes."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Union

import numpy as np
import paddle
from paddle import Tensor, nn
from PIL import Image
from yacs.config import CfgNode

from paddlevit.calibration import CALIBRATION_FILE, Calibration
from paddlevit.config import get_config, with_values
from paddlevit.data import build_decoding, build_preparation, open_source
from paddlevit.data.classes import Classes, changes_since_run, classes_beside, folder_of, refuse_difference
from paddlevit.data.decode import decode, to_rgb
from paddlevit.data.index import imagenet_names, plain_name, read_class_names, refuse_namesakes
from paddlevit.data.sources import Source, read_image
from paddlevit.data.tta import averaged
from paddlevit.errors import MissingFileError, UserError
from paddlevit.export import open_exported
from paddlevit.export.description import DESCRIPTION_FILE, data_values, read_description
from paddlevit.export.engines import compiled_for
from paddlevit.export.read import Exported, exported_file
from paddlevit.models import autocast, build_model
from paddlevit.runtime import process, settings
from paddlevit.runtime.files import sha256
from paddlevit.schema import TTA, refuse_keys_of_evaluation
from paddlevit.weights import load_weights
from paddlevit.weights.hub import official, variant_of
from paddlevit.weights.readers import find

logger = logging.getLogger(__name__)

FilePath = Union[str, "os.PathLike[str]"]
ImageLike = Union[FilePath, bytes, np.ndarray, Image.Image]
Prediction = dict[str, Any]

_BATCH_SIZE = 32


class Classifier:
    """Classifies images. Threads may share one: they decode at the same time and compute in turns.

    `weights`: a run's folder, weights as `load_weights` takes them, or what export_model.py wrote, a folder or one of
    its files. `cfg` and `opts`: of weights, as in `get_config` (default: the config.yaml beside them, or the variant
    that they are published for). `device`: auto (Paddle's current one), gpu or cpu. `engine`: of weights, paddle,
    openvino or onnx, for which they are compiled, or auto: openvino where it is installed and the device is a CPU.
    `precision`: auto (what the export was made for, else f32), f32, bf16 of openvino, int8 of an export. `tta`: flip or
    shift, test-time augmentation (the mean of the logits of several views of an image). `labels`: names of the classes,
    or a file with one a line (default: those that the run or the export has saved, or those of the data in
    DATA.DATA_PATH). Raises UserError.
    """

    def __init__(
        self,
        weights: FilePath,
        cfg: str | Path | None = None,
        *,
        device: str = "auto",
        engine: str = "paddle",
        precision: str = "auto",
        tta: str = "none",
        labels: FilePath | Sequence[str] | None = None,
        opts: Sequence[Any] | None = None,
    ) -> None:
        if device != "auto":
            paddle.set_device(process.choose_device(device))
        if tta not in TTA:
            raise UserError(f"tta {tta}, allowed: {', '.join(TTA)}")
        refuse_keys_of_evaluation(opts, "here engine, precision and tta are arguments")
        self.tta = tta
        self.model: nn.Layer | None = None
        self._exported: Exported | None = None
        self.classes: Classes | None  # as the run or the export has them; `class_names` are what they are called
        self._lock = threading.Lock()
        best = Path(os.path.expanduser(weights)) / "best.pdparams"
        file = None if best.is_file() else exported_file(weights)
        if file is None:
            self._read_run(weights, cfg, opts or (), labels)
            self._load(best if best.is_file() else weights, engine, precision)
        elif cfg or opts or engine != "paddle":
            given = cfg or " ".join(map(str, opts or ())) or f"engine {engine}"
            raise UserError(f"{given} cannot be combined with {file}: its {DESCRIPTION_FILE} defines it")
        else:
            self._open(file, labels, precision)
        by = self._exported
        self.engine, self.precision = (by.engine, by.precision) if by else ("paddle", "f32")
        self._decoding = build_decoding(self.config)
        # The second makes float32 [N, C, H, W] of pixels uint8 [N, H, W, C].
        self._prepare, self.normalize = build_preparation(self.config)

    def _read_run(
        self, weights: FilePath, cfg: str | Path | None, opts: Sequence[Any], labels: FilePath | Sequence[str] | None
    ) -> None:
        """What is known of weights: their configuration, classes and calibration."""
        cfg = os.path.expanduser(cfg) if cfg else config_beside(weights)
        own = ["MODEL.WEIGHTS", "model"]  # a run's file says which it started from
        if Path(cfg).name != "config.yaml":
            own += ["DATA.EXIF_ORIENTATION", "apply"]  # as photographs are meant; a run has its own
        config = get_config(cfg, [*own, *opts])
        self.classes = classes_beside(weights) or (classes_beside(cfg) if Path(cfg).is_file() else None)
        known = labels or self.classes
        self.class_names = _chosen(labels, self.classes, config) if known else _names_of_data(config)
        if self.class_names and config.DATA.INFER_NUM_CLASSES:
            inferred = {"MODEL.NUM_CLASSES": len(self.class_names), "DATA.INFER_NUM_CLASSES": False}
            config = with_values(config, inferred)
        if not config.MODEL.NUM_CLASSES:
            raise UserError("MODEL.NUM_CLASSES is 0: a model without a head predicts nothing")
        if self.classes and "DATA.DATA_PATH" in opts[::2]:
            _data(config, self.classes)  # complains about other names
        self.config = config
        for line in changes_since_run(weights, self.config):
            logger.warning("%s", line)
        self.calibration = _calibration_beside(weights, config.MODEL.WEIGHTS)

    def _load(self, weights: FilePath, engine: str, precision: str) -> None:
        settings.turn_off_stride_kernels()
        if self.config.AMP:
            process.check_amp(self.config.AMP_DTYPE)
        self.name = self.config.MODEL.NAME
        self.model = build_model(self.config)
        load_weights(self.model, official(weights, self.config.MODEL.NAME), which=self.config.MODEL.WEIGHTS)
        self.model.eval()
        self._exported = compiled_for(self.model, self.image_shape, engine, precision)

    def _open(self, file: Path, labels: FilePath | Sequence[str] | None, precision: str) -> None:
        """An exported file, with what its export.json says."""
        description = read_description(file.parent)
        self.config = with_values(get_config(), data_values(description))
        self.classes = Classes(description["class_names"], str(file.parent / DESCRIPTION_FILE))
        self.class_names = _chosen(labels, self.classes, self.config)
        self.calibration = Calibration.of(description.get("calibration"))
        exported_for = description["precision"].get(file.name, "f32")
        wanted = exported_for if precision == "auto" else precision
        if wanted != exported_for and "int8" in (wanted, exported_for):
            allowed = f"allowed: auto, {exported_for} (it was exported for that)"
            raise UserError(f"precision {precision} of {file}, {allowed}")
        self._exported = open_exported(file, device=paddle.device.get_device().split(":")[0], precision=wanted)
        self.name = f"{file.parent.name}/{file.name}"

    @property
    def image_shape(self) -> list[int]:
        """[C, H, W] of the images that the model takes."""
        data = self.config.DATA
        return [data.IMAGE_CHANNELS, data.IMAGE_SIZE, data.IMAGE_SIZE]

    def predict(self, images: ImageLike | list[ImageLike] | tuple[ImageLike, ...], topk: int = 5) -> Any:
        """The `topk` most likely classes, top-1 first: [{"label": name, "index", "probability"}, ...].

        Where the run or the export has a `calibration`, each has "known" too, false where the image is none of the
        classes, and the image's "energy", by which that is decided; and probabilities are at its temperature.

        An image is a path, the bytes of a file, an array uint8 [H, W, 3] in RGB, or a Pillow image. A list of images
        gives a list of such lists. Raises UserError for what is not an image, and where logits are not finite.
        """
        logits = self.logits(images)
        return self.ranked(logits, topk) if logits.ndim == 1 else [self.ranked(row, topk) for row in logits]

    def logits(self, images: ImageLike | list[ImageLike] | tuple[ImageLike, ...]) -> np.ndarray:
        """float32 [K] of one image, [N, K] of a list of images."""
        if not isinstance(images, (list, tuple)):
            return self.forward(self.normalize(self.pixels(images)[None]))[0]
        parts = [images[i : i + _BATCH_SIZE] for i in range(0, len(images), _BATCH_SIZE)]
        rows = [self.forward(self.normalize(np.stack([self.pixels(image) for image in part]))) for part in parts]
        return np.concatenate([np.empty([0, self.config.MODEL.NUM_CLASSES], "float32"), *rows])

    def opened(self, image: ImageLike) -> Image.Image:
        """An image as the run reads its files: DATA.EXIF_ORIENTATION, DATA.MAX_PIXELS."""
        if isinstance(image, Image.Image):
            try:
                return to_rgb(image, self._decoding)
            except Exception as error:  # Pillow reads a file when its pixels are asked for
                raise UserError(f"the image cannot be read: {error}") from error
        if isinstance(image, (str, os.PathLike)):
            return decode(read_image(os.fspath(image)), os.fspath(image), self._decoding)
        if isinstance(image, bytes):
            return decode(image, "the image", self._decoding)
        got = type(image).__name__
        if isinstance(image, np.ndarray):
            if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
                return Image.fromarray(image)
            got = f"{image.dtype} {list(image.shape)}"
        raise UserError(f"an image must be a path, bytes, a Pillow image or an array uint8 [H, W, 3], got {got}")

    def pixels(self, image: ImageLike) -> np.ndarray:
        """What evaluation sees of an image: uint8 [H, W, C]."""
        return self._prepare(self.opened(image))

    def forward(self, images: Tensor) -> np.ndarray:
        """Logits float32 [N, K] of normalised images [N, C, H, W]."""
        logits = averaged(self._computed, images, self.tta)
        if logits.shape[1] != self.config.MODEL.NUM_CLASSES:
            raise UserError(f"{self.name} has {logits.shape[1]} classes, not {self.config.MODEL.NUM_CLASSES}")
        return logits

    def _computed(self, images: Tensor) -> np.ndarray:
        if self._exported:
            return self._exported(images.numpy())
        assert self.model is not None
        with self._lock, paddle.no_grad(), autocast(self.config)():
            return self.model(images).astype("float32").numpy()

    def ranked(self, logits: np.ndarray, topk: int) -> list[Prediction]:
        """The `topk` most likely classes by the logits [K] of an image. Raises UserError where these are not finite."""
        if topk < 1:
            raise UserError(f"topk must be 1 or more, got {topk}")
        if not np.isfinite(logits).all():
            raise UserError(f"{self.name} gives logits that are not finite")
        best = np.argsort(-logits, kind="stable")[:topk]
        probabilities, verdict = self.calibration.probabilities(logits)[best], self.calibration.verdict(logits)
        return [
            {"label": self.label(index), "index": index, "probability": float(probability), **verdict}
            for index, probability in zip(best.tolist(), probabilities)
        ]

    def label(self, index: int) -> str:
        """The class's name, or its number where it has none."""
        return self.class_names[index] if index < len(self.class_names) else str(index)


def config_beside(weights: FilePath) -> str | Path:
    """The config.yaml beside the weights, or the variant that published ones are of."""
    cfg = folder_of(weights) / "config.yaml"
    if not cfg.is_file():
        variant = variant_of(str(weights))
        if variant:
            return variant
        if not folder_of(weights).is_dir() and not str(weights).startswith("hf:"):
            find(weights)  # raises where the weights themselves are missing
        raise UserError(
            f"-cfg FILE is missing: {weights} is no exported model, and has no {cfg.name} of a run beside it"
        )
    return cfg


def _calibration_beside(weights: FilePath, which: str) -> Calibration:
    """What a run has found for its best weights, where they are these, and not the average beside them."""
    path = folder_of(weights) / CALIBRATION_FILE
    if not path.is_file():
        return Calibration()
    try:
        known = json.loads(path.read_bytes())
        own, found = known.pop("weights_sha256"), Calibration.of(known)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {error!r}") from None
    if which == "model" and own == sha256(Path(find(weights))):
        return found
    logger.info("not calibrated: %s is of other weights", path)
    return Calibration()


def _chosen(labels: FilePath | Sequence[str] | None, known: Classes | None, config: CfgNode) -> Sequence[str]:
    """`labels`, which may rename all `known` classes, or else these. Raises UserError for any other difference."""
    chosen = known or Classes([], "")
    if isinstance(labels, (str, os.PathLike)):
        names = read_class_names(Path(os.path.expanduser(labels)))
        if names is None:
            raise MissingFileError(f"-labels {labels}: there is no such file")
        chosen = Classes(names, str(labels))
    elif labels:
        chosen = Classes([plain_name(str(label)) for label in labels], "labels")
        refuse_namesakes("labels", dict(enumerate(chosen.names)), "index")
    count, allowed = len(chosen.names), config.MODEL.NUM_CLASSES
    if count != allowed and count and not config.DATA.INFER_NUM_CLASSES:
        raise UserError(f"{chosen.where} has {count} names, but the model has {allowed} classes (MODEL.NUM_CLASSES)")
    if known and not set(known.names).isdisjoint(chosen.names):
        refuse_difference(known, chosen)
    return chosen.names


def _data(config: CfgNode, classes: Classes | None = None) -> Source | None:
    """The images in DATA.DATA_PATH to validate with, or else to train on. Raises UserError for other `classes`."""
    for split in ("val", "train"):
        with contextlib.suppress(MissingFileError if classes else UserError):
            return open_source(config, split, classes)
    return None


def _names_of_data(config: CfgNode) -> Sequence[str]:
    """The names of the classes in DATA.DATA_PATH, or ImageNet's, if they are as many as the model has; or none."""
    source = _data(config)
    found = [[] if source is None else source.class_names, list(imagenet_names(Path(config.DATA.DATA_PATH)).values())]
    return next((names for names in found if len(names) == config.MODEL.NUM_CLASSES), [])
