"""A run's folder: its configuration and what metrics.jsonl tells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from paddlevit.errors import MissingFileError, UserError
from paddlevit.report.history import History, read_history


@dataclass(frozen=True)
class Run:
    """What a run has written about itself."""

    folder: Path
    text: str  # of config.yaml
    config: dict[str, Any]
    history: History
    changed: float  # when metrics.jsonl was, in seconds since 1970

    @property
    def network(self) -> str:
        """The variant's name, or the folder's where the configuration has none."""
        return str(self.value("MODEL.NAME", "") or self.folder.resolve().name)

    def value(self, key: str, default: Any) -> Any:
        """The value of a dotted key of the configuration; `default` where it is missing or null."""
        node: Any = self.config
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return default if node is None else node


def read_run(folder: Path) -> Run:
    """The run in `folder`.

    Raises UserError where its metrics.jsonl or config.yaml is missing, empty or not what its name says.
    """
    metrics = folder / "metrics.jsonl"
    history = read_history(metrics)
    text, config = _read_config(folder / "config.yaml")
    return Run(folder, text, config, history, metrics.stat().st_mtime)


def _read_config(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        config = yaml.safe_load(text)
    except FileNotFoundError:
        raise MissingFileError(f"{path} does not exist: a report needs the configuration of the run") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a yaml file: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no keys")
    return text, config
