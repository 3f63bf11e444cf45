"""Weights files of any project into models, and models into such files."""

from __future__ import annotations

from paddlevit.weights.convert import convert_state_dict, export_state_dict
from paddlevit.weights.load import load_weights
from paddlevit.weights.readers import read_state_dict
from paddlevit.weights.report import LoadReport, WeightsError

__all__ = ["LoadReport", "WeightsError", "convert_state_dict", "export_state_dict", "load_weights", "read_state_dict"]
