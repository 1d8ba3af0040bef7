"""The state that a run needs to resume as if it had never stopped."""

from __future__ import annotations

from typing import Any

from torch import nn

from sftn_fast.engine import distributed
from sftn_fast.engine.averages import EPOCH, WINDOW, AverageMeter, Stopwatch
from sftn_fast.engine.best_epoch import BestEpoch
from sftn_fast.engine.checkpoint_content import check_content, optimizer_states
from sftn_fast.engine.optim import load_optimizer
from sftn_fast.engine.rng import rng_state, set_rng_state
from sftn_fast.engine.step import TrainStep
from sftn_fast.utils.environment import surroundings


class TrainState:
    """Position, parts and metrics of a run.

    Attributes:
        epoch: the current epoch, counted from 0.
        step_in_epoch: steps done in it.
        step: steps done over the whole run.
        history: a row of metrics for each finished epoch.
        best: the best epoch so far, on the main process; None if it is not kept.
        log_offset: bytes of ``metrics.jsonl`` that a resumed run keeps.
        threads: CPU threads measured to be the fastest, None if not measured.
    """

    def __init__(self, task: nn.Module, train_step: TrainStep):
        self.task, self.train_step = task, train_step
        self.meter, self.stopwatch = AverageMeter(train_step.layout.device), Stopwatch()
        self.epoch = self.step_in_epoch = self.step = 0
        self.history: list[dict[str, Any]] = []
        self.best: BestEpoch | None = None
        self.log_offset = 0
        self.threads: int | None = None

    def next_step(self) -> None:
        """Count a step."""
        self.step += 1
        self.step_in_epoch += 1

    def next_epoch(self, row: dict[str, Any]) -> None:
        """Count an epoch and add its ``row`` to the history."""
        self.history.append(row)
        self.epoch += 1
        self.step_in_epoch = 0

    def window_record(self) -> dict[str, Any]:
        """Return the means since the last such record, for a log line."""
        means = self.meter.read(WINDOW)  # waits for the device, so that the lap measures finished work, not queued work
        self.stopwatch.lap()
        return self._record("", means, self.stopwatch.read(WINDOW))

    def epoch_record(self) -> dict[str, Any]:
        """Return the means over the epoch, for a row of the history; stop the clock."""
        means = self.meter.read(EPOCH)
        self.stopwatch.stop()
        return self._record("train_", means, self.stopwatch.read(EPOCH))

    def _record(self, prefix: str, means: dict[str, float], speed: dict[str, float]) -> dict[str, Any]:
        scaler, skipped = self.train_step.scaler, means.pop("skipped")
        # Only with a scaler does training continue after a skipped step.
        if scaler.is_enabled():
            means |= {"skipped": skipped, "loss_scale": scaler.get_scale()}
        position = {"epoch": self.epoch + 1, "step": self.step, "lr": self.train_step.schedule(self.step - 1)}
        return {**position, **{prefix + name: value for name, value in means.items()}, **speed}

    def state_dict(self, log_offset: int) -> dict[str, Any]:
        """Return the state in tensors and plain Python values; ``metrics.jsonl`` is ``log_offset`` bytes long."""
        return {
            "task": self.task.state_dict(),
            "optimizer": self.train_step.optimizer.state_dict(),
            "teacher_optimizer": [optimizer.state_dict() for optimizer in self.train_step.optimizers[1:]],
            "ema": None if self.train_step.ema is None else self.train_step.ema.state_dict(),
            "scaler": self.train_step.scaler.state_dict(),
            "rng": distributed.gather(rng_state(self.train_step.layout.device)),
            "meter": distributed.gather(self.meter.state_dict()),
            "stopwatch": self.stopwatch.state_dict(),
            "position": [self.epoch, self.step_in_epoch, self.step],
            "history": self.history,
            "best": None if self.best is None else {"epoch": self.best.row["epoch"], "weights": self.best.weights},
            "log_offsets": [log_offset],
            "threads": self.threads,
            "environment": surroundings(self.train_step.layout.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state``.

        Raises:
            ValueError: it is not the state of such a run. Damaged content may raise other errors, after a part of it
                has been loaded.
        """
        optimizers = self.train_step.optimizers
        check_content(state, self.task, optimizers, self.train_step.ema)
        self.task.load_state_dict(state["task"])
        for optimizer, saved in zip(optimizers, optimizer_states(state), strict=True):
            load_optimizer(optimizer, saved)
        if self.train_step.ema is not None:
            self.train_step.ema.load_state_dict(state["ema"])
        if state["scaler"]:
            self.train_step.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step_in_epoch, self.step = state["position"]
        self.history = state["history"]
        if (best := state.get("best")) and distributed.is_main():  # earlier versions kept none
            self.best = BestEpoch(self.history[best["epoch"] - 1], best["weights"])
        self.log_offset = state["log_offsets"][0]  # earlier versions also kept the epoch's start
        self.threads = state.get("threads")
        self.meter.load_state_dict(state["meter"][distributed.rank()])
        self.stopwatch.load_state_dict(state["stopwatch"])
        set_rng_state(state["rng"][distributed.rank()], self.train_step.layout.device)
