"""torch.compile for a task, with a way back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sftn_fast.engine.finite import BufferSnapshot


class Compiled:
    """``task`` under torch.compile; ``Compiled(task)(images, target, index)`` gives its terms.

    If the first batch can't be compiled, as without a C++ compiler, a line on stderr says why and the task runs as it
    is from then on. Later failures, as of another shape, are errors.
    """

    def __init__(self, task: nn.Module) -> None:
        self._task = task
        self._call: Callable[..., dict[str, Tensor]] = self._first

    def __call__(self, *batch: Any) -> dict[str, Tensor]:
        """See the class."""
        return self._call(*batch)

    def _first(self, *batch: Any) -> dict[str, Tensor]:
        compiled = torch.compile(self._task)
        # Parts of the task may have run, and counted the batch, before another one fails.
        buffers = BufferSnapshot(self._task)
        buffers.take()
        try:
            terms = compiled(*batch)
            # The backward pass is compiled when it is first needed.
            parameters = [p for p in self._task.parameters() if p.requires_grad]
            torch.autograd.grad(terms["total"], parameters, retain_graph=True, allow_unused=True)
        except Exception as error:
            buffers.restore_if(torch.ones((), dtype=torch.bool, device=batch[0].device))
            reason = next(iter(str(error).strip().splitlines()), "no reason given")
            print(f"engine.compile: not compiled, {type(error).__name__}: {reason}", file=sys.stderr)
            self._call = self._task
            return self._task(*batch)
        self._call = compiled
        return terms
