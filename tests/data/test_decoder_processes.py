"""What the processes that decode do when the one they work for is on its way out."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

from sftn_fast.data import decoder_processes


def answer(scratch: str, questions: Connection) -> None:
    decoder_processes.exit_with_parent(scratch)
    while questions.recv():
        questions.send(Path(scratch).is_dir())


def test_the_folder_stays_while_the_parent_closes_its_pipes(tmp_path):
    """multiprocessing closes the pipe that stands for the parent first, and then removes the folder itself."""
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    child = context.Process(target=answer, args=(str(scratch), theirs))
    child.start()
    theirs.close()
    ours.send(True)
    assert ours.recv()
    child._popen.finalizer()
    for _ in range(200):
        ours.send(True)
        assert ours.recv()
    ours.send(False)
    multiprocessing.process._children.discard(child)  # or Python would wait for it by the pipe that is closed
