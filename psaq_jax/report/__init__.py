"""What a run leaves for people: tables, figures, one HTML page, TensorBoard logs, sensitivities by layer."""

from psaq_jax.report.figures import loss_curves, similarity_figure
from psaq_jax.report.images import image_grid
from psaq_jax.report.metrics import write_metrics
from psaq_jax.report.page import render_page
from psaq_jax.report.sections import coverage_rows
from psaq_jax.report.sensitivity import Sensitivity, measure_sensitivity
from psaq_jax.report.summary import summary_line
from psaq_jax.report.tables import markdown_table, results_table

__all__ = [
    "Sensitivity",
    "coverage_rows",
    "image_grid",
    "loss_curves",
    "markdown_table",
    "measure_sensitivity",
    "render_page",
    "results_table",
    "similarity_figure",
    "summary_line",
    "write_metrics",
]
