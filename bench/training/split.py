"""The parts of a step's time, by clocks around functions that every loop calls, and the layers' shares of it."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from sftn_fast.models import StagedNet
from sftn_fast.models.wrn import WideResNet
from sftn_fast.sftn import StudentAwareTeacher

PARTS = ("data", "frozen forward", "forward", "backward", "optimizer", "rest")
"""Forward passes are those of the networks. The rest is losses, adapters and everything else outside autograd."""

LAYERS = {
    "convolutions": ("convolution",),
    "BatchNorm": ("batch_norm",),
    "ReLU": ("relu", "threshold_backward", "clamp_min"),
}
"""Layers by words in the names of PyTorch's operators, forward and backward."""


def shares(train: Callable[[], object]) -> dict[str, float]:
    """Take one step under PyTorch's profiler, and return which part of its operators' time each kind of layer takes."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train()
    seconds = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    whole = sum(seconds.values())
    return {
        layer: sum(each for name, each in seconds.items() if any(word in name for word in words)) / whole
        for layer, words in LAYERS.items()
    }


class Split:
    """Seconds of each part since the last :meth:`take`."""

    def __init__(self) -> None:
        self._seconds: Counter[str] = Counter()
        self._inside = False

    def watch_networks(self) -> None:
        """Put clocks around forward and backward passes and updates, permanently in this process."""
        for owner, name in (
            (StagedNet, "forward"),
            (StagedNet, "forward_features"),
            (WideResNet, "forward_features"),
            (StudentAwareTeacher, "forward_branches"),
        ):
            setattr(owner, name, self._forward(getattr(owner, name)))
        torch.Tensor.backward = self.timed("backward", torch.Tensor.backward)  # type: ignore[method-assign]
        torch.optim.SGD.step = self.timed("optimizer", torch.optim.SGD.step)  # type: ignore[method-assign]

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap ``function`` to count its time as ``part``, except when called inside another counted function."""

        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            if self._inside:
                return function(*args, **options)
            self._inside, start = True, time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self._seconds[part] += time.perf_counter() - start
                self._inside = False

        return call

    def _forward(self, function: Callable[..., Any]) -> Callable[..., Any]:
        frozen, learning = (self.timed(part, function) for part in ("frozen forward", "forward"))

        @functools.wraps(function)
        def call(net: Any, *args: Any, **options: Any) -> Any:
            return (learning if net.training else frozen)(net, *args, **options)

        return call

    def take(self, total: float) -> dict[str, float]:
        """Return and reset the seconds of each part, which add up to ``total``."""
        seconds, self._seconds = self._seconds, Counter()
        return {**seconds, "rest": total - sum(seconds.values())}
