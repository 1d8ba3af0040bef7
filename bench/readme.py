"""The README's table of speeds, written from the records: `python -m bench.readme`."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.family import Row
from bench.record import RESULTS, read

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- speeds: written by python -m bench.readme -->", "<!-- end of speeds -->"
FAMILIES = ("logits", "contrastive", "negatives", "relational", "features")


def table(device: str = "cpu", folder: Path = RESULTS) -> str:
    """A row a case, of all families that were measured on ``device``, and where that was."""
    names = ["forward + backward, float32", "authors' code", "torch.compile", "**ours**", "memory, theirs / ours"]
    lines = [f"| {' | '.join(names)} |", "|---|---:|---:|---:|---:|"]
    conditions = {}
    for family in FAMILIES:
        conditions, rows = read(f"{family}-{device}", folder)
        by_case: dict[str, dict[str, Row]] = {}
        for row in rows:
            by_case.setdefault(row["case"], {})[row["implementation"]] = row
        lines += [_line(case, found) for case, found in by_case.items()]
    facts = (
        f"{conditions['threads']} threads of {conditions['processor']} with {conditions['simd']}, "
        f"torch {conditions['torch']}, {conditions['date']}"
    )
    what = "Medians of single calls, under torch.compile and with ours as times faster than the authors' code"
    return "\n".join([*lines, "", f"{what}; {facts}."])


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


def with_table(text: str, speeds: str) -> str:
    """``text`` with what stands between the two marks replaced. ValueError if they are not there."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{speeds}\n\n{END}{after}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(), table()))
    print(f"{README}: speeds refreshed", file=sys.stderr)
