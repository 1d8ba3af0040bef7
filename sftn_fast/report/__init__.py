"""Reports on finished runs: tables, plots, an HTML page, and comparisons of several runs. Needs no torch.

Everything is read from the ``result.json`` files in a run's folder. A report can therefore be written again at any
time, and also while some of the run's trainings have not finished.
"""

from sftn_fast.report.command import main
from sftn_fast.report.comparison import compare
from sftn_fast.report.results import Row, read_results
from sftn_fast.report.statistics import mean_and_deviation
from sftn_fast.report.table import comparisons, gain
from sftn_fast.report.terminal import terminal_width
from sftn_fast.report.writer import write

__all__ = [
    "Row",
    "compare",
    "comparisons",
    "gain",
    "main",
    "mean_and_deviation",
    "read_results",
    "terminal_width",
    "write",
]
