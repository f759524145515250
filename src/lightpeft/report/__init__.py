"""What a run reached: tables for the terminal, `result.json`, pictures, and the one-file HTML page."""

from lightpeft.report.data import Curve, Measurement, Result, SeedMetrics
from lightpeft.report.environment import environment
from lightpeft.report.figures import check_report_extra
from lightpeft.report.page import render_report, write_report
from lightpeft.report.pictures import (
    curves_picture,
    heads_picture,
    modules_picture,
    neurons_picture,
    ratios_picture,
    readme_picture,
    scores_picture,
)
from lightpeft.report.summary import summary
from lightpeft.report.tables import plan_table, side_by_side

__all__ = [
    "Curve",
    "Measurement",
    "Result",
    "SeedMetrics",
    "check_report_extra",
    "curves_picture",
    "environment",
    "heads_picture",
    "modules_picture",
    "neurons_picture",
    "plan_table",
    "ratios_picture",
    "readme_picture",
    "render_report",
    "scores_picture",
    "side_by_side",
    "summary",
    "write_report",
]
