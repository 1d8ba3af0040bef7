"""A measurement as a picture: how many times as fast as the authors' code each implementation is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator

from bench.family import Row

COLOURS = {"compile": "#b5b5b5", "reference": "#7f9fbf", "liger": "#e0a85c", "ours": "#c2412d"}
COLOURS |= {"ours, NCHW": "#e3a79c", "ours, bf16": "#7d2a1d", "ours, compile": "#4d6b47"}
LOG_ABOVE = 12.0  # a linear axis that long leaves nothing to see of the others


def place(about: dict[str, Any]) -> str:
    """Where and when it was measured."""
    threads = f"{about['threads']} thread{'s' * (about['threads'] != 1)}"
    return f"{about['processor']}, {threads}, torch {about['torch']}, {about['date']}"


def draw(
    path: Path,
    family: str,
    about: dict[str, Any],
    rows: list[Row],
    *,
    of_what: str = "the authors' PyTorch code, forward and backward",
) -> None:
    """One group of bars a case. They begin at 1, the authors' code: what is slower points to the left."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    ratios = {(row["case"], row["implementation"]): row["ratio"] for row in rows if "ratio" in row}
    shown = [name for name in COLOURS if any((case, name) in ratios for case in cases)]
    height = 0.8 / max(len(shown), 1)
    figure, axes = plt.subplots(figsize=(9, 1.5 + len(cases) * (0.2 + 0.19 * len(shown))), layout="constrained")
    least, most = min(ratios.values()), max(ratios.values())
    if most > LOG_ABOVE:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(0.7 * least, 1.5 * most)
    else:
        axes.set_xlim(min(0.0, least - 0.1 * most), 1.1 * most)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    for i, name in enumerate(shown):
        bars = [(y, ratios[case, name]) for y, case in enumerate(cases) if (case, name) in ratios]
        places = [y + (i - (len(shown) - 1) / 2) * height for y, _ in bars]
        drawn = axes.barh(places, [ratio - 1 for _, ratio in bars], height, left=1, color=COLOURS[name], label=name)
        axes.bar_label(drawn, [f"{ratio:.{1 if ratio >= 10 else 2}f}" for _, ratio in bars], padding=3, fontsize=8)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(cases)), cases, fontsize=9)
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(f"times as fast as {of_what}, median", fontsize=9)
    figure.suptitle(f"{family} on {place(about)}", fontsize=10)
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=max(len(shown), 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)
