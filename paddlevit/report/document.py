"""Pages from the templates: one file each, which fetches nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from paddlevit.runtime.files import write_text

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
    write_text(path, page)
    return path
