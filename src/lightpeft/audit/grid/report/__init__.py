"""What an audit's cells say: the one-file HTML page, a table for the terminal, and Markdown for documents."""

from lightpeft.audit.grid.report.aggregate import group_cells, missing_cells
from lightpeft.audit.grid.report.group import Group, OverSeeds
from lightpeft.audit.grid.report.page import render_audit_report, write_audit_report
from lightpeft.audit.grid.report.tables import markdown_table, summary_tables

__all__ = [
    "Group",
    "OverSeeds",
    "group_cells",
    "markdown_table",
    "missing_cells",
    "render_audit_report",
    "summary_tables",
    "write_audit_report",
]
