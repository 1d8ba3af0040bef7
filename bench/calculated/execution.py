"""How many instructions a launch executes, at least: machine code and counted accesses, joined by a linear program.

The emulator counts the bytes that a launch's lanes read and write, and its shuffles, barriers, exponentials and square
roots; the machine code has them in basic blocks. Of all numbers of executions of the blocks that

- make those accesses, shuffles, barriers and functions,
- enter and leave the kernel once for each warp, and
- execute a block no more often than the blocks before it, and no more often than the blocks behind it,

the one with the fewest instructions is a lower bound. It needs no knowledge of a loop's length. It leaves out
instructions of loops that do none of this, and repeated executions of a diverged warp.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import lil_matrix

from bench.calculated.machine_code import Kernel

COUNTED = ("read", "written", "shared_read", "shared_written", "shuffles", "barriers", "exponentials", "roots")


def fewest_instructions(kernel: Kernel, warps: float, counted: Mapping[str, float]) -> Counter[str]:
    """Return what ``warps`` warps execute at least: "instructions", and those of each unit.

    Args:
        kernel: The compiled kernel.
        warps: Warps of the launch.
        counted: Of all lanes or warps, by the names of ``COUNTED``.

    Raises:
        ValueError: The machine code can't make the counted accesses, so it is that of other sources.
    """
    blocks = kernel.blocks
    before: list[set[int]] = [set() for _ in blocks]
    for i, block in enumerate(blocks):
        for after in block.successors:
            before[after].add(i)
    # rows of A x <= b
    matrix, bounds = lil_matrix((2 * len(blocks) + len(COUNTED) + 1, len(blocks))), []
    for i, block in enumerate(blocks):
        for neighbours, free in ((before[i], i == 0), (block.successors, block.leaves)):
            row = len(bounds)
            if not free:
                matrix[row, i] += 1
                for other in neighbours:
                    matrix[row, other] -= 1
            bounds.append(0.0)
    for name in COUNTED:
        for i, block in enumerate(blocks):
            matrix[len(bounds), i] = -block.uses[name]
        bounds.append(-float(counted.get(name, 0)))
    for i, block in enumerate(blocks):
        matrix[len(bounds), i] = -float(block.leaves)
    bounds.append(-warps)
    size = max(1.0, warps)  # the solver is exact for numbers near 1
    limits = [(warps / size if i == 0 else 0, None) for i in range(len(blocks))]
    cost = [block.instructions for block in blocks]
    found = linprog(cost, A_ub=matrix.tocsr(), b_ub=np.array(bounds) / size, bounds=limits, method="highs")
    if not found.success:
        absent = [name for name in COUNTED if counted.get(name) and not any(block.uses[name] for block in blocks)]
        raise ValueError(f"{kernel.name}: its machine code has no {' and no '.join(absent) or 'path'} as counted")
    executed: Counter[str] = Counter()
    for block, count in zip(blocks, found.x.tolist(), strict=True):
        executed["instructions"] += size * count * block.instructions
        for unit, uses in block.uses.items():
            executed[unit] += size * count * uses
    return executed
