"""The table: for each case and launch, what it occupies, what it moves, and the time that this implies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bench.calculated.cases import Call, Case
from bench.calculated.execution import fewest_instructions
from bench.calculated.h200 import (
    L2_BYTES,
    MEMSET,
    MULTIPROCESSORS,
    Time,
    blocks_at_once,
    time_of_launch,
    time_of_library,
)
from bench.calculated.launches import Launch, Launches
from bench.calculated.machine_code import Kernel, base_name

Row = dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """A calculated call: its rows, one for each launch, and what follows for the whole."""

    case: str
    launches: int
    memsets: int
    total_us: float
    limit: str  # what takes the most time
    goal_us: float | None
    rows: list[Row]

    @property
    def verdict(self) -> str:
        """Whether the goal is met, by the calculation; empty if there is none."""
        if self.goal_us is None:
            return ""
        return f"{'met' if self.total_us <= self.goal_us else 'MISSED'} ({self.goal_us:.0f})"

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


def calculate(case: Case, call: Call, counted: Launches, kernels: Mapping[str, Kernel]) -> Finding:
    """Return the times of a case's launches and their sum.

    Raises:
        KeyError: A launched kernel is not among ``kernels``.
    """
    in_l2 = call.distinct_bytes <= L2_BYTES
    rows, spent = [], {"launches": 1e6 * MEMSET * counted.memsets}
    for launch in counted.kernels:
        if launch.kernel not in kernels:
            raise KeyError(f"{case.name} launches {launch.kernel}, whose machine code is not among the compiled ones")
        row, time = _row(launch, kernels[launch.kernel], call, in_l2=in_l2)
        rows.append(row)
        _spend(spent, time)
    for op in counted.library:
        time = time_of_library(op.num_bytes, op.flops, in_l2=in_l2)
        rows.append(
            {
                "kernel": op.name,
                "bytes": op.num_bytes,
                "limit": time.limit,
                "limit_us": round(time.limits[time.limit], 2),
                "total_us": round(time.total, 2),
            }
        )
        _spend(spent, time)
    return Finding(
        case.name,
        len(counted.kernels) + len(counted.library),
        counted.memsets,
        round(sum(spent.values()), 1),
        max(spent, key=lambda name: spent[name]),
        case.goal,
        rows,
    )


def _spend(spent: dict[str, float], time: Time) -> None:
    spent["launches"] += time.launch
    spent[time.limit] = spent.get(time.limit, 0.0) + time.limits[time.limit]


def _row(launch: Launch, kernel: Kernel, call: Call, *, in_l2: bool) -> tuple[Row, Time]:
    executed = fewest_instructions(kernel, launch.warps, launch.counted)
    sectors = launch.counted["read sectors"] + launch.counted["written sectors"]
    from_dram = 0.0 if in_l2 else min(32 * sectors, call.distinct_bytes)
    time = time_of_launch(launch.blocks, launch.warps // launch.blocks, executed, sectors, from_dram)
    shared = kernel.shared_bytes + launch.dynamic_bytes
    at_once = blocks_at_once(launch.threads, kernel.registers, shared)
    row = {
        "kernel": base_name(launch.kernel),
        "instance": launch.kernel,
        "grid": launch.blocks,
        "threads": launch.threads,
        "registers": kernel.registers,
        "shared_bytes": shared,
        "blocks_at_once": at_once,
        "warps_at_once": at_once * -(-launch.threads // 32),
        "waves": round(launch.blocks / (at_once * MULTIPROCESSORS), 2),
        "instructions": round(executed["instructions"]),
        "lane_instructions_per_value": round(32 * executed["instructions"] / call.values, 2),
        "special": round(executed["special"]),
        "bytes_read": round(launch.counted["read once"]),
        "bytes_written": round(launch.counted["written once"]),
        "sectors_read": round(launch.counted["read sectors"]),
        "sectors_written": round(launch.counted["written sectors"]),
        "limits_us": {name: round(value, 3) for name, value in time.limits.items()},
        "limit": time.limit,
        "limit_us": round(time.limits[time.limit], 2),
        "total_us": round(time.total, 2),
    }
    return row, time
