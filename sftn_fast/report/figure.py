"""Pictures of a run: accuracies and gains, and the curves that led there. Imports matplotlib when it draws."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftn_fast.experiment.labels import LABELS, kind, label
from sftn_fast.report.matrix import SOURCES, MethodLine
from sftn_fast.report.results import KL, TOP1, Column, Row, read_curves
from sftn_fast.report.statistics import Paired, signed
from sftn_fast.utils.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = {
    "teacher": "#8a8f98",
    "sftn": "#d9822b",
    "student": "#b8bcc4",
    "distill-teacher": "#4c78a8",
    "distill-sftn": "#d9822b",
    "collaborate": "#54a24b",
}
LINES = {"teacher": ("#5f6570", ":"), "sftn": ("#d9822b", ":"), "student": ("#5f6570", "--")}
"""Color and style of a baseline in the picture of a matrix."""
BETTER, WORSE, UNDECIDED = "#3b7d4f", "#b5423c", "#5f6570"
"""Colors of a gain."""
BEHIND_TEXT = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5}


def plot(rows: Sequence[Row], lines: Sequence[MethodLine], path: Path) -> None:
    """Draw accuracy and distance from the teacher: a line a stage, or a line a method where there are several."""
    plt = _pyplot()
    figure = _plot_matrix(plt, rows, lines) if lines else _plot_rows(plt, rows)
    _save(plt, figure, path)


def _save(plt: Any, figure: Any, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, dpi=150, format="png")
    plt.close(figure)
    write_atomically(path, content.getvalue())


def _plain(text: str) -> str:
    """``text`` without what Matplotlib would read as a formula."""
    return text.replace("$", r"\$")


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _plot_rows(plt: Any, rows: Sequence[Row]) -> Any:
    students = [row for row in rows if row.values(KL)]
    panels = [(rows, TOP1, "Top-1 accuracy, last epoch (%)")]
    if students:
        panels.append((students, KL, "KL(teacher || student) on the test set"))
    size = (5.6 * len(panels), 0.55 * len(rows) + 1.3)
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, layout="constrained")
    for axis, (shown, column, title) in zip(axes[0], panels, strict=True):
        for height, row in enumerate(reversed(shown)):
            _dots(axis, height, row.values(column), column, COLORS[kind(row.name)])
        _finish(axis, [f"{label(row.name)}\n({row.network})" for row in shown], title)
    return figure


def _plot_matrix(plt: Any, rows: Sequence[Row], lines: Sequence[MethodLine]) -> Any:
    size = (15, 0.75 * len(lines) + 2.0)
    figure, axes = plt.subplots(1, 3, figsize=size, layout="constrained", width_ratios=[1.25, 1, 1])
    names = [line.method for line in lines]
    for axis, column in ((axes[0], TOP1), (axes[2], KL)):
        for height, line in enumerate(reversed(lines)):
            for source, offset in zip(SOURCES, (0.17, -0.17), strict=True):
                if values := line.values(source, column):
                    _dots(axis, height + offset, values, column, COLORS[f"distill-{source}"], narrow=True)
    for height, line in enumerate(reversed(lines)):
        if line.gain:
            _interval(axes[1], height, line.gain)
    axes[1].axvline(0, color="#5f6570", linewidth=1, zorder=0)
    for axis in axes:
        axis.margins(x=0.1)
    _baselines(axes[0], rows)
    _finish(axes[0], names, "Top-1 accuracy, last epoch (%)")
    _finish(axes[1], [""] * len(names), "Gain of SFTN (points), 95 % interval")
    _finish(axes[2], [""] * len(names), "KL(teacher || student) on the test set")
    distances = [value for line in lines for source in SOURCES for value in line.values(source, KL)]
    if min(distances, default=0) > 0:
        _log_scale(axes[2], distances)
    for name in ("distill-teacher", "distill-sftn"):
        axes[0].plot([], [], color=COLORS[name], linewidth=2.5, label=LABELS[name])
    handles = [line for line in axes[0].lines if line.get_label() in LABELS.values()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    return figure


def _baselines(axis: Axes, rows: Sequence[Row]) -> None:
    for row in rows:
        if row.name in LINES:
            color, style = LINES[row.name]
            axis.axvline(
                statistics.fmean(row.values(TOP1)), color=color, linestyle=style, linewidth=1.3, label=LABELS[row.name]
            )


def _dots(
    axis: Axes, height: float, values: Sequence[float], column: Column, color: str, *, narrow: bool = False
) -> None:
    """A dot for each seed, a bar at the mean, a whisker of one deviation; ``narrow`` where two share a line."""
    mean = statistics.fmean(values)
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    size, lift = (10, 0.13) if narrow else (16, 0.22)
    axis.errorbar(mean, height, xerr=deviation, fmt="|", color=color, markersize=size, markeredgewidth=2.5, capsize=3)
    axis.plot(values, [height + lift] * len(values), "o", color=color, markersize=4, alpha=0.7)
    text = f"{mean:.{column.digits}f}"
    style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8}
    if narrow:
        right = max(*values, mean + deviation)
        axis.annotate(text, (right, height), (7, -2), va="center", color=color, bbox=BEHIND_TEXT, **style)
    else:
        axis.annotate(text, (mean, height), (0, -14), ha="center", **style)


def _interval(axis: Axes, height: float, gain: Paired) -> None:
    low, high = gain.interval or (gain.mean, gain.mean)
    color = _verdict(gain)
    axis.errorbar(
        gain.mean, height, xerr=[[gain.mean - low], [high - gain.mean]], fmt="o", color=color, markersize=6, capsize=3
    )
    style: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 8, "bbox": BEHIND_TEXT}
    axis.annotate(signed(gain.mean), (gain.mean, height), (0, 9), **style)


def _verdict(gain: Paired) -> str:
    """Green or red where the interval leaves out zero; grey where it does not, or where there is no interval."""
    if gain.interval is None:
        return UNDECIDED
    low, high = gain.interval
    return BETTER if low > 0 else WORSE if high < 0 else UNDECIDED


def _log_scale(axis: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis with a few plain numbers; a linear one where the values are close together."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    spread = max(values) / min(values)
    if spread < 4:
        axis.locator_params(axis="x", nbins=5)
        return
    axis.set_xscale("log")
    # Between powers of ten numbers stand only where there is room for them.
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if spread < 40 else (1.0,), numticks=12))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _finish(axis: Axes, names: Sequence[str], title: str) -> None:
    axis.set_yticks(range(len(names)), [_plain(name) for name in reversed(names)], fontsize=8)
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.set_title(title, fontsize=10)
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)


def plot_curves(folder: Path, rows: Sequence[Row], path: Path) -> bool:
    """Draw test accuracy by epoch, mean and deviation over the seeds: a panel a method. False if there is nothing."""
    alone = [row for row in rows if row.name == "student"]
    panels: dict[str, list[Row]] = {}
    for row in rows:
        if kind(row.name).startswith("distill-"):
            panels.setdefault(row.method, []).append(row)
    panels = panels or {"": []}
    curves = {row.name: read_curves(folder, row) for row in [*alone, *(r for panel in panels.values() for r in panel)]}
    # One evaluation is no curve.
    if all(len(curve) < 2 for each in curves.values() for curve in each):
        return False
    plt = _pyplot()
    columns = min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    size = (max(7.0, 4.4 * columns), 2.9 * lines + 0.6)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for number, (axis, (method, students)) in enumerate(zip(axes.flat, panels.items(), strict=False)):
        for row in [*alone, *students]:
            _curve(axis, curves[row.name], row)
        _cut_early(axis, [curve for row in [*alone, *students] for curve in curves[row.name]])
        axis.set_title(_plain(method), fontsize=10)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if number + columns >= len(panels):
            axis.set_xlabel("Epoch", fontsize=9)
    for axis in axes[:, 0]:
        axis.set_ylabel("Test top-1 (%)", fontsize=9)
    handles = {line.get_label(): line for axis in axes.flat for line in axis.lines}
    figure.legend(handles=handles.values(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    _save(plt, figure, path)
    return True


def _curve(axis: Axes, curves: Sequence[dict[int, float]], row: Row) -> None:
    epochs = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    values = [[curve[epoch] for curve in curves] for epoch in epochs]
    means = [statistics.fmean(each) for each in values]
    deviations = [statistics.stdev(each) if len(each) > 1 else 0.0 for each in values]
    color, name = COLORS[kind(row.name)], LABELS[kind(row.name)]
    axis.plot(epochs, means, color=color, linewidth=1.6, label=name)
    low, high = ([m + sign * d for m, d in zip(means, deviations, strict=True)] for sign in (-1, 1))
    axis.fill_between(epochs, low, high, color=color, alpha=0.18, linewidth=0)


def _cut_early(axis: Axes, curves: Sequence[dict[int, float]]) -> None:
    """Leave out the steep beginning, beside which the differences that matter would not be seen."""
    values = sorted(value for curve in curves for value in curve.values())
    if not values:
        return
    low, high = values[len(values) // 5], values[-1]
    axis.set_ylim(low - 0.15 * (high - low) - 0.5, high + 0.1 * (high - low) + 0.5)
