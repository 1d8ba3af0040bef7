"""Plot of the learning curves of a run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sftn_fast.experiment.labels import LABELS, kind
from sftn_fast.report.figure import COLORS, Color, plain, pyplot, save
from sftn_fast.report.results import Row, read_curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_curves(folder: Path, rows: Sequence[Row], path: Path) -> bool:
    """Plot test accuracy by epoch, mean and deviation over the seeds, with a panel for each method.

    Returns False, and draws nothing, without curves.
    """
    alone = [row for row in rows if row.name == "student"]
    panels: dict[str, list[Row]] = {}
    for row in rows:
        if kind(row.name).startswith("distill-"):
            panels.setdefault(row.method, []).append(row)
    panels = panels or {"": []}
    curves = {row.name: read_curves(folder, row) for row in [*alone, *(r for panel in panels.values() for r in panel)]}
    # A single evaluation makes no curve.
    if all(len(curve) < 2 for each in curves.values() for curve in each):
        return False
    plt = pyplot()
    columns = min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    size = (max(7.0, 4.4 * columns), 2.9 * lines + 0.6)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for number, (axis, (method, students)) in enumerate(zip(axes.flat, panels.items(), strict=False)):
        for row in [*alone, *students]:
            draw_curve(axis, curves[row.name], COLORS[kind(row.name)], LABELS[kind(row.name)])
        cut_early(axis, [curve for row in [*alone, *students] for curve in curves[row.name]])
        finish(axis, method)
        if number + columns >= len(panels):
            axis.set_xlabel("Epoch", fontsize=9)
    for axis in axes[:, 0]:
        axis.set_ylabel("Test top-1 (%)", fontsize=9)
    handles = {line.get_label(): line for axis in axes.flat for line in axis.lines}
    figure.legend(handles=handles.values(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    save(plt, figure, path)
    return True


def draw_curve(axis: Axes, curves: Sequence[dict[int, float]], color: Color, name: str) -> None:
    """Draw the mean of the seeds' curves as a line called ``name``, and a band of one deviation around it."""
    epochs = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    values = [[curve[epoch] for curve in curves] for epoch in epochs]
    means = [statistics.fmean(each) for each in values]
    deviations = [statistics.stdev(each) if len(each) > 1 else 0.0 for each in values]
    # A single evaluation makes no line.
    axis.plot(epochs, means, color=color, linewidth=1.6, label=name, marker="o" if len(epochs) == 1 else None)
    low, high = ([m + sign * d for m, d in zip(means, deviations, strict=True)] for sign in (-1, 1))
    axis.fill_between(epochs, low, high, color=color, alpha=0.18, linewidth=0)


def finish(axis: Axes, title: str) -> None:
    """Give a panel its title and grid."""
    axis.set_title(plain(title), fontsize=10)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def cut_early(axis: Axes, curves: Sequence[dict[int, float]]) -> None:
    """Cut off the steep first epochs, on whose scale the final differences would be invisible."""
    known = [sorted(curve.values()) for curve in curves if curve]
    if not known:
        return
    # By curve: a curve below all others, or of fewer epochs, must not be cut off as a whole.
    low, high = min(values[len(values) // 5] for values in known), max(values[-1] for values in known)
    axis.set_ylim(low - 0.15 * (high - low) - 0.5, high + 0.1 * (high - low) + 0.5)
