"""torch.compile for a task, with a fallback."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sftn_fast.engine.finite import Snapshot
from sftn_fast.engine.protocols import Terms


class Compiled:
    """``task`` under torch.compile: ``Compiled(task)(images, target, index)`` returns its terms.

    If compiling fails at the first batch, for example without a C++ compiler, a line on stderr says why. The task then
    runs without compilation. Later failures, for example with another shape, are errors.
    """

    def __init__(self, task: nn.Module) -> None:
        self._task = task
        self._call: Callable[[Tensor, Tensor, Tensor], Terms] = self._first

    def __call__(self, images: Tensor, target: Tensor, index: Tensor) -> Terms:
        """Return the task's terms."""
        return self._call(images, target, index)

    def _first(self, images: Tensor, target: Tensor, index: Tensor) -> Terms:
        compiled = torch.compile(self._task)
        # BatchNorms may have counted the batch before a later part fails.
        buffers = Snapshot(self._task.buffers())
        buffers.take()
        try:
            terms: Terms = compiled(images, target, index)
            # The backward pass is compiled when it is first needed.
            parameters = [p for p in self._task.parameters() if p.requires_grad]
            torch.autograd.grad(terms["total"], parameters, retain_graph=True, allow_unused=True)
        except Exception as error:
            buffers.restore_if(torch.ones((), dtype=torch.bool, device=images.device))
            reason = next(iter(str(error).strip().splitlines()), "no reason given")
            print(f"engine.compile: not compiled, {type(error).__name__}: {reason}", file=sys.stderr)
            self._call = self._task
            return self._call(images, target, index)
        self._call = compiled
        return terms
