"""What a run leaves for people: tables, figures, one HTML page, TensorBoard logs, sensitivities by layer."""

from psaq_jax.report.metrics import write_metrics
from psaq_jax.report.page import check_extra, render_page, render_tables
from psaq_jax.report.sections import coverage_rows
from psaq_jax.report.sensitivity import measure_sensitivity
from psaq_jax.report.settings import card_figures, images_text
from psaq_jax.report.summary import summary_line
from psaq_jax.report.tables import results_table

__all__ = [
    "card_figures",
    "check_extra",
    "coverage_rows",
    "images_text",
    "measure_sensitivity",
    "render_page",
    "render_tables",
    "results_table",
    "summary_line",
    "write_metrics",
]
