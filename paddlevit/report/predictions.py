"""What the best weights said about every validation image: the confusions, the classes, the worst mistakes."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Callable

import numpy as np
from PIL import Image

logger = logging.getLogger(__name__)

_MOST_CLASSES_IN_MATRIX = 50
_MOST_CONFUSIONS = 30
_MOST_CLASSES_OPEN = 30
_MOST_MISTAKES = 12
_MOST_CLASSES_WIDE = 24  # above that the cells of the matrix are small
_SHORT_NAME = 4  # characters that fit upright above a column of the matrix
_TINY = 64  # pixels; smaller pictures are shown with sharp edges
_HEAT_LEVELS = 9  # as in style.css


@dataclass(frozen=True)
class Predictions:
    """Labels and predictions of N images, in any order.

    Classes that `class_names` does not reach are called by their number.
    """

    labels: np.ndarray  # int64 [N]
    predicted: np.ndarray  # int64 [N]
    confidence: np.ndarray  # float32 [N], probability of the predicted class
    class_names: Sequence[str]
    names: Callable[[int], str]  # file name of the i-th image
    thumbnail: Callable[[int], bytes]  # the i-th image as JPEG or PNG; called for the shown ones only

    def __post_init__(self) -> None:
        assert self.labels.shape == self.predicted.shape == self.confidence.shape
        assert min(self.labels.min(initial=0), self.predicted.min(initial=0)) >= 0

    @property
    def num_classes(self) -> int:
        """The classes that have a name, a label or a prediction."""
        return int(max(len(self.class_names), self.labels.max(initial=0) + 1, self.predicted.max(initial=0) + 1))

    def class_name(self, label: int) -> str:
        """Name of class number `label`."""
        return str(self.class_names[label]) if label < len(self.class_names) else str(label)

    def confusions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """True class, predicted class and number of images, each int64 [M], of the M pairs that occur."""
        # All pairs of 22,000 classes would not fit into memory; those that occur do.
        pairs, counts = np.unique(self.labels.astype("int64") * self.num_classes + self.predicted, return_counts=True)
        return pairs // self.num_classes, pairs % self.num_classes, counts

    def worst_mistakes(self) -> list[int]:
        """Indices of the wrong predictions with the highest confidence, highest first."""
        wrong = np.flatnonzero(self.labels != self.predicted)
        confidence = np.nan_to_num(self.confidence[wrong], nan=-1.0)
        return [int(i) for i in wrong[np.argsort(-confidence, kind="stable")][:_MOST_MISTAKES]]


def prediction_sections(predictions: Predictions) -> str:
    """Sections of the page: confusions, accuracy per class, most confident mistakes."""
    if not len(predictions.labels):
        return "<section><h2>Predictions</h2><p>There was no validation image.</p></section>"
    beside = _confusion_section(predictions) + _class_section(predictions)
    return f'<div class="beside">{beside}</div>{_mistake_section(predictions)}'


def _confusion_section(predictions: Predictions) -> str:
    right = int((predictions.labels == predictions.predicted).sum())
    total = len(predictions.labels)
    told = f"{right:,} of {total:,} images are right, {total - right:,} wrong."
    if predictions.num_classes <= _MOST_CLASSES_IN_MATRIX:
        head = "Confusion matrix"
        told += " Each row is a true class, each column what it was taken for."
        body, kind = _matrix(predictions), ' class="fit"'
    else:
        head = "Most frequent confusions"
        body, kind = _confusion_table(predictions), ""
    return f"<section{kind}><h2>{head}</h2><p>{told}</p>{body}</section>"


def _matrix(predictions: Predictions) -> str:
    size = predictions.num_classes
    counts = np.zeros((size, size), dtype="int64")
    true, predicted, count = predictions.confusions()
    counts[true, predicted] = count
    names = [predictions.class_name(i) for i in range(size)]
    kind = " upright" if max(map(len, names)) <= _SHORT_NAME else ""
    kind += " small" if size > _MOST_CLASSES_WIDE else ""
    columns = "".join(f'<th scope="col" title="{escape(name)}"><span>{_bdi(name)}</span></th>' for name in names)
    rows = []
    for i, name in enumerate(names):
        cells = "".join(_cell(counts, i, j) for j in range(size))
        rows.append(f'<tr><th scope="row" title="{escape(name)}"><span>{_bdi(name)}</span></th>{cells}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Confusion matrix"><table class="matrix{kind}">'
        f'<thead><tr><td class="corner">true ↓<br>predicted →</td>{columns}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(counts: np.ndarray, true: int, predicted: int) -> str:
    count = int(counts[true, predicted])
    if not count:
        return "<td></td>" if true != predicted else '<td class="r">0</td>'
    # The root makes single mistakes visible beside a nearly perfect diagonal.
    level = int(np.ceil(_HEAT_LEVELS * (count / counts[true].sum()) ** 0.5))
    return f'<td class="{"r" if true == predicted else "w"} h{level}">{count}</td>'


def _confusion_table(predictions: Predictions) -> str:
    true, predicted, counts = predictions.confusions()
    images = np.bincount(predictions.labels, minlength=predictions.num_classes)
    wrong = np.flatnonzero(true != predicted)
    if not len(wrong):
        return "<p>No class was taken for another.</p>"
    order = wrong[np.argsort(-counts[wrong], kind="stable")][:_MOST_CONFUSIONS]
    rows = "".join(
        f"<tr><td>{_name(predictions, true[i])}</td><td>{_name(predictions, predicted[i])}</td>"
        f'<td class="n">{counts[i]:,}</td><td class="n">{100 * counts[i] / images[true[i]]:.1f} %</td></tr>'
        for i in order
    )
    return (
        '<div class="scroll"><table class="list"><thead><tr><th>true class</th><th>taken for</th>'
        f'<th class="n">images</th><th class="n">of the true class</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _class_section(predictions: Predictions) -> str:
    images = np.bincount(predictions.labels, minlength=predictions.num_classes)
    hits = predictions.labels[predictions.labels == predictions.predicted]
    right = np.bincount(hits, minlength=predictions.num_classes)
    present = np.flatnonzero(images)
    accuracy = right[present] / images[present]
    order = [int(i) for i in present[np.lexsort((present, -images[present], accuracy))]]
    rows = [_class_row(predictions, i, right=int(right[i]), images=int(images[i])) for i in order]
    body = _class_table(rows[:_MOST_CLASSES_OPEN])
    if rows[_MOST_CLASSES_OPEN:]:
        rest = _class_table(rows[_MOST_CLASSES_OPEN:])
        body += f"<details><summary>The other {len(rows) - _MOST_CLASSES_OPEN:,} classes</summary>{rest}</details>"
    absent = predictions.num_classes - len(present)
    note = f" {absent:,} {'class has' if absent == 1 else 'classes have'} no validation image." if absent else ""
    return f'<section class="rest"><h2>Accuracy per class</h2><p>Worst first.{note}</p>{body}</section>'


def _class_table(rows: Sequence[str]) -> str:
    return (
        '<table class="list classes"><thead><tr><th>class</th><th class="n">accuracy</th><th class="bar"></th>'
        f'<th class="n">right</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def _class_row(predictions: Predictions, label: int, *, right: int, images: int) -> str:
    share = 100 * right / images
    return (
        f'<tr><td>{_name(predictions, label)}</td><td class="n">{share:.1f} %</td>'
        f'<td class="bar"><i style="width:{share:.1f}%"></i></td><td class="n">{right:,} of {images:,}</td></tr>'
    )


def _mistake_section(predictions: Predictions) -> str:
    shown = predictions.worst_mistakes()
    if not shown:
        return "<section><h2>Most confident mistakes</h2><p>There are none.</p></section>"
    cards = "".join(_mistake(predictions, i) for i in shown)
    return f'<section><h2>Most confident mistakes</h2><div class="mistakes">{cards}</div></section>'


def _mistake(predictions: Predictions, index: int) -> str:
    true = _name(predictions, int(predictions.labels[index]))
    predicted = _name(predictions, int(predictions.predicted[index]))
    confidence = float(predictions.confidence[index])
    sure = "" if np.isnan(confidence) else f" <span>{100 * confidence:.1f} %</span>"
    return (
        f'<figure class="mistake">{_picture(predictions, index)}<figcaption>'
        f'<p class="taken">taken for <b>{predicted}</b>{sure}</p><p>true class <b>{true}</b></p>'
        f'<p class="file">{_bdi(predictions.names(index))}</p></figcaption></figure>'
    )


def _picture(predictions: Predictions, index: int) -> str:
    try:
        data = predictions.thumbnail(index)
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            mime, size = Image.MIME[str(image.format)], max(image.size)
    except (OSError, ValueError) as error:  # a missing picture is no reason to lose the report of a long run
        logger.warning("report: no picture of %s: %s", predictions.names(index), error)
        return '<div class="picture none">no picture</div>'
    tiny = " tiny" if size <= _TINY else ""
    code = base64.b64encode(data).decode("ascii")
    return f'<div class="picture{tiny}"><img alt="" loading="lazy" src="data:{mime};base64,{code}"></div>'


def _name(predictions: Predictions, label: int) -> str:
    return _bdi(predictions.class_name(int(label)))


def _bdi(text: str) -> str:
    """`text` escaped, and kept from turning the words around it when it runs from right to left."""
    return f"<bdi>{escape(text)}</bdi>"
