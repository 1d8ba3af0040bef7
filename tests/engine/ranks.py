"""Several real processes for a test: a function on each, or a program under torchrun."""

from __future__ import annotations

import os
import pickle
import tempfile
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sftn_fast.engine import distributed

from .faults import processes
from .stubs import BATCH, CLASSES, TEST, Batch, Data, EvalLoader, TinyTask, TrainLoader, split

TESTS = Path(__file__).parents[1]


def on_ranks(count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Return the results of ``function(*arguments)`` on ``count`` processes of one gloo group, by rank.

    Arguments and results must be picklable. A failure in any process is an AssertionError here.
    """
    with tempfile.TemporaryDirectory() as folder:
        pipes = [processes.Pipe(duplex=False) for _ in range(count)]
        children = [
            processes.Process(target=_child, args=(rank, count, Path(folder) / "store", there, function, arguments))
            for rank, (_, there) in enumerate(pipes)
        ]
        for child in children:
            child.start()
        for _, there in pipes:
            there.close()  # so that a child that dies is an EOFError here
        try:
            reports = [_receive(here) for here, _ in pipes]
        finally:
            for child in children:
                child.join(timeout=30)
                child.kill()
    failures = [f"rank {rank}:\n{report[1]}" for rank, report in enumerate(reports) if not report[0]]
    assert not failures, "\n".join(failures)
    return [report[1] for report in reports]


def _receive(here: Connection) -> tuple[bool, Any]:
    try:
        return pickle.loads(here.recv_bytes())
    except EOFError:
        return False, "died"


def _child(
    rank: int, count: int, store: Path, report: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count)
    try:
        # As bytes: torch would fetch tensors later, from a process that has ended.
        report.send_bytes(pickle.dumps((True, function(*arguments))))
        dist.barrier()
    except Exception:
        report.send_bytes(pickle.dumps((False, traceback.format_exc())))
    dist.destroy_process_group()


def torchrun(count: int, *program: str, restarts: int = 0) -> list[str]:
    """Return torchrun's options to run ``program``, such as ``-m package.module``, in ``count`` processes."""
    return ["--standalone", f"--nproc_per_node={count}", f"--max-restarts={restarts}", *program]


TORCHRUN = "torch.distributed.run"


def environment() -> dict[str, str]:
    """Return what ranks need in their environment to import the tests' own modules."""
    return {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}


class SharedTrainLoader(TrainLoader):
    """Loader of this rank's contiguous share of each of the stub's batches."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        share = self.batch_size // distributed.world_size()
        rows = slice(distributed.rank() * share, (distributed.rank() + 1) * share)
        for batch in super().epoch(epoch, start):
            yield Batch(batch.images[rows], batch.target[rows], batch.index[rows])


class SharedData(Data):
    """The stub's data divided among the ranks. The shares of the 23 test images differ by one."""

    def __init__(self, *, train_size: int, batch_size: int = BATCH):
        super().__init__(train_size=train_size)
        self.train = SharedTrainLoader(*split(train_size, 1), batch_size)
        rank, ranks = distributed.rank(), distributed.world_size()
        rows = slice(TEST * rank // ranks, TEST * (rank + 1) // ranks)
        images, target = split(TEST, 3)
        self.test = EvalLoader(images[rows], target[rows])


class FrozenNormTask(TinyTask):
    """Task in which a sample's gradient does not depend on the others of its rank or on random numbers."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__(dropout=0.0, classes=classes)
        self.epochs_begun: list[int] = []

    def train(self, mode: bool = True) -> FrozenNormTask:
        super().train(mode)
        self.model[1].eval()
        return self

    def begin_epoch(self, epoch: int) -> bool:
        self.epochs_begun.append(epoch)
        return False
