"""What a run found, as `metrics.json`, a table, Markdown, figures and one HTML page.

Needs neither TensorFlow nor Keras: a run can be reported on any machine that has its metrics.
"""

from keras_metamix.report.page import render_page, write_figures, write_report
from keras_metamix.report.plots import (
    alpha_trajectories,
    bits_per_layer,
    masks,
    pareto_front,
    score_against_cost,
    search_moves,
    training_curves,
)
from keras_metamix.report.results import Results, read_results
from keras_metamix.report.style import save_figure
from keras_metamix.report.table import layers_markdown, results_markdown, results_table

__all__ = [
    "Results",
    "alpha_trajectories",
    "bits_per_layer",
    "layers_markdown",
    "masks",
    "pareto_front",
    "read_results",
    "render_page",
    "results_markdown",
    "results_table",
    "save_figure",
    "score_against_cost",
    "search_moves",
    "training_curves",
    "write_figures",
    "write_report",
]
