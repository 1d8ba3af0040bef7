"""Exponential moving average (EMA) of a network's weights, updated by each step.

It follows timm's ``ModelEmaV3``: the first step's weights are taken as they are, later ones are averaged, and the decay
may rise from 0. Buffers of floating point, such as BatchNorm's running statistics, are averaged like weights; others,
such as its count of batches, are copied.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from sftn_fast.config import EmaConfig
from sftn_fast.utils.observers import is_sized_by_data


class EMA:
    """Average of the weights of ``model``, in place on its device, so that a recorded step can update it.

    Buffers whose size depends on the data, those of quantisation observers, are not averaged.
    """

    def __init__(self, model: nn.Module, config: EmaConfig, device: torch.device) -> None:
        state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
        # Detached, in the memory of the network itself.
        self._own = {name: value for name, value in state.items() if not is_sized_by_data(name)}
        self._average = {name: value.clone() for name, value in self._own.items()}
        floating = [name for name, value in self._own.items() if value.is_floating_point()]
        others = [name for name in self._own if name not in floating]
        self._means = [self._average[name] for name in floating], [self._own[name] for name in floating]
        self._copies = [self._average[name] for name in others], [self._own[name] for name in others]
        self._model, self._config = model, config
        self._share = torch.ones((), device=device)

    def share(self, number: int) -> float:
        """Return the weight of step ``number``, counted from 0, in the average: 1 less the decay."""
        steps, decay = number + 1, self._config.decay
        if steps == 1:
            return 1.0
        return 1 - (min(decay, 1 - steps ** (-2 / 3)) if self._config.warmup else decay)

    def begin_step(self, number: int) -> None:
        """Set the share of step ``number``, counted from 0."""
        self._share.fill_(self.share(number))

    @torch.no_grad()
    def update(self, skipped: Tensor) -> None:
        """Add the present weights, unless the step was ``skipped``, a 0-dim tensor of 0 or 1."""
        averages, own = self._means
        change = torch._foreach_sub(own, averages)
        torch._foreach_mul_(change, self._share * (1 - skipped))
        torch._foreach_add_(averages, change)
        if self._copies[0]:
            torch._foreach_copy_(*self._copies)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Let the network have the averaged weights inside this context."""
        own = list(self._own.values())
        saved = [value.clone() for value in own]
        torch._foreach_copy_(own, list(self._average.values()))
        try:
            yield
        finally:
            torch._foreach_copy_(own, saved)

    def weights(self) -> dict[str, Tensor]:
        """Return the network's whole state with the averaged weights, on the CPU. Waits for the device."""
        with self.applied():
            return {
                name: value.detach().to("cpu", copy=True)
                for name, value in self._model.state_dict().items()
                if isinstance(value, Tensor)
            }

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages by name; they stay in place."""
        return dict(self._average)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy the averages in ``state``."""
        for name, value in self._average.items():
            value.copy_(state[name])
