"""A stopped run resumes as if it had not stopped."""

from __future__ import annotations

import copy
import csv
import json
import random
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sftn_fast.config import ConfigError
from sftn_fast.engine import CheckpointError, CheckpointStore, FingerprintMismatch, FolderError, Interrupted

from .faults import flip_bit, largest_file
from .stubs import Batch, Data, StoppingLoader, TrainLoader, make_task, run_fit, without_timing

CPU_AMP = ("fp32", "bf16", "fp16")


class Crash(Exception):
    pass


def stopping(at: int, how: int | type[Exception], **options) -> Data:
    data = Data(**options)
    data.train = StoppingLoader(data.train, at, how)
    return data


def lines_of(folder: Path) -> list[dict]:
    return [without_timing(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def rng_of() -> tuple:
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002


def assert_identical(a: torch.nn.Module, b: torch.nn.Module) -> None:
    mine, theirs = a.state_dict(), b.state_dict()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


def optimizer_of(folder: Path) -> list[torch.Tensor]:
    newest = max((folder / "checkpoints").iterdir())
    state = torch.load(newest / "state.pt", weights_only=True)["optimizer"]["state"]
    return [entry["momentum_buffer"] for entry in state.values()]


@pytest.mark.parametrize("amp", CPU_AMP)
@pytest.mark.parametrize("stop_at", [1, 13, 20, 21, 39, 40])
def test_stopped_and_resumed_equals_unbroken_bit_for_bit(tmp_path, amp, stop_at):
    """Train forty steps in two epochs, with dropout, BatchNorm, a validation split, a warm-up and clipping."""
    options = {
        "engine": {"amp": amp},
        "optim": {"warmup_epochs": 0.5, "clip_grad": 1.0, "schedule": "cosine"},
    }
    whole, unbroken = make_task(), tmp_path / "unbroken"
    expected = run_fit(unbroken, task=whole, data=Data(train_size=160, with_val=True), **options)
    expected_rng = rng_of()

    broken = tmp_path / "broken"
    with pytest.raises(Interrupted):
        run_fit(broken, data=stopping(stop_at, signal.SIGTERM, train_size=160, with_val=True), **options)
    task = make_task(seed=99)  # resuming replaces these weights
    torch.rand(7)
    result = run_fit(broken, task=task, data=Data(train_size=160, with_val=True), **options)

    assert result.resumed_from == stop_at
    assert_identical(task, whole)
    assert all(torch.equal(a, b) for a, b in zip(optimizer_of(broken), optimizer_of(unbroken), strict=True))
    assert rng_of() == expected_rng
    assert lines_of(broken) == lines_of(unbroken)
    assert [*map(without_timing, result.history)] == [*map(without_timing, expected.history)]
    assert without_timing(result.best) == without_timing(expected.best)


@pytest.mark.parametrize(
    ("crash_at", "every", "resumed_from"),
    [(8, 4, 4), (12, 10, 10), (11, 5, 10), (12, None, 10), (3, 4, None), (3, None, None), (19, 6, 18)],
)
def test_after_a_crash_the_log_has_each_line_once(tmp_path, crash_at, every, resumed_from):
    options = {"engine": {"checkpoint_every": every, "log_every": 2}}
    whole = make_task()
    run_fit(tmp_path / "unbroken", task=whole, **options)

    broken = tmp_path / "broken"
    with pytest.raises(Crash):
        run_fit(broken, data=stopping(crash_at, Crash), **options)
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": ')  # a line that the crash cut short
    task = make_task(seed=99) if resumed_from else make_task()
    result = run_fit(broken, task=task, **options)

    assert result.resumed_from == resumed_from
    assert_identical(task, whole)
    assert lines_of(broken) == lines_of(tmp_path / "unbroken")
    rows = list(csv.DictReader((broken / "summary.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]


def test_a_refused_checkpoint_costs_the_steps_since_the_one_before(tmp_path, caplog):
    options = {"engine": {"checkpoint_every": 4}}
    whole = make_task()
    run_fit(tmp_path / "unbroken", task=whole, **options)

    broken = tmp_path / "broken"
    with pytest.raises(Crash):
        run_fit(broken, data=stopping(15, Crash), **options)
    flip_bit(broken / "checkpoints" / "step_000000012" / "state.pt")
    task = make_task()
    result = run_fit(broken, task=task, **options)
    assert result.resumed_from == 8
    assert "step_000000012 is refused" in caplog.text
    assert_identical(task, whole)
    assert lines_of(broken) == lines_of(tmp_path / "unbroken")


def test_a_finished_run_is_not_trained_again(tmp_path):
    task = make_task()
    first = run_fit(tmp_path, task=task)
    data, again = Data(), make_task(seed=99)
    second = run_fit(tmp_path, task=again, data=data)
    assert data.train.asked == []
    assert second.history == first.history and second.resumed_from == 20
    assert second.images_per_second == first.images_per_second
    assert_identical(task, again)


FINGERPRINT = {"data": {"name": "digits", "train": "5f1c"}, "optim": {"milestones": (1, 2), "batch_size": 8}}


def test_another_configuration_is_refused_by_its_fields(tmp_path):
    run_fit(tmp_path, fingerprint=FINGERPRINT)
    run_fit(tmp_path, fingerprint=copy.deepcopy(FINGERPRINT))
    other = {"data": {"name": "digits", "train": "77aa", "crop": 4}, "optim": {"milestones": [1, 2], "batch_size": 16}}
    before = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(FingerprintMismatch) as caught:
        run_fit(tmp_path, fingerprint=other, seed=4)
    assert caught.value.differences == [
        ("data.crop", "(absent)", 4), ("data.train", "5f1c", "77aa"), ("optim.batch_size", 8, 16), ("run.seed", 3, 4),
    ]  # fmt: skip
    assert "optim.batch_size: 8 -> 16" in str(caught.value) and "\n" not in str(caught.value)
    assert (tmp_path / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("other", [{"epochs": 3}, {"seed": 4}, {"data": Data(train_size=160)}, {"fingerprint": {}}])
def test_the_loop_adds_what_a_position_depends_on(tmp_path, other):
    run_fit(tmp_path)
    with pytest.raises(FingerprintMismatch):
        run_fit(tmp_path, **other)


@pytest.mark.parametrize("mode", ["force", "must"])
def test_another_mode_is_refused_by_those_there_are(tmp_path, mode):
    with pytest.raises(ConfigError, match=f"resume must be auto or never, got '{mode}'"):
        run_fit(tmp_path, resume=mode)
    assert not list(tmp_path.iterdir())


def test_never_refuses_a_folder_that_holds_checkpoints(tmp_path):
    run_fit(tmp_path, resume="never")
    with pytest.raises(FolderError, match="resume is 'never'"):
        run_fit(tmp_path, resume="never")


class FillingDisk(TrainLoader):
    """Loader with a disk that is full from step ``full`` to step ``empty``.

    It is not a context manager: a run that fails leaves this generator suspended, and it may be closed much later.
    """

    def __init__(self, loader: TrainLoader, full: int, empty: int):
        super().__init__(loader.images, loader.target)
        self.full, self.empty = full, empty

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        for step, batch in enumerate(super().epoch(epoch, start), start=1 + start + epoch * len(self)):
            if step == self.full:
                resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, hard))
            if step == self.empty:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            yield batch


@pytest.mark.parametrize(("empty", "kept"), [(6, [8, 10]), (9, [10])])
def test_a_full_disk_is_a_warning_and_training_goes_on(tmp_path, caplog, empty, kept):
    data, whole, task = Data(), make_task(), make_task()
    data.train = FillingDisk(data.train, full=3, empty=empty)
    run_fit(tmp_path / "unbroken", task=whole, epochs=1)
    run_fit(tmp_path / "full", task=task, data=data, epochs=1, engine={"checkpoint_every": 4, "keep_checkpoints": 2})
    assert caplog.text.count("training continues") == (1 if empty == 6 else 2)
    assert [int(path.name[5:]) for path in sorted((tmp_path / "full" / "checkpoints").iterdir())] == kept
    assert_identical(task, whole)


def test_a_disk_that_stays_full_ends_the_run_with_the_last_good_checkpoint(tmp_path):
    data = Data()
    data.train = FillingDisk(data.train, full=3, empty=10)
    with pytest.raises(CheckpointError, match="3 failures in a row"), largest_file(1_000_000):
        run_fit(tmp_path, data=data, epochs=1, engine={"checkpoint_every": 2})
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000000002"]
    assert run_fit(tmp_path, epochs=1).resumed_from == 2


def test_a_signal_on_a_full_disk_does_not_claim_a_good_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="can't be written"), largest_file(8_000):
        run_fit(tmp_path, data=stopping(3, signal.SIGINT))


def without(*path: str):
    def change(state: dict) -> None:
        *inner, last = path
        for key in inner:
            state = state[key]
        del state[last]

    return change


def with_value(value, *path):
    def change(state: dict) -> None:
        *inner, last = path
        for key in inner:
            state = state[key]
        state[last] = value(state[last]) if callable(value) else value

    return change


WRONG = {
    **{f"no {part}": without(part) for part in ("task", "optimizer", "rng", "meter", "position", "history")},
    **{f"no {part}": without(part) for part in ("fingerprint", "scaler", "stopwatch", "log_offsets")},
    **{
        f"{part} of another type": with_value("text", part)
        for part in ("fingerprint", "task", "optimizer", "scaler", "rng", "meter", "stopwatch", "position", "history")
    },
    "a weight less": without("task", "model.0.weight"),
    "a weight more": with_value(torch.zeros(1), "task", "model.9.weight"),
    "a weight of another shape": with_value(lambda weight: weight[:1], "task", "model.0.weight"),
    "a weight of another dtype": with_value(lambda weight: weight.double(), "task", "model.0.weight"),
    "a weight that is no tensor": with_value(5, "task", "model.0.weight"),
    "momentum of another shape": with_value(torch.zeros(1), "optimizer", "state", 0, "momentum_buffer"),
    "momentum of no parameter": with_value({"momentum_buffer": torch.zeros(1)}, "optimizer", "state", 99),
    "parameters less": with_value(lambda groups: [], "optimizer", "param_groups"),
    "no numbers where it stood": with_value(["one", None, 2.5], "position"),
    "an epoch that has no history": with_value([7, 0, 70], "position"),
    "a history of texts": with_value(["a"], "history"),
    "random numbers of too few ranks": with_value(lambda ranks: [], "rng"),
    "no state of a generator": with_value(torch.zeros(3, dtype=torch.uint8), "rng", 0, "torch"),
    "a number as a stopwatch": with_value(3, "stopwatch", "run"),
}


def change_newest(folder: Path, change) -> Path:
    """Change the newest checkpoint and give it a valid checksum; return its folder."""
    newest = max((folder / "checkpoints").glob("step_*"))
    state = torch.load(newest / "state.pt", weights_only=True)
    change(state)
    store = CheckpointStore(folder / "elsewhere")
    path = store.save(1, state)
    for name in ("state.pt", "manifest.json"):
        (path / name).replace(newest / name)
    return newest


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two epochs") / "run"
    run_fit(folder, engine={"threads": 1})
    return folder


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_valid_checkpoint_of_wrong_content_is_refused_by_name_for_the_one_before(
    tmp_path, two_epochs, change, caplog, monkeypatch
):
    folder = Path(shutil.copytree(two_epochs, tmp_path / "run"))
    before = torch.load(min((folder / "checkpoints").glob("step_*")) / "state.pt", weights_only=True)["task"]
    newest = change_newest(folder, change)
    task = make_task()
    monkeypatch.setattr("sftn_fast.engine.loop._train", lambda *_: None)  # only the position matters
    assert run_fit(folder, task=task, engine={"threads": 1}).resumed_from == 10
    assert f"{newest} is refused" in caplog.text
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())


def test_no_checkpoint_of_right_content_is_one_line(tmp_path, two_epochs):
    folder = Path(shutil.copytree(two_epochs, tmp_path / "run"))
    newest = change_newest(folder, without("task"))
    for path in (folder / "checkpoints").glob("step_*"):
        if path != newest:
            shutil.rmtree(path)
    with pytest.raises(CheckpointError, match=r"no valid checkpoint is left in .*remove .* to train it from the start"):
        run_fit(folder, engine={"threads": 1})


def test_a_copy_beside_the_checkpoints_is_left_alone(tmp_path, two_epochs, caplog):
    folder = Path(shutil.copytree(two_epochs, tmp_path / "run"))
    copies = ("step_backup", "step_000000020.bak", "step_20", "step_99999999a", "step_")
    for name in copies:
        shutil.copytree(folder / "checkpoints" / "step_000000020", folder / "checkpoints" / name)
    assert run_fit(folder, engine={"threads": 1}).resumed_from == 20
    assert all(name in caplog.text for name in copies)
    store = CheckpointStore(folder / "checkpoints")
    assert store.steps() == [20, 10]
    store.save(30, {"step": 30})
    assert all((folder / "checkpoints" / name).is_dir() for name in copies)


def test_a_checkpoint_of_a_version_that_kept_two_lengths_of_the_log_is_resumed(tmp_path, two_epochs):
    """Earlier versions also kept the length at the epoch's start."""
    folder = Path(shutil.copytree(two_epochs, tmp_path / "run"))
    logged = lines_of(folder)
    change_newest(folder, with_value(lambda lengths: [*lengths, 0], "log_offsets"))
    assert run_fit(folder, engine={"threads": 1}).resumed_from == 20
    assert lines_of(folder) == logged
