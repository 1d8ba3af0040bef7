"""The best epoch: which one it is, and that its network is kept through everything that happens to a run."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sftn_fast.engine import CheckpointStore, Interrupted, distributed, loop
from sftn_fast.engine.best_epoch import BestEpoch, best_row

from .ranks import SharedData, on_ranks
from .stubs import Data, StoppingLoader, make_task, run_fit, without_timing

NAN = math.nan
ACCURACIES = (60.0, 4.0, 99.0, 99.0, 50.0)
EPOCHS, BEST, STEPS = len(ACCURACIES), 3, 10


@pytest.mark.parametrize(
    ("accuracies", "epoch"),
    [
        ([{"test_top1": 1.0}, {"test_top1": 3.0}, {"test_top1": 2.0}], 2),
        ([{"test_top1": 3.0}, {"test_top1": 3.0}, {"test_top1": 3.0}], 1),
        ([{"test_top1": NAN}, {"test_top1": 0.0}, {"test_top1": NAN}], 2),
        ([{"test_top1": math.inf}, {"test_top1": 5.0}], 2),
        ([{}, {"test_top1": 1.0}, {}], 2),
        ([{"val_top1": 1.0, "test_top1": 9.0}, {"val_top1": 2.0, "test_top1": 8.0}], 2),
        ([{"val_top1": NAN, "test_top1": 9.0}, {"val_top1": 0.0, "test_top1": 8.0}], 2),
        ([{"val_top1": NAN, "test_top1": 9.0}], None),
        ([{"test_top1": NAN}], None),
        ([{}], None),
        ([], None),
    ],
)
def test_the_best_row(accuracies: list[dict[str, float]], epoch: int | None) -> None:
    found = best_row([{"epoch": number, **row} for number, row in enumerate(accuracies, start=1)])
    assert (found and found["epoch"]) == epoch


def accuracy_of_the_epoch(model: nn.Module, *_: Any) -> dict[str, float]:
    """A figure that goes up and down with the steps that the network has seen."""
    return {"top1": ACCURACIES[int(model[1].num_batches_tracked) // STEPS - 1], "ce": 1.0}


@pytest.fixture
def moody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "evaluate", accuracy_of_the_epoch)


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def keep_all(task: nn.Module, epochs: int, folder: Path, **options: Any) -> tuple[Any, list[BestEpoch]]:
    seen: list[BestEpoch] = []
    result = run_fit(folder, task=task, epochs=epochs, on_best=seen.append, **options)
    return result, seen


def test_the_network_is_that_of_the_best_epoch(tmp_path: Path, moody: None) -> None:
    task, after = make_task(), {}

    def remember(epoch: int) -> None:
        after[epoch] = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}

    result, seen = keep_all(task, EPOCHS, tmp_path, on_epoch=remember)
    assert result.best["epoch"] == BEST and same(result.best_weights, after[BEST])
    assert not same(result.best_weights, task.model.state_dict())
    assert [best.row["epoch"] for best in seen] == [1, BEST]
    assert all(same(best.weights, after[best.row["epoch"]]) for best in seen)


def test_only_evaluated_epochs_can_be_the_best(tmp_path: Path, moody: None) -> None:
    result, seen = keep_all(make_task(), EPOCHS, tmp_path, engine={"eval_every": 2})
    assert [best.row["epoch"] for best in seen] == [2, 4] and result.best["epoch"] == 4


def test_keeping_it_changes_nothing_else(tmp_path: Path) -> None:
    plain, keeping = make_task(), make_task()
    without = run_fit(tmp_path / "without", task=plain)
    result, _ = keep_all(keeping, 2, tmp_path / "with")
    assert without.best_weights is None and result.best_weights is not None
    assert same(plain.state_dict(), keeping.state_dict())
    assert [*map(without_timing, without.history)] == [*map(without_timing, result.history)]


@pytest.mark.parametrize("stop_at", [3, 21, 35])
def test_a_resumed_run_has_the_same_best_epoch(tmp_path: Path, moody: None, stop_at: int) -> None:
    whole, _ = keep_all(make_task(), EPOCHS, tmp_path / "whole", data=Data(with_val=True))
    data = Data(with_val=True)
    data.train = StoppingLoader(data.train, stop_at, signal.SIGTERM)
    with pytest.raises(Interrupted):
        keep_all(make_task(), EPOCHS, tmp_path / "broken", data=data)
    again, _ = keep_all(make_task(seed=99), EPOCHS, tmp_path / "broken", data=Data(with_val=True))
    assert again.resumed_from == stop_at
    assert again.best["epoch"] == whole.best["epoch"] == BEST and same(again.best_weights, whole.best_weights)


def newest(folder: Path) -> tuple[CheckpointStore, int, dict[str, Any]]:
    store = CheckpointStore(folder / "checkpoints")
    found = store.load_newest()
    assert found is not None
    return store, *found


def test_a_finished_run_still_has_it(tmp_path: Path, moody: None) -> None:
    whole, _ = keep_all(make_task(), EPOCHS, tmp_path)
    again, seen = keep_all(make_task(seed=99), EPOCHS, tmp_path)
    assert again.resumed_from == STEPS * EPOCHS and seen == [] and same(again.best_weights, whole.best_weights)


def test_a_checkpoint_of_an_earlier_version_has_none(tmp_path: Path, moody: None) -> None:
    keep_all(make_task(), EPOCHS, tmp_path)
    store, step, state = newest(tmp_path)
    del state["best"]
    store.save(step, state)
    again, _ = keep_all(make_task(), EPOCHS, tmp_path)
    assert again.best["epoch"] == BEST and again.best_weights is None


FAULTS = {
    "of another epoch": lambda best: best | {"epoch": EPOCHS},
    "of no epoch": lambda best: {"weights": best["weights"]},
    "no weights": lambda best: best | {"weights": None},
    "a weight less": lambda best: best | {"weights": dict(list(best["weights"].items())[1:])},
    "another shape": lambda best: best | {"weights": best["weights"] | {"0.weight": torch.zeros(1)}},
    "a text": lambda best: "best",
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_best_epoch_of_wrong_content_is_refused(tmp_path: Path, moody: None, fault: Any, caplog) -> None:
    whole, _ = keep_all(make_task(), EPOCHS, tmp_path)
    store, step, state = newest(tmp_path)
    store.save(step, state | {"best": fault(state["best"])})
    again, _ = keep_all(make_task(), EPOCHS, tmp_path)
    assert f"step_{step:09d} is refused" in caplog.text and again.resumed_from == step - STEPS
    assert same(again.best_weights, whole.best_weights)


def keep_on_rank(folder: Path) -> tuple[int, dict[str, Tensor] | None]:
    seen: list[BestEpoch] = []
    data = SharedData(train_size=80)
    result = run_fit(folder, task=make_task(), data=data, on_best=seen.append)
    again = run_fit(folder, task=make_task(), data=data, on_best=seen.append)
    ours, theirs = result.best_weights, again.best_weights
    assert (ours is None) == (theirs is None) == (not distributed.is_main())
    assert ours is None or same(ours, theirs)
    return len(seen), ours


def test_several_ranks_write_it_once(tmp_path: Path) -> None:
    (count, weights), (others, nothing) = on_ranks(2, keep_on_rank, tmp_path)
    assert count >= 1 and weights is not None
    assert others == 0 and nothing is None
