"""Tables and figures of an experiment, beside the paper's numbers."""

from lti.report.chart import plot_summary
from lti.report.paper import paper_value
from lti.report.picture import PictureRow, picture_row, plot_reconstructions
from lti.report.table import markdown_table, read_summary, write_markdown, write_summary

__all__ = [
    "PictureRow",
    "markdown_table",
    "paper_value",
    "picture_row",
    "plot_reconstructions",
    "plot_summary",
    "read_summary",
    "write_markdown",
    "write_summary",
]
