"""Turns the `metrics.json` of a run into a table, Markdown, figures and one HTML page.

Needs neither TensorFlow nor Keras: a run can be reported on any machine that has its metrics.
"""

from keras_metamix.report.metrics import read_metrics, validate_metrics
from keras_metamix.report.page import render_page, write_figures, write_report
from keras_metamix.report.plots import (
    accuracy_against_bops,
    alpha_trajectories,
    bits_per_layer,
    pareto_front,
    training_curves,
)
from keras_metamix.report.table import layers_markdown, results_markdown, results_table

__all__ = [
    "accuracy_against_bops",
    "alpha_trajectories",
    "bits_per_layer",
    "layers_markdown",
    "pareto_front",
    "read_metrics",
    "render_page",
    "results_markdown",
    "results_table",
    "training_curves",
    "validate_metrics",
    "write_figures",
    "write_report",
]
