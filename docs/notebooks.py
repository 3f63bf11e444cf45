"""MkDocs hook: a page for each notebook, with its output."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

_MOST_LINES = 16  # of what a cell has printed; logs are longer


def on_files(files: Any, config: Any) -> Any:
    for path in sorted(Path(config.config_file_path).parent.glob("notebooks/*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to notebooks, which lead to files in the repository, lead to their pages on the site."""
    return re.sub(r"\(\.\./(notebooks/\w+)\.ipynb\)", r"(\1.md)", markdown)


def page(path: Path) -> str:
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(f"```python\n{source}\n```" if cell["cell_type"] == "code" else source)
        parts += [shown(output) for output in cell.get("outputs", [])]
    return "\n\n".join(parts) + "\n"


def shown(output: dict[str, Any]) -> str:
    for kind in ("image/png", "image/jpeg"):
        if kind in output.get("data", {}):
            encoded = "".join("".join(output["data"][kind]).split())
            return f"![Output of the cell](data:{kind};base64,{encoded})"
    lines = "".join(output.get("text", output.get("data", {}).get("text/plain", ""))).splitlines()
    if len(lines) > _MOST_LINES:
        lines = [*lines[: _MOST_LINES // 2], "...", *lines[-_MOST_LINES // 2 :]]
    return "```text\n" + "\n".join(lines) + "\n```"
