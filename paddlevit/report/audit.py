"""The page of an audit: pictures of what it has found."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable

from paddlevit.report.document import write_document
from paddlevit.report.predictions import shown_picture


def headline(findings: dict[str, Any]) -> list[tuple[str, int, str]]:
    """What has been found, how often, and a detail."""
    duplicates, classes = findings["duplicates"], findings["classes"]
    train = [row["train"] for row in classes]
    return [
        ("training images", sum(train), f"{min(train):,} to {max(train):,} of each class"),
        ("validation images", sum(row["val"] for row in classes), f"{len(classes):,} classes"),
        ("likely wrong labels", len(findings["suspects"]), "of train and val"),
        ("leaks", sum(group["leak"] for group in duplicates), "images in train and in val"),
        ("in several classes", sum(group["disagree"] for group in duplicates), "images with several labels"),
        ("duplicates", len(duplicates), "images with copies or the like"),
        ("odd sizes", len(findings["odd"]), f"and {len(findings['turned']):,} to be turned (EXIF)"),
        ("cannot be read", len(findings["unreadable"]), "of train and val"),
        ("left out", len(findings["removed"]), "of the list to train on"),
    ]


def write_audit(path: Path, folder: Path, findings: dict[str, Any], picture: Callable[[str], bytes]) -> Path:
    """Write the page of what `data.audit.audit` has found in `folder` and return its path; `picture` gives a PNG or
    JPEG file of the image that a path names. Raises UserError where it cannot be written.
    """
    return write_document(
        path,
        "audit.html",
        title=f"{folder} – audit",
        folder=str(folder),
        tiles=headline(findings),
        picture=lambda name: shown_picture(lambda: picture(name), name),
        shown=lambda name: name.removeprefix(f"{os.path.abspath(folder)}{os.sep}"),
        **findings,
    )
