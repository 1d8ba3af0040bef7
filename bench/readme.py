"""The README's tables of speeds, written from the records: `python -m bench.readme`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from bench.cases import FAMILIES
from bench.record import RESULTS, Row, read

README = Path(__file__).parents[1] / "README.md"
STEPS_BEGIN, STEPS_END = "<!-- steps: written by python -m bench.readme -->", "<!-- end of steps -->"
BEGIN, END = "<!-- speeds: written by python -m bench.readme -->", "<!-- end of speeds -->"
SHOWN = (
    "KD + CE (64, 100)",
    "KD + CE (1024, 1000)",
    "SFTN, 3 branches (64, 100)",
    "SFTN, 3 branches (256, 1000)",
    "CRD and its negatives, N 50,000",
    "CRD and its negatives, N 1,281,167",
    "CRD, N 1,281,167, bfloat16 banks",
    "RKD (64, 128)",
    "RKD (256, 512)",
    "SP (64, 256, 8, 8)",
    "PKT (64, 128)",
    "hint (64, 256, 8, 8)",
    "BatchNorm + ReLU + MSE (64, 64, 32, 32)",
    "AT (64, 64, 32, 32)",
    "FT (64, 256, 8, 8)",
    "VID (64, 64, 32, 32)",
    "AB (64, 256, 8, 8)",
    "OH (64, 64, 32, 32)",
)
"""Cases of the table of losses, the first and the last of their sizes; all of them are in the records."""


def table(device: str = "cpu", folder: Path = RESULTS) -> str:
    """A row for each case in ``SHOWN``, and where they were measured on ``device``."""
    names = ["forward + backward, float32", "authors' code", "torch.compile", "**ours**", "memory, theirs / ours"]
    lines = [f"| {' | '.join(names)} |", "|---|---:|---:|---:|---:|"]
    conditions = {}
    by_case: dict[str, dict[str, Row]] = {}
    for family in FAMILIES:
        conditions, rows = read(f"{family}-{device}", folder)
        for row in rows:
            by_case.setdefault(row["case"], {})[row["implementation"]] = row
    lines += [_line(case, by_case[case]) for case in SHOWN]
    what = "Medians of single calls, under torch.compile and with ours as times faster than the authors' code"
    return "\n".join([*lines, "", f"{what}; {_where(conditions)}."])


def _where(conditions: dict[str, Any]) -> str:
    return (
        f"{conditions['threads']} threads of {conditions['processor']} with {conditions['simd']}, "
        f"torch {conditions['torch']}, {conditions['date']}"
    )


def _line(case: str, found: dict[str, Row]) -> str:
    eager, ours = found["eager"], found["ours"]
    compiled = found.get("compile", {}).get("ratio")
    memory = f"{_bytes(eager['peak_bytes'])} / {_bytes(ours['peak_bytes'])}"
    cells = [case, _time(eager["p50"]), "-" if compiled is None else f"{compiled:.1f}", f"**{ours['ratio']:.1f}**"]
    return f"| {' | '.join([*cells, memory])} |"


def _time(microseconds: float) -> str:
    return f"{microseconds:.0f} us" if microseconds < 1000 else f"{microseconds / 1000:.1f} ms"


def _bytes(count: float) -> str:
    return f"{count / 2**10:,.0f} KiB" if count < 2**20 else f"{count / 2**20:,.1f} MiB"


def steps_table(folder: Path = RESULTS) -> str:
    """A row a case of whole steps of training, and where they were measured. FileNotFoundError if nowhere yet."""
    conditions, rows = read("training-cpu", folder)
    names = ["a whole step", "usual loop, images/s", "**ours**, images/s", "times as fast", "memory, theirs / ours"]
    lines = [f"| {' | '.join(names)} |", "|---|---:|---:|---:|---:|"]
    found = {(row["case"], row["implementation"]): row for row in rows}
    for case in dict.fromkeys(row["case"] for row in rows if row["implementation"] == "ours"):
        usual, ours = found[case, "eager"], found[case, "ours"]
        memory = f"{_bytes(usual['peak_bytes'])} / {_bytes(ours['peak_bytes'])}"
        cells = [case, f"{usual['images_per_second']:.0f}", f"**{ours['images_per_second']:.0f}**"]
        lines.append(f"| {' | '.join([*cells, format(ours['ratio'], '.2f'), memory])} |")
    return "\n".join([*lines, "", f"Medians; {_where(conditions)}."])


def with_table(text: str, speeds: str, begin: str = BEGIN, end: str = END) -> str:
    """``text`` with what stands between the two marks replaced. ValueError if they are not there."""
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n\n{speeds}\n\n{end}{after}"


def refreshed(text: str, folder: Path = RESULTS) -> str:
    """``text`` with its tables as recorded; that of whole steps where it has the marks and there is a record."""
    text = with_table(text, table(folder=folder))
    if STEPS_BEGIN in text and (folder / "training-cpu.json").is_file():
        text = with_table(text, steps_table(folder), STEPS_BEGIN, STEPS_END)
    return text


if __name__ == "__main__":
    README.write_text(refreshed(README.read_text()))
    print(f"{README}: tables refreshed", file=sys.stderr)
