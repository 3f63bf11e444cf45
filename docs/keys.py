"""Write docs/keys.md: every key with its default, range, meaning and flag."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from paddlevit.models import FAMILIES
from paddlevit.schema import FLAGS, KEYS, Key

ROOT = Path(__file__).resolve().parents[1]
HEAD = """# Keys

<!-- Written by docs/keys.py from paddlevit/schema.py and configs/*/_family.yaml: edit those. -->

Every key of a configuration. [Configuration](configuration.md) says how to set them: in a yaml file, by a flag, or with
`-opts KEY VALUE`. In lists, the range is that of every entry.
"""


def comments(text: str) -> dict[str, str]:
    """Dotted key -> its comment: behind it, in the lines right above, or else that of an earlier key of this name."""
    found, latest, parents, above = {}, {}, [], []
    for line in text.splitlines():
        key = re.match(r'(\s*)"?([A-Z][A-Z0-9_]*)"?:', line)
        behind = re.search(r"\s# (.*)", line)
        if key:
            parents = [parent for parent in parents if parent[0] < len(key.group(1))] + [
                (len(key.group(1)), key.group(2))
            ]
            own = " ".join(above + ([behind.group(1)] if behind else []))
            latest[key.group(2)] = found[".".join(name for _, name in parents)] = own or latest.get(key.group(2), "")
        above = [*above, line.strip()[2:]] if line.strip().startswith("# ") else []
    return found


def cell(value: Any) -> str:
    words = {None: "null", "": '""', True: "true", False: "false"}
    return f"`{words[value] if value is None or isinstance(value, bool) or value == '' else value}`"


def table(rows: list[tuple[str, Any, str, str]]) -> str:
    flags = {key: f"`-{flag}`" for flag, key in FLAGS.items()}
    lines = ["| key | meaning | default | allowed | flag |", "|---|---|---|---|---|"]
    for name, default, allowed, meaning in rows:
        row = f"| `{name}` | {meaning} | {cell(default)} | {allowed} | {flags.get(name, '')} |"
        lines.append(re.sub(r"<(?=[a-z])", "&lt;", row.replace("  ", " ")))
    return "\n".join(lines)


def leaves(prefix: str, keys: dict) -> list:
    rows = []
    for name, value in keys.items():
        rows += leaves(f"{prefix}{name}.", value) if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return rows


def general(section: str) -> str:
    said = comments((ROOT / "paddlevit" / "schema.py").read_text(encoding="utf-8"))
    keys = KEYS[section] if section else {name: key for name, key in KEYS.items() if not isinstance(key, dict)}
    rows = []
    for name, key in leaves(f"{section}." if section else "", keys):
        key = key if isinstance(key, Key) else Key(key)
        allowed = ", ".join(f"`{word}`" for word in key.allowed) if isinstance(key.allowed, tuple) else key.allowed
        rows.append((name, key.default, allowed, key.flag[1] or said.get(f"KEYS.{name}", "")))
    return table(rows)


def of_family(family: str) -> str:
    text = (ROOT / "configs" / family / "_family.yaml").read_text(encoding="utf-8")
    said, content = comments(text), yaml.safe_load(text)
    allowed = {key: span for span, names in content.get("RANGES", {}).items() for key in names}
    allowed.update({key: ", ".join(f"`{word}`" for word in words) for key, words in content.get("CHOICES", {}).items()})
    rows = []
    for name, default in leaves("", content["MODEL"]):
        rows.append((f"MODEL.{name}", default, allowed.get(name, ""), said.get(f"MODEL.{name}", "")))
    return table(rows)


def page() -> str:
    parts = [HEAD]
    for title, section in (("Data", "DATA"), ("Model", "MODEL"), ("Training", "TRAIN"), ("The run", "")):
        parts.append(f"## {title}\n\n{general(section)}\n")
    for family in FAMILIES:
        parts.append(f"## Only for `MODEL.TYPE` `{family}`\n\n{of_family(family)}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    (ROOT / "docs" / "keys.md").write_text(page(), encoding="utf-8")
