"""One picture of the learning curves of several runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sftn_fast.experiment.labels import label
from sftn_fast.report.compared_runs import ComparedRun
from sftn_fast.report.curves import cut_early, draw_curve, finish
from sftn_fast.report.figure import Color, plain, pyplot, save
from sftn_fast.report.results import read_curves
from sftn_fast.utils.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

MOST = 36
"""Largest number of panels: more of them make a picture that few programs can open."""
TITLE = "Test accuracy by epoch, mean ± SD over the seeds (first epochs cut off)"
LONGEST = 60
"""Characters of a run's name or a job's label in the picture."""


Curves = list[list[dict[int, float]]]
"""Test accuracy by epoch, for each run and each of its seeds."""


def plot_runs(runs: Sequence[ComparedRun], jobs: Sequence[str], path: Path) -> int | None:
    """Plot test accuracy by epoch with a panel for each of ``jobs`` and a line for each run.

    Returns:
        The number of jobs that found no room; None, and no file, without curves.
    """
    read = {job: _read(runs, job) for job in jobs}
    # A single evaluation makes no curve.
    panels = [job for job, curves in read.items() if any(len(each) > 1 for of_run in curves for each in of_run)]
    if not panels:
        return None
    plt = pyplot()
    shown = panels[:MOST]
    columns = min(3, len(shown))
    lines = math.ceil(len(shown) / columns)
    size = (max(7.0, 4.4 * columns), 2.9 * lines + 0.7 + 0.2 * math.ceil(len(runs) / 3))
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    handles: dict[int, Line2D] = {}
    for number, (axis, job) in enumerate(zip(axes.flat, shown, strict=False)):
        handles |= _panel(axis, runs, read[job])
        finish(axis, printable(label(job), LONGEST))
        if number + columns >= len(shown):
            axis.set_xlabel("Epoch", fontsize=9)
    for axis in axes[:, 0]:
        axis.set_ylabel("Test top-1 (%)", fontsize=9)
    figure.suptitle(TITLE, fontsize=10)
    lines_of_runs = [handles[index] for index in sorted(handles)]
    figure.legend(handles=lines_of_runs, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    save(plt, figure, path)
    return len(panels) - len(shown)


def _read(runs: Sequence[ComparedRun], job: str) -> Curves:
    return [read_curves(run.folder, run.rows[job]) if job in run.rows else [] for run in runs]


def _panel(axis: Axes, runs: Sequence[ComparedRun], curves: Curves) -> dict[int, Line2D]:
    """Draw the curves of one job; return the line of each run that has any, by the run's number."""
    lines = {}
    for number, (run, of_run) in enumerate(zip(runs, curves, strict=True)):
        if of_run:
            draw_curve(axis, of_run, _color(number, len(runs)), _name(run, runs[0]))
            lines[number] = axis.lines[-1]
    cut_early(axis, [curve for of_run in curves for curve in of_run])
    return lines


def _name(run: ComparedRun, first: ComparedRun) -> str:
    other = "" if run.has_same_tests(first) else " (other test images)"
    # The space keeps Matplotlib from leaving out a name that begins with an underscore.
    return plain(f" {printable(run.name, LONGEST)}{other}")


def _color(number: int, count: int) -> Color:
    """Return the color of a run: one of ten that are easy to tell apart, or of a scale if there are more runs."""
    from matplotlib import colormaps

    return colormaps["tab10"](number) if count <= 10 else colormaps["turbo"](number / (count - 1))
