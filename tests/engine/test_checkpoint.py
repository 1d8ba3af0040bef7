from __future__ import annotations

import hashlib
import json
import pickle
import random
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from sftn_fast.engine import CheckpointError, CheckpointStore, read_checkpoint

from .faults import flip_bit, largest_file, mount_disk, processes, truncate


def state_of(step: int, size: int = 20_000) -> dict:
    return {"step": step, "weights": torch.full((size,), float(step)), "rows": [{"a": 1.5, "b": None}]}


def save_all(folder: Path, steps: list[int], keep: int = 2) -> CheckpointStore:
    store = CheckpointStore(folder, keep=keep)
    for step in steps:
        store.save(step, state_of(step))
    return store


def test_what_was_saved_comes_back(tmp_path):
    step, state = save_all(tmp_path, [3, 10]).load_newest()
    assert step == 10
    assert state["step"] == 10 and state["rows"] == [{"a": 1.5, "b": None}]
    assert torch.equal(state["weights"], torch.full((20_000,), 10.0))


@pytest.mark.parametrize(
    ("saved", "keep", "left"),
    [([1, 2, 3, 4], 2, [4, 3]), ([1, 2, 3, 4], 3, [4, 3, 2]), ([7, 7], 2, [7]), ([5, 9, 6], 2, [6, 5]), ([], 2, [])],
)
def test_the_newest_are_kept(tmp_path, saved, keep, left):
    store = save_all(tmp_path, saved, keep)
    assert store.steps() == left
    assert len(list(tmp_path.iterdir())) == len(left)  # nothing else is there
    assert all(read_checkpoint(store.path(step))["step"] == step for step in left)


def no_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def garbled_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("{")


def list_as_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("[]")


def no_state(path: Path) -> None:
    (path / "state.pt").unlink()


DAMAGE = {
    "bit of the state": lambda path: flip_bit(path / "state.pt"),
    "half the state": lambda path: truncate(path / "state.pt"),
    "bit of the manifest": lambda path: flip_bit(path / "manifest.json"),
    "no manifest": no_manifest,
    "half the manifest": garbled_manifest,
    "another manifest": list_as_manifest,
    "no state": no_state,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_refused_by_name_for_the_one_before(tmp_path, damage, caplog):
    store = save_all(tmp_path, [1, 2])
    damage(store.path(2))
    step, state = store.load_newest()
    assert step == 1 and state["step"] == 1
    assert "step_000000002 is refused" in caplog.text


def test_the_one_after_a_refused_one_replaces_it(tmp_path):
    store = save_all(tmp_path, [1, 2, 8])
    flip_bit(store.path(8) / "state.pt")
    assert store.load_newest()[0] == 2
    store.save(5, state_of(5))
    assert store.steps() == [5, 2]


def test_no_valid_checkpoint_is_an_error_and_none_at_all_is_not(tmp_path):
    assert CheckpointStore(tmp_path).load_newest() is None
    store = save_all(tmp_path, [1, 2])
    for step in store.steps():
        truncate(store.path(step) / "state.pt")
    with pytest.raises(CheckpointError, match="no valid checkpoint is left"):
        store.load_newest()


class Payload:
    def __reduce__(self):
        return exec, ("raise SystemExit('the payload ran')",)


def test_a_pickle_with_a_valid_checksum_is_refused_and_never_runs(tmp_path):
    store = save_all(tmp_path, [1])
    content = pickle.dumps(Payload(), protocol=2)
    (store.path(1) / "state.pt").write_bytes(content)
    manifest = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (store.path(1) / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="refused"):
        read_checkpoint(store.path(1))


def test_a_full_disk_leaves_nothing_behind_and_the_older_intact(tmp_path):
    store = save_all(tmp_path, [1, 2])
    with largest_file(10_000), pytest.raises(CheckpointError, match=r"step_000000003 can't be written: File too large"):
        store.save(3, state_of(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000000001", "step_000000002"]
    assert all(read_checkpoint(store.path(step))["step"] == step for step in (1, 2))


def fill_a_disk(folder: Path, report: Connection) -> None:
    torch.set_num_threads(1)
    try:
        mount_disk(folder, kilobytes=400)
    except OSError as error:
        report.send(str(error))
        return
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(160_000))
    store = save_all(folder / "checkpoints", [1, 2])  # 80 kB each
    told: list[object] = []
    try:
        store.save(3, state_of(3))
    except CheckpointError as error:
        told = [str(error), sorted(path.name for path in store.folder.iterdir()), store.load_newest()[0]]
    ballast.unlink()
    store.save(4, state_of(4))
    report.send([*told, store.steps()])


def test_a_disk_that_is_really_full(tmp_path):
    """Do the same on a file system that has no space left."""
    folder = tmp_path / "folder"
    folder.mkdir()
    here, there = processes.Pipe(duplex=False)
    child = processes.Process(target=fill_a_disk, args=(folder, there))
    child.start()
    there.close()
    told = here.recv()
    child.join()
    if isinstance(told, str):
        pytest.skip(f"this machine lets nobody mount a small disk ({told})")
    message, left, newest, then = told
    assert message.endswith("step_000000003 can't be written: No space left on device")
    assert left == ["step_000000001", "step_000000002"] and newest == 2
    assert then == [4, 2]


def test_the_third_failure_in_a_row_is_the_last(tmp_path, caplog):
    store = save_all(tmp_path, [1])
    with largest_file(10_000):
        assert not store.try_save(2, state_of(2))
        assert not store.try_save(3, state_of(3))
    assert caplog.text.count("training continues") == 2
    assert store.try_save(4, state_of(4))  # a success resets the count
    with largest_file(10_000):
        assert not store.try_save(5, state_of(5))
        assert not store.try_save(6, state_of(6))
        with pytest.raises(CheckpointError, match="3 failures in a row"):
            store.try_save(7, state_of(7))
    assert store.load_newest()[0] == 4


def save_for_ever(folder: Path, first: int, report: Connection) -> None:
    torch.set_num_threads(1)
    store = CheckpointStore(folder)
    for step in range(first, first + 1_000_000):
        store.save(step, state_of(step, size=300_000))
        report.send(step)


def test_kill_9_at_any_moment_of_a_save_leaves_a_valid_checkpoint(tmp_path):
    chance = random.Random(0)
    first, killed_in_a_save = 1, 0
    for _ in range(12):
        here, there = processes.Pipe(duplex=False)
        child = processes.Process(target=save_for_ever, args=(tmp_path, first, there))
        child.start()
        there.close()
        reported = [here.recv() for _ in range(2)][-1]
        child.join(timeout=chance.uniform(0, 0.02))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        while here.poll():
            try:
                reported = here.recv()
            except EOFError:
                break
        killed_in_a_save += any(path.name.startswith(".tmp_") for path in tmp_path.iterdir())

        store = CheckpointStore(tmp_path)
        step, state = store.load_newest()
        assert step >= reported  # a save that returned is there
        assert torch.equal(state["weights"], torch.full((300_000,), float(step)))
        assert len(store.steps()) >= 2
        assert not any(path.name.startswith(".tmp_") for path in tmp_path.iterdir())
        first = step + 1
    assert killed_in_a_save > 0
