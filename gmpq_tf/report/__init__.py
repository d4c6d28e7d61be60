"""Tables, plots and the HTML report of a run, from its files only."""

from gmpq_tf.report.curves import plot_pretraining, plot_search
from gmpq_tf.report.page import write_figures, write_report
from gmpq_tf.report.plots import (
    plot_accuracy_bops,
    plot_attribution,
    plot_importances,
    plot_policy,
)
from gmpq_tf.report.read import read_summary
from gmpq_tf.report.schema import ReportError, ResultRow, Summary
from gmpq_tf.report.table import format_table

__all__ = [
    "ReportError",
    "ResultRow",
    "Summary",
    "format_table",
    "plot_accuracy_bops",
    "plot_attribution",
    "plot_importances",
    "plot_policy",
    "plot_pretraining",
    "plot_search",
    "read_summary",
    "write_figures",
    "write_report",
]
