"""The policy for writing checkpoints: when they are due, and when a signal asks for one."""

from __future__ import annotations

from functools import partial
from typing import Any

from sftn_fast.engine import distributed
from sftn_fast.engine.checkpoint import CheckpointStore
from sftn_fast.engine.run_log import RunLog
from sftn_fast.engine.signals import Interrupted, StopSignals
from sftn_fast.engine.state import TrainState


class CheckpointPolicy:
    """Writes the run's checkpoints.

    Args:
        store: receives them.
        state: what they hold.
        log: its length is saved too, so that a resumed run cuts off what was logged later.
        stop: signals that ask for a stop.
        identity: fingerprint of the run.
        every: steps between checkpoints, None for one at the end of each epoch.
    """

    def __init__(
        self,
        store: CheckpointStore,
        state: TrainState,
        log: RunLog,
        stop: StopSignals,
        identity: dict[str, Any],
        *,
        every: int | None,
    ) -> None:
        self.store, self.state, self.log, self.stop = store, state, log, stop
        self.identity, self.every = identity, every

    def after_step(self) -> None:
        """Stop if a signal asks for it, else save if a checkpoint is due. Raises :class:`Interrupted`."""
        self._stop_if_asked()
        if self.every is not None and self.state.step % self.every == 0:
            self._save()

    def after_epoch(self, *, last: bool) -> None:
        """Stop if a signal asks for it, else save if a checkpoint is due. Raises :class:`Interrupted`."""
        self._stop_if_asked()
        if self.every is None or last:
            self._save()

    def _save(self, *, must: bool = False) -> None:
        """Write a checkpoint. A failure is a warning unless ``must``."""
        # Waits for the device, as copying the state does. Values that are not finite never reach a checkpoint.
        self.state.train_step.check()
        self.state.stopwatch.lap()
        content = {"fingerprint": self.identity, **self.state.state_dict(self.log.offset)}
        save = self.store.save if must else self.store.try_save
        # All ranks wait for the write: when one of them exits, the launcher stops the others.
        distributed.on_main(partial(save, self.state.step, content))

    def _stop_if_asked(self) -> None:
        """Save and raise :class:`Interrupted` if any rank has received a signal."""
        signum = distributed.largest(self.stop.signum or 0)
        if signum:
            self._save(must=True)
            raise Interrupted(signum)
