"""The page that a training run leaves behind: report.html, one file that fetches nothing."""

from paddlevit.report.page import write_report
from paddlevit.report.predictions import Predictions

__all__ = ["Predictions", "write_report"]
