"""Plot of the results of a run: accuracies, gains, distances. Matplotlib is imported when it is drawn."""

from __future__ import annotations

import io
import math
import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sftn_fast.experiment.labels import LABELS, kind, label
from sftn_fast.report.matrix import MethodLine, sources_of
from sftn_fast.report.results import KL, TOP1, Column, Row
from sftn_fast.report.statistics import Paired, signed
from sftn_fast.utils.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Color = str | tuple[float, float, float, float]
AUTHOR = "sftn_fast"
"""Program that a picture names as its maker, by which an older one is recognised."""
COLORS = {
    "teacher": "#8a8f98",
    "early": "#72b7b2",
    "soteacher": "#b279a2",
    "sftn": "#d9822b",
    "student": "#b8bcc4",
    "distill-teacher": "#4c78a8",
    "distill-early": "#72b7b2",
    "distill-soteacher": "#b279a2",
    "distill-sftn": "#d9822b",
    "collaborate": "#54a24b",
}
LINES = {
    "teacher": ("#5f6570", ":"),
    "early": ("#72b7b2", ":"),
    "soteacher": ("#b279a2", ":"),
    "sftn": ("#d9822b", ":"),
    "student": ("#5f6570", "--"),
}
"""Color and line style of each baseline in the plot of several methods."""
LEGEND_COLUMNS = 6
"""Most entries of the legend in a row of that plot, whose width they fill."""
BETTER, WORSE, UNDECIDED = "#3b7d4f", "#b5423c", "#5f6570"
"""Colors of a gain whose confidence interval is above, below or around zero."""
BEHIND_TEXT = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5}


def plot(rows: Sequence[Row], lines: Sequence[MethodLine], path: Path) -> None:
    """Plot accuracy and distance from the teacher, with a row for each network or for each of several methods."""
    plt = pyplot()
    figure = _plot_matrix(plt, rows, lines) if lines else _plot_rows(plt, rows)
    save(plt, figure, path)


def save(plt: ModuleType, figure: Figure, path: Path) -> None:
    """Close ``figure`` and write it as a PNG file."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a name in a script that the font lacks
        figure.savefig(content, dpi=150, format="png", metadata={"Software": AUTHOR})
    plt.close(figure)
    write_atomically(path, content.getvalue())


def is_own_picture(path: Path) -> bool:
    """Return whether :func:`save` wrote the file ``path``."""
    try:
        with path.open("rb") as file:
            return f"Software\0{AUTHOR}".encode() in file.read(1000)
    except OSError:
        return False


def plain(text: str) -> str:
    """Return ``text`` escaped so that Matplotlib reads no formula in it."""
    return text.replace("$", r"\$")


def pyplot() -> ModuleType:
    """Import and return ``matplotlib.pyplot``, set up to draw without a display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _plot_rows(plt: ModuleType, rows: Sequence[Row]) -> Figure:
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


def _plot_matrix(plt: ModuleType, rows: Sequence[Row], lines: Sequence[MethodLine]) -> Figure:
    names, sources = [line.method for line in lines], sources_of(lines)
    size = (15, max(0.75, 0.35 * len(sources)) * len(lines) + 2.0)
    figure, axes = plt.subplots(1, 3, figsize=size, layout="constrained", width_ratios=[1.25, 1, 1])
    for axis, column in ((axes[0], TOP1), (axes[2], KL)):
        for height, line in enumerate(reversed(lines)):
            for source, offset in zip(sources, _offsets(len(sources)), strict=True):
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
    _finish(axes[1], [""] * len(names), "Gain of SFTN (points), 95 % CI")
    _finish(axes[2], [""] * len(names), "KL(teacher || student) on the test set")
    distances = [value for line in lines for source in sources for value in line.values(source, KL)]
    if min(distances, default=0) > 0:
        _log_scale(axes[2], distances)
    for name in (f"distill-{source}" for source in sources):
        axes[0].plot([], [], color=COLORS[name], linewidth=2.5, label=LABELS[name])
    handles = [line for line in axes[0].lines if line.get_label() in LABELS.values()]
    columns = math.ceil(len(handles) / math.ceil(len(handles) / LEGEND_COLUMNS))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return figure


def _offsets(count: int) -> list[float]:
    """Return the heights of ``count`` networks within a row, from the top down."""
    step = 0.34 if count < 3 else 0.6 / (count - 1)
    return [step * ((count - 1) / 2 - i) for i in range(count)]


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
    """Draw a dot for each seed, a bar at the mean and whiskers of one deviation; ``narrow`` if two share a row."""
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
    """Return green or red if the confidence interval excludes zero; grey if it does not or if there is none."""
    if gain.interval is None:
        return UNDECIDED
    low, high = gain.interval
    return BETTER if low > 0 else WORSE if high < 0 else UNDECIDED


def _log_scale(axis: Axes, values: Sequence[float]) -> None:
    """Make the axis logarithmic with a few plain numbers; keep it linear if the values are close together."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    spread = max(values) / min(values)
    if spread < 4:
        axis.locator_params(axis="x", nbins=5)
        return
    axis.set_xscale("log")
    # Ticks between powers of ten only where there is room for their labels.
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if spread < 40 else (1.0,), numticks=12))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _finish(axis: Axes, names: Sequence[str], title: str) -> None:
    axis.set_yticks(range(len(names)), [plain(name) for name in reversed(names)], fontsize=8)
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.set_title(title, fontsize=10)
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
