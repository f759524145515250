"""What a run reached: tables for the terminal, `result.json`, pictures, and the one-file HTML page."""

from lightpeft.report.data import Curve, Measurement, Result
from lightpeft.report.environment import environment
from lightpeft.report.figures import check_report_extra
from lightpeft.report.page import render_report, write_report
from lightpeft.report.pictures import (
    curves_pictures,
    heads_picture,
    modules_picture,
    neurons_picture,
    ratios_picture,
    readme_picture,
    scores_picture,
)
from lightpeft.report.seeds import SeedCuts, SeedMetrics, over_seeds, seed_cuts
from lightpeft.report.summary import summary
from lightpeft.report.tables import plan_table, side_by_side

__all__ = [
    "Curve",
    "Measurement",
    "Result",
    "SeedCuts",
    "SeedMetrics",
    "check_report_extra",
    "curves_pictures",
    "environment",
    "heads_picture",
    "modules_picture",
    "neurons_picture",
    "over_seeds",
    "plan_table",
    "ratios_picture",
    "readme_picture",
    "render_report",
    "scores_picture",
    "seed_cuts",
    "side_by_side",
    "summary",
    "write_report",
]
