"""Tables as cells, tables as Markdown, and the sentences below them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sftn_fast.experiment.kinds import KINDS
from sftn_fast.experiment.labels import LABELS, kind, label, method_in
from sftn_fast.report import published
from sftn_fast.report.matrix import SOURCES, MethodLine, average_gain, sources_of
from sftn_fast.report.results import AGREEMENT, CALIBRATION, CKA, COLUMNS, COST, KL, SECONDS, SPEED, TOP1, Column, Row
from sftn_fast.report.statistics import FEWEST_TESTED, format_p, mean_and_deviation, paired, signed
from sftn_fast.report.terminal import Cells, grid
from sftn_fast.utils.text import counted, escape, for_markdown


def markdown(cells: Cells) -> str:
    """Return a Markdown table that is also readable as plain text."""
    return grid([[markdown_text(cell).replace("|", "\\|") for cell in line] for line in cells])


def markdown_text(text: str) -> str:
    """Return ``text`` on one line, escaped so that Markdown renders no HTML, link or picture from it."""
    return for_markdown(escape(text))


def rows_table(rows: Sequence[Row], columns: Sequence[Column] = COLUMNS) -> Cells:
    """Return a table with a row for each kind of network: mean and sample deviation over the seeds.

    A column without any figure, such as the distance to a teacher in a run without one, is left out.
    """
    columns = [column for column in columns if any(row.values(column) for row in rows)]
    cells = [["", "network", *(column.heading for column in columns), "n"]]
    for row in rows:
        figures = [mean_and_deviation(row.values(column), column.digits) for column in columns]
        cells.append([label(row.name), row.network, *figures, str(len(row.results))])
    return cells


def matrix_table(lines: Sequence[MethodLine]) -> Cells:
    """Return a table with a row for each method: students of both teachers, gain, and similarity to the teachers.

    It has columns for published accuracies if there is one for any of the methods.
    """
    similar = [(column, f"{column.heading.split('(')[0]}, standard / SFTN") for column in SIMILARITY]
    sources = sources_of(lines)
    headings = ["method", *(LABELS[source] for source in sources), "n", "gain of SFTN", "95 % CI", "p (Holm)"]
    headings += [heading for _, heading in similar] + ["seconds, standard / SFTN"]
    compared = any(line.published for line in lines)
    cells = [headings + (["published", "gap"] if compared else [])]
    for line in lines:
        cells.append(
            [line.method, *(_top1(line, source) for source in sources), str(line.n), *_gain_cells(line)]
            + [_both(line, column) for column, _ in similar]
            + [_both(line, SECONDS)]
            + (_published_cells(line) if compared else [])
        )
    return cells


SIMILARITY = (AGREEMENT, KL, CKA, CALIBRATION)


def _top1(line: MethodLine, source: str) -> str:
    values = line.values(source, TOP1)
    text = mean_and_deviation(values, TOP1.digits)
    return text if len(values) in (0, line.n) else f"{text} (n = {len(values)})"


def _gain_cells(line: MethodLine) -> list[str]:
    if line.gain is None:
        return ["-", "-", "-"]
    interval = " to ".join(map(signed, line.gain.interval)) if line.gain.interval else "-"
    return [str(line.gain), interval, "-" if line.p is None else format_p(line.p)]


def _both(line: MethodLine, column: Column) -> str:
    means = [f"{statistics.fmean(values):.{column.digits}f}" if values else "-" for values in _values(line, column)]
    return " / ".join(means)


def _values(line: MethodLine, column: Column) -> list[list[float]]:
    return [line.values(source, column) for source in SOURCES]


def _published_cells(line: MethodLine) -> list[str]:
    if line.published is None:
        return ["-", "-"]
    gap = "-" if line.gap is None else signed(line.gap)
    return [f"{line.published.top1:.2f} ({line.published.source})", gap]


def costs_table(rows: Sequence[Row]) -> Cells:
    """Return a table of time and cost with a row for each kind of network, and the total below."""
    cells = [["", "seconds", "images/s", "waiting for data", "device seconds", "of all seeds"]]
    for row in rows:
        waiting = statistics.fmean(result["data_wait_share"] for result in row.results)
        means = [mean_and_deviation(row.values(column), column.digits) for column in (SECONDS, SPEED)]
        cost = row.values(COST)
        cells.append([label(row.name), *means, f"{waiting:.1%}", mean_and_deviation(cost, 1), f"{sum(cost):.1f}"])
    cells.append(["all", "", "", "", "", f"{sum(sum(row.values(COST)) for row in rows):.1f}"])
    return cells


def comparisons(rows: Sequence[Row]) -> list[str]:
    """Return the comparisons that an experiment with one method makes."""
    pairs = [
        ("collaborate", "student"),
        ("distill-sftn", "distill-teacher"),
        ("distill-sftn", "distill-early"),
        ("distill-sftn", "distill-soteacher"),
        ("distill-early", "distill-teacher"),
        ("distill-soteacher", "distill-teacher"),
        ("distill-sftn", "student"),
        ("distill-teacher", "student"),
    ]
    return [sentence for better, baseline in pairs if (sentence := gain(rows, better, baseline))]


def gain(rows: Sequence[Row], better: str, baseline: str) -> str | None:
    """Return a sentence on the difference in last top-1 between two rows, paired by seed; None without common seeds."""
    by_name = {row.name: row.by_seed(TOP1) for row in rows}
    difference = paired(by_name.get(better, {}), by_name.get(baseline, {}))
    return f"{label(better)} vs. {label(baseline)}: {difference.in_words()}" if difference else None


def matrix_sentences(rows: Sequence[Row], lines: Sequence[MethodLine]) -> list[str]:
    """Return the sentences below the table of methods: its quantities, the mean gain, the baselines."""
    tested = sum(line.p is not None for line in lines)
    corrected = f", Holm-corrected for {counted(tested, 'method')}" if tested else ""
    sentences = [
        "Top-1 in % after the last epoch, mean ± SD over n seeds. Agreement, KL (in nats) and CKA compare student and "
        "teacher on the test set.",
        "Gain: SFTN minus standard, paired by seed. 95 % CI: Student's t, uncorrected. "
        f"p: two-sided paired t-test, n >= {FEWEST_TESTED}{corrected}.",
    ]
    average = average_gain(lines)
    if average:
        methods = sum(line.gain is not None for line in lines)
        sentences.append(f"Mean gain of SFTN over {counted(methods, 'method')}: {average.in_words()}")
    for row in rows:
        if not method_in(row.name):
            top1 = mean_and_deviation(row.values(TOP1), TOP1.digits)
            sentences.append(f"{label(row.name)} ({row.network}): top-1 {top1} %, n = {len(row.results)}")
    return sentences


def images_sentences(rows: Sequence[Row]) -> list[str]:
    """Return a sentence if students learned from fewer images than their teachers."""
    counts: dict[bool, set[Any]] = {True: set(), False: set()}
    for row in rows:
        for result in row.results:
            if result.get("epochs"):  # a teacher from a file learned from images that nobody recorded
                count = result.get("identity", {}).get("data", {}).get("num_train")
                counts[KINDS[result["name"].partition("-")[0]].teaches].add(count)
    if None in counts[True] | counts[False] or not len(counts[True]) == len(counts[False]) == 1:
        return []
    (teachers,), (students,) = counts[True], counts[False]
    if students == teachers:
        return []
    return [f"Students, alone or taught, learned from {students:,} of the teachers' {teachers:,} training images"]


def start_sentences(rows: Sequence[Row]) -> list[str]:
    """Return a sentence for each kind of student that started as a branch of its teacher."""
    results = ((kind(row.name), result) for row in rows for result in row.results)
    started = dict.fromkeys(name for name, result in results if result.get("identity", {}).get("init_student") is True)
    how = "starts with the stages and the head of the teacher's earliest branch, as they are after the last epoch"
    return [f"{label(name)}: {how}" for name in started]


def cost_sentence(rows: Sequence[Row]) -> str:
    """Return a sentence on the cost of all trainings."""
    trainings = sum(len(row.results) for row in rows)
    cost = sum(sum(row.values(COST)) for row in rows)
    seconds = f"{counted(round(cost), 'device second')} (each training with its start and evaluations, times devices)"
    return f"Cost: {counted(trainings, 'training')}, {seconds}"


def published_sentences(rows: Sequence[Row], lines: Sequence[MethodLine], settings: Mapping[str, Any]) -> list[str]:
    """Return sentences on published accuracies outside the table, the gaps to them, and their source."""
    sentences = []
    for row in rows:
        found = published.of_network(kind(row.name), settings)
        if row.name == "distill-teacher":
            found = published.of_method(row.method or str(settings.get("distill")), settings)
        if found:
            gap = statistics.fmean(row.values(found.column)) - found.top1
            sentences.append(
                f"{label(row.name)}: {found.top1:.2f} published ({found.source}), gap {signed(gap)} points"
            )
    if sentences or any(line.published for line in lines):
        sentences.append(published.note(settings))
    return sentences
