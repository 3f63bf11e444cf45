"""RegNetY: the convolutional teacher of distilled PiT."""

from __future__ import annotations

from paddlevit.regnet.model import RegNet, build_regnet

__all__ = ["RegNet", "build_regnet"]
