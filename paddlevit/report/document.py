"""What every page of the project stands in: one file that fetches nothing."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path

from paddlevit.errors import UserError

_HERE = Path(__file__).parent

# Even if a name slipped through unescaped, a browser would neither fetch anything nor run a script from elsewhere.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
<script>
{script}</script>
</body>
</html>
"""


def write_document(path: Path, title: str, body: str) -> Path:
    """Write the page with the text `title` and the HTML `body`, atomically, and return its path.

    Raises UserError where it cannot be written.
    """
    page = _PAGE.format(
        policy=_POLICY,
        title=escape(title),
        style=(_HERE / "style.css").read_text(encoding="utf-8"),
        body=body,
        script=(_HERE / "tooltip.js").read_text(encoding="utf-8"),
    )
    part = path.with_name(f"{path.name}.part")
    try:
        # File names that are no valid Unicode come as surrogates, which a page cannot hold.
        part.write_bytes(page.encode("utf-8", errors="replace"))
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    return path
