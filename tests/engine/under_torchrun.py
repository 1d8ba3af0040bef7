"""A run of the stub task, as a program for torchrun: ``-m engine.under_torchrun FOLDER [die | endless]``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from sftn_fast.engine import Interrupted, process_group
from sftn_fast.utils import launcher

from .ranks import SharedData, SharedTrainLoader
from .stubs import Batch, make_task, run_fit


class Dying(SharedTrainLoader):
    """Loader that kills rank 1 when it requests its fourteenth batch, in the first start of the processes."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for step, batch in enumerate(super().epoch(epoch, start), start=1 + start + epoch * len(self)):
            if step == 14 and launcher.rank() == 1 and launcher.restarts() == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


def train(folder: Path, mode: str = "") -> None:
    """Train forty steps in two epochs with a checkpoint every four; or for ever."""
    data = SharedData(train_size=160)
    if mode == "die":
        data.train = Dying(data.train.images, data.train.target)
    endless = {"epochs": 10**6, "engine": {"log_every": 1, "checkpoint_every": 10**6, "eval_every": 10**6}}
    usual = {"engine": {"checkpoint_every": 4}}
    run_fit(folder, task=make_task(), data=data, **(endless if mode == "endless" else usual))


def main(folder: str, mode: str = "") -> int:
    torch.set_num_threads(1)
    with process_group("cpu"):
        try:
            train(Path(folder), mode)
        except Interrupted as stop:
            # In one write: two ranks share the pipe.
            sys.stdout.write(f"rank {launcher.rank()} stopped by {stop.signum}\n")
            sys.stdout.flush()
            return 128 + stop.signum
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
