"""Print how large the package is, room by room: files, lines, and lines of code (no blanks, comments or docstrings)."""

from __future__ import annotations

import ast
import collections
import io
import tokenize
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "paddlevit"
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(text: str) -> int:
    """Lines of `text` that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False):
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def main() -> None:
    rooms: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0, 0])
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).parts
        if "configs" not in parts:
            text = path.read_text(encoding="utf-8")
            counts = (1, text.count("\n"), code_lines(text))
            for name in (parts[0] if len(parts) > 1 else "(root)", "all"):
                rooms[name] = [sum(pair) for pair in zip(rooms[name], counts)]
    print(f"{'room':16}{'files':>7}{'lines':>8}{'code':>8}")
    for name, counts in sorted(rooms.items(), key=lambda item: item[1][1]):
        print(f"{name:16}{counts[0]:7,}{counts[1]:8,}{counts[2]:8,}")


if __name__ == "__main__":
    main()
