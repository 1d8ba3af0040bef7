"""The training loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sftn_fast.config import ConfigError, EmaConfig, EngineConfig, OptimConfig
from sftn_fast.engine import distributed
from sftn_fast.engine.averages import RUN
from sftn_fast.engine.best_epoch import BestEpoch, best_row
from sftn_fast.engine.checkpoint import CheckpointStore
from sftn_fast.engine.checkpoint_policy import CheckpointPolicy
from sftn_fast.engine.device import amp_dtype, resolve_device
from sftn_fast.engine.evaluate import evaluate
from sftn_fast.engine.fingerprint import normalise
from sftn_fast.engine.protocols import EpochTask, Splits, Task
from sftn_fast.engine.resume import check_agreement, check_mode, resume_run
from sftn_fast.engine.rng import seed_everything
from sftn_fast.engine.run_log import RunLog
from sftn_fast.engine.schedule import Schedule, peak_lr
from sftn_fast.engine.signals import StopSignals
from sftn_fast.engine.state import TrainState
from sftn_fast.engine.step import build_step
from sftn_fast.engine.threads import fastest_threads
from sftn_fast.loggers import OpenRun, RunInfo, Services
from sftn_fast.utils.progress import ProgressBar

DEFAULT_LR = 0.05  # CRD's for CIFAR-100


@dataclass(frozen=True)
class FitResult:
    """Metrics of a finished run.

    Attributes:
        history: a row for each epoch: ``epoch`` from 1, ``step``, ``lr``, ``train_*``, ``val_*``, ``test_*``, speed;
            with an average of the weights, also ``val_ema_*`` and ``test_ema_*``.
        last: the last epoch's row, which the reference code reports.
        best: the row of the highest ``val_top1``, or ``test_top1`` if nothing is held out, the earliest of equal ones;
            the last row if nothing is evaluated.
        best_weights: the network's state after the best epoch, on the CPU of the main process; None if not kept.
        ema_weights: the network's state with the average of its weights, on the CPU of the main process; None without.
        images_per_second: of training, without evaluations.
        seconds: of training, without evaluations, including the time before a stop.
        data_wait_share: share of that time spent waiting for data, 0 to 1.
        resumed_from: the step that the run was resumed from, or None.
    """

    history: list[dict[str, Any]]
    last: dict[str, Any]
    best: dict[str, Any]
    best_weights: dict[str, Tensor] | None
    ema_weights: dict[str, Tensor] | None
    images_per_second: float
    seconds: float
    data_wait_share: float
    resumed_from: int | None


def fit(
    task: Task,
    data: Splits,
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
    on_best: Callable[[BestEpoch], None] | None = None,
    services: OpenRun | None = None,
    ema: EmaConfig | None = None,
) -> FitResult:
    """Train ``task`` on ``data`` for ``epochs``.

    Args:
        task: an ``nn.Module`` that fits :class:`~sftn_fast.engine.protocols.Task`; it is moved to the engine's device.
            If it has ``begin_epoch``, see :class:`~sftn_fast.engine.protocols.EpochTask`, that is called with each
            epoch that begins or is resumed.
        data: ``train``, ``val`` (or None) and ``test`` loaders, as ``sftn_fast.data.build`` returns them.
        epochs: number of epochs.
        optim: optimizer and schedule.
        engine: device, arithmetic, logging and checkpoints.
        folder: receives ``metrics.jsonl``, ``summary.csv`` and ``checkpoints/``. The caller holds its lock
            (:class:`~sftn_fast.engine.folder.RunFolder`).
        fingerprint: values of JSON types that must agree with a checkpoint's for it to be resumed. The loop adds
            epochs, seed, steps per epoch and ranks.
        seed: seeds the global generators, which dropout uses, at the start.
        lr: learning rate of SGD if ``optim.lr`` is None; 0.05 if that is None too. Both are for
            ``optim.base_batch_size`` if ``optim.lr_scale`` is linear.
        resume: "auto" resumes from the newest valid checkpoint in ``folder``; "never" refuses a folder with
            checkpoints.
        on_epoch: called on the main process after each epoch, counted from 1, before its checkpoint. It is called again
            for an epoch that a stopped run repeats. With ``ema``, the task's model then has the averaged weights.
        on_best: called on the main process after each epoch that is better than all before, before its checkpoint. If
            given, the checkpoints keep the best epoch's network, and so does the result.
        services: receive the metrics on the main process; the caller closes them. None for ``engine.tensorboard``
            alone.
        ema: average of the weights of the task's model, which is evaluated beside them; None for no average.

    Raises:
        ConfigError: device, arithmetic, data, folder or ``resume`` can't be used.
        TypeError: ``task`` is not an ``nn.Module``, or its ``begin_epoch`` returns something else than a bool.
        FingerprintMismatch: the folder's checkpoint belongs to another run; also a ConfigError.
        NonFiniteError: a loss or gradient is not finite.
        CheckpointError: a checkpoint could not be written three times in a row, or none of the existing ones can be
            read.
        Interrupted: after SIGTERM, SIGINT or SIGUSR1, once the checkpoint is saved.

    Over several ranks each calls this with its share of the data. All follow the same decisions, and the main rank
    writes the files.
    """
    check_mode(resume)
    device = resolve_device(engine.device)
    amp_dtype(engine.amp, device)  # refuse it before doing anything else
    rate = peak_lr(optim, DEFAULT_LR if lr is None else lr)
    steps_per_epoch, ranks, main = steps_an_epoch(data, optim), distributed.world_size(), distributed.is_main()

    run = {"epochs": epochs, "seed": seed, "steps_per_epoch": steps_per_epoch, "ranks": ranks}
    identity = normalise({**fingerprint, "run": run})
    everyones = distributed.gather(identity)
    distributed.on_main(partial(check_agreement, everyones))

    seed_everything(seed + distributed.rank())
    schedule = Schedule(optim, rate, steps_per_epoch, epochs)
    train_step = build_step(task, schedule, engine, device, lambda: next(data.train.epoch(0)), ema)
    state = TrainState(train_step.module, train_step)

    store = distributed.on_main(partial(CheckpointStore, folder / "checkpoints", keep=engine.keep_checkpoints))
    resumed_from = resume_run(store, state, identity, resume)
    if on_best is None:
        state.best = None  # it would not be kept up to date
    if engine.threads == "auto" and device.type == "cpu":
        # A resumed run computes with the number it began with, to end with the same bits.
        state.task.train()
        state.threads = state.threads or fastest_threads(train_step, next(data.train.epoch(0)))
        torch.set_num_threads(state.threads)

    bar = ProgressBar(epochs * steps_per_epoch, start=state.step) if main else None
    with StopSignals() as stop, ExitStack() as stack:
        if services is None and engine.tensorboard and main:
            info = RunInfo(folder.parent.name, folder.name, "training", folder, folder)
            services = stack.enter_context(Services(["tensorboard"]).open(info))
        log = stack.enter_context(
            RunLog(
                folder,
                epochs=epochs,
                step=state.step,
                offset=state.log_offset,
                bar=bar,
                services=services,
                quiet=not main,
            )
        )
        log.say(f"  {schedule.describe()}")
        if resumed_from is not None:
            log.say(f"resumed from step {resumed_from}, {state.epoch} of {epochs} epochs done")
        stack.callback(train_step.store_frozen())
        policy = CheckpointPolicy(store, state, log, stop, identity, every=engine.checkpoint_every)
        _train(task, data, state, engine, epochs, log, policy, on_epoch, on_best)
    return _result(state, resumed_from)


def steps_an_epoch(data: Splits, optim: OptimConfig) -> int:
    """Return the number of steps in an epoch of ``data``; raise :class:`ConfigError` if it is 0."""
    if len(data.train) == 0:
        raise ConfigError(f"optim.batch_size is {optim.batch_size}, more than the {data.num_train} training images")
    return len(data.train)


def _train(
    task: Task,
    data: Splits,
    state: TrainState,
    engine: EngineConfig,
    epochs: int,
    log: RunLog,
    policy: CheckpointPolicy,
    on_epoch: Callable[[int], None] | None,
    on_best: Callable[[BestEpoch], None] | None,
) -> None:
    """Train from the position in ``state`` to the end."""
    train_step = state.train_step
    while state.epoch < epochs:
        state.task.train()
        if _changes(task, state.epoch):
            train_step.forget()
        batches = train_step.batches(data.train, state.epoch, state.step_in_epoch)
        for batch in state.stopwatch.batches(batches, ranks=distributed.world_size()):
            # On a GPU this queues the step and returns: nothing is read back.
            terms = train_step(batch, state.step)
            state.meter.add(terms, len(batch.index))
            state.next_step()
            log.progress(state.step, state.epoch)

            # The only wait for the device between two log lines: it reads the means of all terms together.
            if state.step % engine.log_every == 0:
                train_step.check()
                log.train(state.window_record())

            # Handle signals between steps, when the state is consistent.
            policy.after_step()

        # Read the epoch's means before the evaluation, so that its time is not counted as training.
        train_step.check()
        row = state.epoch_record()
        if (state.epoch + 1) % engine.eval_every == 0 or state.epoch + 1 == epochs:
            row |= _evaluate(task.model, data, state)
            if train_step.ema is not None:
                with train_step.ema.applied():
                    row |= _evaluate(task.model, data, state, "_ema")
        state.next_epoch(row)
        log.epoch(state.history)
        if on_epoch is not None:
            with nullcontext() if train_step.ema is None else train_step.ema.applied():
                distributed.on_main(partial(on_epoch, state.epoch))
        if on_best is not None and task.model is not None and best_row(state.history) is row:
            distributed.on_main(partial(_keep_best, task.model, state, on_best))

        # After the evaluation, so that a resumed run does not evaluate twice.
        policy.after_epoch(last=state.epoch == epochs)


def _changes(task: Task, epoch: int) -> bool:
    """Tell ``task`` that ``epoch`` begins; return whether its steps compute differently from now on."""
    if not isinstance(task, EpochTask):
        return False
    changes = task.begin_epoch(epoch)
    # A forgotten return would silently replay an outdated CUDA graph.
    if not isinstance(changes, bool):
        raise TypeError(f"{type(task).__name__}.begin_epoch must return a bool, got {changes!r}")
    return changes


def _evaluate(model: nn.Module | None, data: Splits, state: TrainState, of: str = "") -> dict[str, float]:
    """Return the metrics of the validation split, if there is one, and the test split, as ``val_*`` and ``test_*``.

    ``of`` is put before the star.
    """
    if model is None:
        return {}
    splits = {"val": data.val, "test": data.test}
    return {
        f"{split}{of}_{name}": value
        for split, batches in splits.items()
        if batches is not None
        for name, value in evaluate(model, batches, state.train_step.layout).items()
    }


def _keep_best(model: nn.Module, state: TrainState, on_best: Callable[[BestEpoch], None]) -> None:
    """Keep ``model`` as it is now; the last row of the history tells how good it is."""
    state.best = BestEpoch.of(state.history[-1], model)
    on_best(state.best)


def _result(state: TrainState, resumed_from: int | None) -> FitResult:
    last = state.history[-1]
    best = best_row(state.history) or last
    # A checkpoint of an earlier version has no weights of its best epoch.
    kept = state.best.weights if state.best is not None and state.best.row["epoch"] == best["epoch"] else None
    speed = state.stopwatch.read(RUN)
    rates = speed["images_per_second"], speed["seconds"], speed["data_wait"]
    ema = state.train_step.ema if distributed.is_main() else None  # other ranks have other BatchNorm statistics
    return FitResult(state.history, last, best, kept, None if ema is None else ema.weights(), *rates, resumed_from)
