"""Pages from the templates: one file each, which fetches nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jinja2

from paddlevit.errors import UserError
from paddlevit.runtime.streams import utf8_names

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def write_document(path: Path, template: str, **values: Any) -> Path:
    """Write the page that `template` makes of `values`, atomically, and return its path.

    Raises UserError where it cannot be written.
    """
    page = TEMPLATES.get_template(template).render(values)
    part = path.with_name(f"{path.name}.part")
    try:
        # File names that are no valid Unicode come as surrogates, which a page cannot hold.
        part.write_bytes(utf8_names(page).encode("utf-8", errors="backslashreplace"))
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    return path
