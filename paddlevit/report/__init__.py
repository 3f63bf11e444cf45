"""The pages that training runs leave behind: a run's report.html, and comparisons; files that fetch nothing."""

from __future__ import annotations

from paddlevit.report.comparison import difference_table, result_table, write_comparison
from paddlevit.report.history import Run, read_run
from paddlevit.report.page import write_report
from paddlevit.report.precisions import write_precisions
from paddlevit.report.predictions import Predictions

__all__ = [
    "Predictions",
    "Run",
    "difference_table",
    "read_run",
    "result_table",
    "write_comparison",
    "write_precisions",
    "write_report",
]
