"""The calculated times as files under bench/results and as a section of docs/benchmarks.md."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from bench.calculated import h200
from bench.calculated.table import Finding, Row
from sftn_fast.utils.atomic import write_atomically

NAME = "calculated-h200"
BEGIN, END = "<!-- calculated: written by python -m bench.calculated -->", "<!-- end of calculated -->"

ASSUMED = {
    "multiprocessors": h200.MULTIPROCESSORS,
    "clock GHz": h200.CLOCK / 1e9,
    "DRAM TB/s": h200.DRAM / 1e12,
    "L2 TB/s": h200.L2 / 1e12,
    "L2 MB": h200.L2_BYTES / 1e6,
    "library product TFLOP/s": h200.PRODUCT / 1e12,
    "launch us": h200.LAUNCH * 1e6,
    "memset us": h200.MEMSET * 1e6,
}

HOW = f"""\
**A calculation, not a measurement: no GPU has run these kernels.** Registers and machine code are nvcc's for sm_90.
Grids, bytes and sectors are counted by the emulator of the tests, which runs the same sources with the grids of
{h200.MULTIPROCESSORS} multiprocessors. Of a larger grid it runs a few blocks, whose counts stand for all; for the
negatives of 1,281,167 it runs all.

- Instructions are the fewest with which the machine code makes the accesses, shuffles, barriers, exponentials and
  square roots that the emulator counted, by a linear program over its basic blocks. Loops without any are left out.
- A launch takes {h200.LAUNCH * 1e6:g} us, a memset {h200.MEMSET * 1e6:g} us, each in a replayed graph: assumptions.
  To a launch the slowest of these is added: instructions at four of a warp for each clock and multiprocessor at
  {h200.CLOCK / 1e9:g} GHz, each unit's instructions at its rate in NVIDIA's programming guide, sectors over
  {h200.L2 / 1e12:g} TB/s of L2 (an assumption) and {h200.L2_PORT} bytes a clock and multiprocessor, and, where the call
  touches more than {h200.L2_BYTES / 1e6:.0f} MB, bytes over {h200.DRAM / 1e12:g} TB/s, which a copy reached on an H200.
  Grids are not spread evenly: the busiest multiprocessor counts.
- Matrix products of PyTorch's library are taken at the datasheet's {h200.PRODUCT / 1e12:.0f} TFLOP/s, and its other
  operations by the bytes of their tensors.
- Latencies are left out, so real times are longer, above all of small grids. A goal that is missed here will be missed;
  one that is met here may still be missed."""


def summary(findings: list[Finding]) -> str:
    """Return a table with a line for each case."""
    lines = [
        "| forward + backward, float32 | launches + memsets | calculated, us | limited most by | goal, us |",
        "|---|---:|---:|---|---|",
    ]
    for x in findings:
        counts = f"{x.launches} + {x.memsets}"
        lines.append(f"| {x.case} | {counts} | {x.total_us:.1f} | {x.limit} | {x.verdict} |")
    return "\n".join(lines)


def details(finding: Finding) -> str:
    """Return a table with a line for each launch of a case."""
    lines = [
        "| kernel | grid x threads | registers | shared, bytes | blocks, warps an SM | waves | instructions of a lane "
        "for each value | MiB read, written | sectors read, written | limit | us, with launch |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|---:|",
        *map(_detail, finding.rows),
    ]
    return "\n".join(lines)


def _detail(row: Row) -> str:
    limit = f"{row['limit']} {row['limit_us']:.2f}"
    if "grid" not in row:
        library = f"| {row['kernel']} of PyTorch | | | | | | | {row['bytes'] / 2**20:.2f} |"
        return f"{library} | {limit} | {row['total_us']:.2f} |"
    cells = [
        row["kernel"],
        f"{row['grid']:,} x {row['threads']}",
        row["registers"],
        f"{row['shared_bytes']:,}",
        f"{row['blocks_at_once']}, {row['warps_at_once']}",
        f"{row['waves']:.2f}",
        f"{row['lane_instructions_per_value']:.2f}",
        f"{row['bytes_read'] / 2**20:.2f}, {row['bytes_written'] / 2**20:.2f}",
        f"{row['sectors_read']:,}, {row['sectors_written']:,}",
        limit,
        f"{row['total_us']:.2f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def write(findings: list[Finding], folder: Path, page: Path | None, about: dict[str, Any]) -> None:
    """Write the record, its page, and the section of ``page`` between its marks.

    Raises:
        ValueError: ``page`` has no such section.
    """
    shown = refreshed(page.read_text(), findings) if page is not None else None
    folder.mkdir(parents=True, exist_ok=True)
    record = {"conditions": _conditions(about), "results": [finding.record() for finding in findings]}
    write_atomically(folder / f"{NAME}.json", json.dumps(record, indent=1) + "\n")
    sections = [f"## {finding.case}\n\n{details(finding)}" for finding in findings]
    where = ", ".join(f"{name} {value}" for name, value in about.items())
    text = ["# Calculated times on an H200", HOW, f"{where}.", summary(findings), *sections]
    write_atomically(folder / f"{NAME}.md", "\n\n".join(text) + "\n")
    if page is not None and shown is not None:
        write_atomically(page, shown)


def _conditions(about: dict[str, Any]) -> dict[str, Any]:
    return {"calculated": True, "measured": False, **about, "assumed": ASSUMED}


def recorded(folder: Path, about: dict[str, Any]) -> list[Finding]:
    """Return the findings of the record.

    Raises:
        OSError: There is none.
        ValueError: It is no record, or was calculated under other conditions than ``about``, the date aside.
    """
    path = folder / f"{NAME}.json"
    try:
        record = json.loads(path.read_text())
        names = [field.name for field in fields(Finding)]
        findings = [Finding(**{name: result[name] for name in names}) for result in record["results"]]
        before = record["conditions"] | {"date": None}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no record; calculate all cases again") from error
    if before != _conditions(about) | {"date": None}:
        raise ValueError(f"{path} was calculated with other tools or assumptions; calculate all cases again")
    return findings


def refreshed(text: str, findings: list[Finding]) -> str:
    """Return a page's text with the summary between its marks."""
    before, found, rest = text.partition(BEGIN)
    _, ends, after = rest.partition(END)
    if not (found and ends):
        raise ValueError(f"the page has no section from {BEGIN!r} to {END!r}")
    return f"{before}{BEGIN}\n\n{summary(findings)}\n\n{END}{after}"
