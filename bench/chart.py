"""Charts of measurements: the speedup of each implementation over the authors' code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator

from bench.record import Row

COLOURS = {"eager": "#8c8c8c", "compile": "#b5b5b5", "reference": "#7f9fbf", "liger": "#e0a85c", "ours": "#c2412d"}
COLOURS |= {"liger, JSD": "#c9b27a", "eager, NHWC": "#b5b5b5"}
COLOURS |= {"ours, int32": "#e3a79c", "ours, drawing alone": "#e3a79c"}
COLOURS |= {"ours, NCHW": "#e3a79c", "ours, float32": "#e3a79c", "ours, bf16": "#7d2a1d"}
COLOURS |= {"ours, no graphs": "#b98a5e", "ours, compile": "#4d6b47"}
"""The colour of every implementation of any suite, in the order of the bars."""

LOG_ABOVE = 12.0  # on a longer linear axis, short bars could not be seen
GAP = 0.7  # between cases, in bars


def place(about: dict[str, Any]) -> str:
    """Return where and when a measurement was made."""
    threads = f"{about['threads']} thread{'s' * (about['threads'] != 1)}"
    return f"{about['processor']}, {threads}, torch {about['torch']}, {about['date']}"


def draw(
    path: Path, family: str, about: dict[str, Any], rows: list[Row], *, of_what: str = "the authors' PyTorch code"
) -> None:
    """Draw a group of bars for each case. Bars begin at 1, the baseline; slower ones point left. Skip empty charts."""
    ratios = {(row["case"], row["implementation"]): row["ratio"] for row in rows if "ratio" in row}
    cases = list(dict.fromkeys(case for case, _ in ratios))
    shown = [name for name in COLOURS if name != "eager" and any((case, name) in ratios for case in cases)]
    if not shown:
        return
    heights: dict[tuple[str, str], float] = {}
    middles, y = [], 0.0
    for case in cases:
        names = [name for name in shown if (case, name) in ratios]
        heights |= {(case, name): y + i for i, name in enumerate(names)}
        middles.append(y + (len(names) - 1) / 2)
        y += len(names) + GAP

    figure, axes = plt.subplots(figsize=(9, 1.5 + 0.2 * y), layout="constrained")
    scale = _set_scale(axes, list(ratios.values()))
    for name in shown:
        bars = [(heights[case, name], ratios[case, name]) for case in cases if (case, name) in ratios]
        widths = [ratio - 1 for _, ratio in bars]
        drawn = axes.barh([at for at, _ in bars], widths, 0.95, left=1, color=COLOURS[name], label=name)
        axes.bar_label(drawn, [f"{ratio:.{1 if ratio >= 10 else 2}f}" for _, ratio in bars], padding=3, fontsize=8)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(middles, cases, fontsize=9)
    axes.set_ylim(y - GAP - 0.3, -0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(f"times as fast as {of_what}, median{scale}", fontsize=9)
    figure.suptitle(f"{family} on {place(about)}", fontsize=10)
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=len(shown))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _set_scale(axes: Any, ratios: list[float]) -> str:
    """Choose a linear axis, or a logarithmic one for large ratios, and return a note about it."""
    least, most = min(ratios), max(ratios)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    if most <= LOG_ABOVE:
        axes.set_xlim(0.0, 1.1 * most)
        return ""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.set_xlim(0.7 * least, 1.5 * most)
    return "; logarithmic axis"
