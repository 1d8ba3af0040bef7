"""The training loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sftn_fast.config import ConfigError, EngineConfig, OptimConfig, check
from sftn_fast.engine import distributed
from sftn_fast.engine.checkpoint import CheckpointStore
from sftn_fast.engine.device import amp_dtype, resolve_device
from sftn_fast.engine.evaluate import evaluate
from sftn_fast.engine.fingerprint import FingerprintMismatch, differences, normalise
from sftn_fast.engine.folder import FolderError
from sftn_fast.engine.meter import RUN
from sftn_fast.engine.metrics import RunLog
from sftn_fast.engine.optim import Schedule
from sftn_fast.engine.rng import seed_everything
from sftn_fast.engine.signals import Interrupted, StopSignals
from sftn_fast.engine.state import TrainState
from sftn_fast.engine.step import build_step
from sftn_fast.engine.threads import fastest_threads
from sftn_fast.utils.progress import ProgressBar
from sftn_fast.utils.text import printable

logger = logging.getLogger(__name__)

DEFAULT_LR = 0.05  # CRD's for CIFAR-100


@dataclass(frozen=True)
class FitResult:
    """What came of a run.

    Attributes:
        history: a row for each epoch: ``epoch`` from 1, ``step``, ``lr``, ``train_*``, ``val_*``, ``test_*``, speed.
        last: the last epoch's row, which the reference code reports.
        best: the row of the highest ``val_top1``, or ``test_top1`` where nothing is held out; the last one where
            nothing is evaluated.
        images_per_second: of training, evaluations not counted.
        seconds: of training, evaluations not counted, those before a stop included.
        data_wait_share: share of that time spent waiting for data, 0 to 1.
        resumed_from: the step that the run went on from, or None.
    """

    history: list[dict[str, Any]]
    last: dict[str, Any]
    best: dict[str, Any]
    images_per_second: float
    seconds: float
    data_wait_share: float
    resumed_from: int | None


def fit(
    task: nn.Module,
    data: Any,
    *,
    epochs: int,
    optim: OptimConfig,
    engine: EngineConfig,
    folder: Path,
    fingerprint: dict[str, Any],
    seed: int,
    lr: float | None = None,
    resume: str = "auto",
    on_epoch: Callable[[int], None] | None = None,
) -> FitResult:
    """Train ``task`` on ``data`` for ``epochs``.

    Args:
        task: ``task(images, target, index)`` gives the 0-dim float32 terms of the loss, "total" among them, which is
            minimised; ``task.model`` is what is evaluated, None for nothing. ``task.begin_epoch(epoch)``, where there
            is one, is called with each epoch, counted from 0, that is begun or resumed; unless it gives False, a step
            is taken to compute otherwise than before. Moved to the engine's device.
        data: ``train``, ``val`` (or None) and ``test`` loaders, as ``sftn_fast.data.build`` gives them.
        folder: receives ``metrics.jsonl``, ``summary.csv`` and ``checkpoints/``. The caller holds its lock
            (:class:`~sftn_fast.engine.folder.RunFolder`).
        fingerprint: what must agree for a resumed run to be the same run; JSON's types. The loop adds epochs, seed,
            steps an epoch and ranks.
        seed: seeds the global generators, hence dropout, at the start.
        lr: learning rate where ``optim.lr`` is None; 0.05 if that is None too. Either is for ``optim.base_batch_size``
            where ``optim.lr_scale`` is linear.
        resume: "auto" goes on from the newest valid checkpoint in ``folder``; "never" refuses a folder that has any;
            "force" goes on although the fingerprint differs, from the start of the epoch under way.
        on_epoch: called after each epoch, counted from 1, before its checkpoint; again for an epoch that a stopped run
            repeats. On the main process alone.

    Raises:
        ConfigError: device, arithmetic, data or folder can't be used.
        FingerprintMismatch: the folder's checkpoint is of another run; a ConfigError too.
        NonFiniteError: a loss or gradient is not finite.
        CheckpointError: no checkpoint could be written three times in a row, or none of those there can be read.
        Interrupted: after SIGTERM, SIGINT or SIGUSR1, once the checkpoint is written.

    Over several ranks each calls this with its share of the data. They agree on what to do, and the main one writes it
    down.
    """
    check(resume in ("auto", "never", "force"), "resume", resume, "auto, never or force")
    device = resolve_device(engine.device)
    amp_dtype(engine.amp, device)  # refused before anything else is done
    rate = optim.scaled(optim.lr if optim.lr is not None else lr if lr is not None else DEFAULT_LR)
    steps_per_epoch, ranks, main = steps_an_epoch(data, optim), distributed.world_size(), distributed.is_main()

    run = {"epochs": epochs, "seed": seed, "steps_per_epoch": steps_per_epoch, "ranks": ranks}
    identity = normalise({**fingerprint, "run": run})
    everyones = distributed.gather(identity)
    distributed.on_main(partial(_check_agreement, everyones))

    seed_everything(seed + distributed.rank())
    schedule = Schedule(optim, rate, steps_per_epoch, epochs)
    train_step = build_step(task, schedule, engine, device, lambda: next(data.train.epoch(0)))
    state = TrainState(task, train_step)

    store = distributed.on_main(partial(CheckpointStore, folder / "checkpoints", keep=engine.keep_checkpoints))
    resumed_from = _resume(store, state, identity, resume)
    if engine.threads == "auto" and device.type == "cpu":
        # A resumed run computes with as many as it began with, bit for bit.
        task.train()
        state.threads = state.threads or fastest_threads(train_step, next(data.train.epoch(0)))
        torch.set_num_threads(state.threads)

    bar = ProgressBar(epochs * steps_per_epoch, start=state.step) if main else None
    log = RunLog(
        folder,
        epochs=epochs,
        step=state.step,
        offset=state.log_offset,
        bar=bar,
        tensorboard=engine.tensorboard,
        quiet=not main,
    )
    with StopSignals() as stop, log:
        log.say(f"  {schedule.describe()}")
        if resumed_from is not None:
            log.say(f"resumed from step {resumed_from}, {state.epoch} of {epochs} epochs done")
        _train(state, data, engine, epochs, log, _Keeper(store, state, log, stop, identity), on_epoch)
    return _result(state, resumed_from)


def steps_an_epoch(data: Any, optim: OptimConfig) -> int:
    """How many steps an epoch of ``data`` has; raises :class:`ConfigError` where there is not one."""
    if len(data.train) == 0:
        raise ConfigError(f"optim.batch_size is {optim.batch_size}, more than the {data.num_train} training images")
    return len(data.train)


def _train(
    state: TrainState,
    data: Any,
    engine: EngineConfig,
    epochs: int,
    log: RunLog,
    keeper: _Keeper,
    on_epoch: Callable[[int], None] | None,
) -> None:
    """Train to the end from wherever ``state`` stands."""
    task, train_step, every = state.task, state.train_step, engine.checkpoint_every
    begin_epoch = getattr(task, "begin_epoch", lambda epoch: False)
    while state.epoch < epochs:
        task.train()
        if begin_epoch(state.epoch) is not False:
            train_step.forget()
        state.begin_epoch(log.offset)
        batches = train_step.batches(data.train, state.epoch, state.step_in_epoch)
        for batch in state.stopwatch.batches(batches, ranks=distributed.world_size()):
            # On a GPU this queues the step and returns: nothing is read back.
            terms = train_step(batch, state.step)
            state.meter.add(terms, len(batch.index))
            state.next_step()
            log.progress(state.step, state.epoch)

            # The one wait for the device between two log lines: the means of all terms, read together.
            if state.step % engine.log_every == 0:
                train_step.check()
                log.train(state.window_record())

            # A signal is answered between two steps, when all there is to save is consistent.
            keeper.stop_if_asked()
            if every is not None and state.step % every == 0:
                keeper.save()

        # Read the epoch's means before the evaluation, so that its time is not training's.
        train_step.check()
        row = state.epoch_record()
        if (state.epoch + 1) % engine.eval_every == 0 or state.epoch + 1 == epochs:
            row |= _evaluate(state, data)
        state.next_epoch(row)
        log.epoch(state.history)
        if on_epoch is not None:
            distributed.on_main(partial(on_epoch, state.epoch))

        # Behind the evaluation, so that a resumed run does not evaluate twice.
        keeper.stop_if_asked()
        if every is None or state.epoch == epochs:
            keeper.save()


def _evaluate(state: TrainState, data: Any) -> dict[str, float]:
    """Metrics of the validation split, if there is one, and of the test split, as ``val_*`` and ``test_*``."""
    if state.task.model is None:
        return {}
    splits = {"val": data.val, "test": data.test}
    return {
        f"{split}_{name}": value
        for split, batches in splits.items()
        if batches is not None
        for name, value in evaluate(state.task.model, batches, state.train_step.layout).items()  # type: ignore[arg-type]
    }


def _resume(store: CheckpointStore, state: TrainState, identity: dict[str, Any], mode: str) -> int | None:
    """Put ``state`` where the newest usable checkpoint stood; its step, or None if there is none."""
    candidates = _candidates(store, identity, mode)
    while True:
        found = distributed.on_main(lambda: next(candidates, None))
        if found is None:
            break
        step, content, same_run = found
        try:
            state.load_state_dict(content, same_run=same_run)
            problem = None
        # Whatever a file with a valid checksum holds, the one before is to be tried.
        except Exception as error:
            problem = f"{type(error).__name__}: {printable(error, 400)}"
        problems = [text for text in distributed.gather(problem) if text]
        if not problems:
            return step
        if distributed.is_main():
            logger.warning("checkpoint %s is refused: %s; trying the one before", store.path(step), problems[0])
    distributed.on_main(partial(_require_none, store))
    return None


def _candidates(
    store: CheckpointStore, identity: dict[str, Any], mode: str
) -> Iterator[tuple[int, dict[str, Any], bool]]:
    """Step and content of each checkpoint that can be read, newest first, and whether it is of this very run."""
    if mode == "never" and store.steps():
        raise FolderError(
            f"{store.folder} holds checkpoints and resume is 'never'; choose another folder, or resume=auto"
        )
    for step, content in store.valid():
        try:
            differing = differences(content["fingerprint"], identity)
        except (KeyError, TypeError, ValueError, AttributeError):
            logger.warning("checkpoint %s is refused: it does not say what run it is of", store.path(step))
            continue
        if differing and mode != "force":
            raise FingerprintMismatch(differing)
        yield step, content, not differing


def _require_none(store: CheckpointStore) -> None:
    """Refuse to train from the start where there are checkpoints, and none that can be gone on from."""
    if store.steps():
        raise store.none_left()


def _check_agreement(identities: list[dict[str, Any]]) -> None:
    """Refuse ranks that are about to train different things, which would end in a hang or in nonsense."""
    for number, identity in enumerate(identities):
        fields = [f"{key}: {ours} and {theirs}" for key, ours, theirs in differences(identities[0], identity)]
        if fields:
            raise ConfigError(f"ranks 0 and {number} differ in what they are to train ({'; '.join(fields)})")


def _result(state: TrainState, resumed_from: int | None) -> FitResult:
    last = state.history[-1]
    judge = "val_top1" if "val_top1" in last else "test_top1"
    best = max((row for row in state.history if judge in row), key=lambda row: row[judge], default=last)
    speed = state.stopwatch.read(RUN)
    rates = speed["images_per_second"], speed["seconds"], speed["data_wait"]
    return FitResult(state.history, last, best, *rates, resumed_from)


class _Keeper:
    """Writes the run's checkpoints, when they are due and when a signal asks for one."""

    def __init__(
        self, store: CheckpointStore, state: TrainState, log: RunLog, stop: StopSignals, identity: dict[str, Any]
    ):
        self.store, self.state, self.log, self.stop, self.identity = store, state, log, stop, identity

    def save(self, *, must: bool = False) -> None:
        """Write a checkpoint; a failure is a warning unless ``must``. Waits for the device, as the copy does anyway."""
        # What is not finite never becomes a checkpoint.
        self.state.train_step.check()
        self.state.stopwatch.lap()
        content = {"fingerprint": self.identity, **self.state.state_dict(self.log.offset)}
        save = self.store.save if must else self.store.try_save
        # Nobody goes on, or leaves, while it is written: a launcher stops the others when one has left.
        distributed.on_main(partial(save, self.state.step, content))

    def stop_if_asked(self) -> None:
        """After a signal to any rank: save, and raise :class:`Interrupted`."""
        signum = distributed.largest(self.stop.signum or 0)
        if signum:
            self.save(must=True)
            raise Interrupted(signum)
