"""Tables and plots of finished runs: ``python -m sftn_fast.report FOLDER``.

Everything is read from the ``result.json`` files below a run's folder, so a report can be made again, and of a run that
has finished only in part.
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftn_fast.config import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULT = "result.json"
"""A finished stage's figures, in its folder; written last, so that its presence says that the stage is finished."""

LABELS = {
    "teacher": "standard teacher",
    "sftn": "SFTN teacher",
    "student": "student alone",
    "distill-teacher": "student of standard teacher",
    "distill-sftn": "student of SFTN teacher",
    "collaborate": "student among peers",
}
"""What a stage is called, in the order of the table."""
COLORS = {
    "teacher": "#8a8f98",
    "sftn": "#d9822b",
    "student": "#b8bcc4",
    "distill-teacher": "#4c78a8",
    "distill-sftn": "#d9822b",
    "collaborate": "#54a24b",
}


def kind(name: str) -> str:
    """The part of a stage's name that says what it is, without its method: a key of ``LABELS``."""
    return max((key for key in LABELS if f"{name}-".startswith(f"{key}-")), key=len)


def label(name: str) -> str:
    """What a stage is called in a table."""
    return f"{LABELS[kind(name)]}, {_method(name)}" if _method(name) else LABELS[kind(name)]


def _method(name: str) -> str:
    return name[len(kind(name)) + 1 :]


@dataclass(frozen=True)
class Column:
    """One quantity of the table: its heading, where it stands in a result, and how many digits it deserves."""

    heading: str
    value: Callable[[dict[str, Any]], float | None]
    digits: int = 2


COLUMNS = (
    Column("top-1 last %", lambda result: result["last"]["top1"]),
    Column("top-1 best %", lambda result: result["best"]["top1"]),
    Column("agreement %", lambda result: result["agreement"]),
    Column("KL(teacher, student)", lambda result: result["kl"], digits=4),
    Column("CKA", lambda result: result.get("cka"), digits=3),
)


@dataclass(frozen=True)
class Row:
    """The results of one stage over all seeds."""

    name: str
    network: str
    results: tuple[dict[str, Any], ...]

    def values(self, column: Column) -> list[float]:
        """The quantity of each seed that has one."""
        return [value for result in self.results if (value := column.value(result)) is not None]


def read_results(folder: Path) -> list[Row]:
    """Collect the finished stages below ``folder``, in the order of the table.

    Raises :class:`ConfigError` if nothing there has finished.
    """
    results = [json.loads(path.read_text()) for path in sorted(folder.glob(f"seed*/*/{RESULT}"))]
    if not results:
        raise ConfigError(f"no finished stage in {folder}")
    results.sort(key=lambda result: result["seed"])
    rows = []
    order = list(LABELS)
    names = {result["name"] for result in results}
    for name in sorted(names, key=lambda name: (_method(name), order.index(kind(name)))):
        chosen = tuple(result for result in results if result["name"] == name)
        rows.append(Row(name, chosen[0]["network"], chosen))
    return rows


def mean_and_deviation(values: Sequence[float], digits: int) -> str:
    """``mean ± sample deviation``; the mean alone for a single value, a dash for none."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def table(rows: Sequence[Row]) -> str:
    """The results as a Markdown table that also reads well as plain text."""
    cells = [["", "network", *(column.heading for column in COLUMNS), "n"]]
    for row in rows:
        figures = [mean_and_deviation(row.values(column), column.digits) for column in COLUMNS]
        cells.append([label(row.name), row.network, *figures, str(len(row.results))])
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def gain(rows: Sequence[Row], better: str, baseline: str) -> str | None:
    """One sentence on the paired difference in last top-1 between two rows, over the seeds that both have."""
    by_name = {row.name: {result["seed"]: result["last"]["top1"] for result in row.results} for row in rows}
    if better not in by_name or baseline not in by_name:
        return None
    seeds = sorted(by_name[better].keys() & by_name[baseline].keys())
    differences = [by_name[better][seed] - by_name[baseline][seed] for seed in seeds]
    if not differences:
        return None
    deviation = f" ± {statistics.stdev(differences):.2f}" if len(differences) > 1 else ""
    spread = f"{statistics.fmean(differences):+.2f}{deviation} points, paired by seed, n = {len(differences)}"
    return f"{label(better)} against {label(baseline)}: {spread}"


def comparisons(rows: Sequence[Row]) -> list[str]:
    """The differences that the experiment is about."""
    pairs = [("collaborate", "student")]
    for method in dict.fromkeys(_method(row.name) for row in rows if row.name.startswith("distill-")):
        sftn, standard = (f"distill-{source}-{method}".rstrip("-") for source in ("sftn", "teacher"))
        pairs += [(sftn, standard), (sftn, "student"), (standard, "student")]
    return [sentence for better, baseline in pairs if (sentence := gain(rows, better, baseline))]


def write(folder: Path) -> str:
    """Write ``report.md``, ``results.csv`` and, if matplotlib works, ``report.png`` into ``folder``.

    Returns the report as text, with the files' paths.
    """
    rows = read_results(folder)
    text = "\n".join([table(rows), "", *comparisons(rows)]).rstrip() + "\n"
    _write_csv(rows, folder / "results.csv")
    try:
        plot(rows, folder / "report.png")
        picture, where = "\n![results](report.png)\n", f"plot: {folder / 'report.png'}"
    except ImportError as error:
        picture, where = "", f"no plot: matplotlib can't be imported ({error}); pip install matplotlib"
    (folder / "report.md").write_text(text + picture)
    return f"{text}\nreport: {folder / 'report.md'}\n{where}\n"


def _write_csv(rows: Sequence[Row], path: Path) -> None:
    names = ["name", "seed", "network", "parameters", "epochs", "top1_last", "top1_best", "best_epoch"]
    names += [
        "agreement",
        "agreement5",
        "kl",
        "cka",
        "calibration_error",
        "seconds",
        "images_per_second",
        "data_wait_share",
    ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        for row in rows:
            for result in row.results:
                top1 = {"top1_last": result["last"]["top1"], "top1_best": result["best"]["top1"]}
                writer.writerow({**result, **top1, "best_epoch": result["best"]["epoch"]})


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw accuracy of all networks and, where there are students, their distance from their teacher."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    top1, divergence = COLUMNS[0], COLUMNS[3]
    students = [row for row in rows if row.values(divergence)]
    panels = [(rows, top1, "top-1 accuracy, last epoch (%)")]
    if students:
        panels.append((students, divergence, "KL(teacher || student) on the test set"))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5.6 * len(panels), 0.55 * len(rows) + 1.3), squeeze=False, layout="constrained"
    )
    for axis, (shown, column, title) in zip(axes[0], panels, strict=True):
        _strip(axis, shown, column, title)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _strip(axis: Axes, rows: Sequence[Row], column: Column, title: str) -> None:
    """One line a row: a dot for each seed, a bar at the mean, a whisker of one deviation."""
    for height, row in enumerate(reversed(rows)):
        values = row.values(column)
        mean = statistics.fmean(values)
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        color = COLORS[kind(row.name)]
        axis.errorbar(mean, height, xerr=deviation, fmt="|", color=color, markersize=16, markeredgewidth=2.5, capsize=3)
        axis.plot(values, [height + 0.22] * len(values), "o", color=color, markersize=4, alpha=0.7)
        axis.annotate(
            f"{mean:.{column.digits}f}", (mean, height), (0, -14), textcoords="offset points", ha="center", fontsize=8
        )
    axis.set_yticks(range(len(rows)), [f"{label(row.name)}\n({row.network})" for row in reversed(rows)], fontsize=8)
    axis.set_ylim(-0.6, len(rows) - 0.4)
    axis.set_title(title, fontsize=10)
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the report of the run folder named on the command line."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m sftn_fast.report FOLDER", file=sys.stderr)
        return 0 if list(arguments) in (["-h"], ["--help"]) else 2
    try:
        print(write(Path(arguments[0]).expanduser()), end="")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
