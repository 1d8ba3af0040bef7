"""One run on several ranks: the same weights and steps as on one rank, and failures that all ranks share."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sftn_fast import data, distillers, models
from sftn_fast.config import ConfigError, DataConfig
from sftn_fast.engine import FingerprintMismatch, Interrupted, NonFiniteError, PeerError, distributed, parallel
from sftn_fast.tasks import DistillTask

from .faults import processes
from .ranks import FrozenNormTask, SharedData, SharedTrainLoader, on_ranks
from .stubs import CLASSES, SIDE, Batch, TinyTask, make_task, run_fit, without_timing

BATCH = 12  # divides among 1, 2, 3 and 4 ranks


def train_frozen(folder: Path, optim: dict[str, Any]) -> tuple[dict[str, Tensor], list[dict], list[int]]:
    torch.manual_seed(distributed.rank())  # the main rank's weights replace the others'
    task = FrozenNormTask()
    optim = {"batch_size": BATCH, "clip_grad": 0.5, **optim}
    result = run_fit(folder, task=task, data=SharedData(train_size=84, batch_size=BATCH), optim=optim)
    return task.state_dict(), [*map(without_timing, result.history)], task.epochs_begun


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], list[dict], list[int]]:
    return train_frozen(tmp_path_factory.mktemp("alone"), {})


@pytest.mark.parametrize(
    ("ranks", "optim"),
    [
        (2, {}),
        (3, {}),
        (2, {"accumulate": 3}),
        (1, {"accumulate": 2}),
        (1, {"accumulate": 5, "batch_size": 15}),  # the loader's twelve in parts of 3, 3, 2, 2, 2
    ],
)
def test_any_division_of_a_step_trains_to_the_same_weights(tmp_path, alone, ranks, optim):
    weights, history, begun = alone
    runs = on_ranks(ranks, train_frozen, tmp_path / "run", optim) if ranks > 1 else [train_frozen(tmp_path, optim)]
    for theirs, their_history, their_begun in runs:
        assert list(theirs) == list(weights)
        for name, tensor in theirs.items():
            torch.testing.assert_close(tensor, weights[name], rtol=1e-5, atol=1e-6)
        for row, expected in zip(their_history, history, strict=True):
            assert row == pytest.approx(expected, rel=1e-4)
        assert their_begun == begun == [0, 1]
    assert all(torch.equal(run[0][name], runs[0][0][name]) for run in runs for name in weights)


def train_on_mixed_images(folder: Path, options: dict[str, float]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    task, config = FrozenNormTask(classes=10), DataConfig("fake", train_size=48, image_size=8, **options)
    share = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    images = data.build(config, seed=0, batch_size=BATCH, device="cpu", **share)
    run_fit(folder, task=task, data=images.mixed(), optim={"batch_size": BATCH})
    return task.state_dict()


def test_two_ranks_train_on_the_mixed_images_of_one(tmp_path):
    mixing = {"mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1}
    alone, plain = (train_on_mixed_images(tmp_path / f"{len(o)}", o) for o in (mixing, {}))
    for weights in on_ranks(2, train_on_mixed_images, tmp_path / "run", mixing):
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, alone[name], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(alone["model.0.weight"], plain["model.0.weight"], rtol=1e-3)


class Signalled(SharedTrainLoader):
    """Loader that sends SIGTERM to rank ``rank`` when step ``at`` of the run is requested."""

    def __init__(self, loader: SharedTrainLoader, at: int, rank: int):
        super().__init__(loader.images, loader.target, loader.batch_size)
        self.at, self.rank = at, rank

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for step, batch in enumerate(super().epoch(epoch, start), start=1 + start + epoch * len(self)):
            if step == self.at and distributed.rank() == self.rank:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch


def lines_of(folder: Path) -> list[dict]:
    return [without_timing(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def shared_data(count: int, side: int) -> SharedData:
    data = SharedData(train_size=count)
    for loader in (data.train, data.test):
        loader.images = nn.functional.interpolate(loader.images, side)
    return data


def stop_and_resume(
    folder: Path, make: Callable[..., nn.Module] = make_task, count: int = 160, side: int = SIDE
) -> dict[str, Any]:
    """Train on ``count`` images for two epochs, once unbroken and once with a stop after the thirteenth step."""
    data, whole, task = shared_data(count, side), make(), make(seed=99)
    run_fit(folder / "unbroken", task=whole, data=data)
    rng = torch.get_rng_state()

    broken = shared_data(count, side)
    broken.train = Signalled(broken.train, at=13, rank=1)
    stopped = 0
    try:
        run_fit(folder / "broken", data=broken, task=make())
    except Interrupted as stop:
        stopped = stop.signum
    torch.rand(distributed.rank())
    result = run_fit(folder / "broken", task=task, data=data)
    ours, theirs = task.state_dict(), whole.state_dict()
    return {
        "stopped": stopped,
        "resumed": result.resumed_from,
        "different": [name for name in ours if not torch.equal(ours[name], theirs[name])],
        "same_rng": torch.equal(rng, torch.get_rng_state()),
        "rng": rng.tolist(),
        "weights": ours,
    }


def test_two_ranks_stopped_and_resumed_equal_unbroken_ones_bit_for_bit(tmp_path):
    first, second = on_ranks(2, stop_and_resume, tmp_path)
    for rank in (first, second):
        assert rank["stopped"] == signal.SIGTERM
        assert rank["resumed"] == 13
        assert rank["different"] == []
        assert rank["same_rng"]
    assert first["rng"] != second["rng"], "dropout has to differ from rank to rank"
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])
    assert lines_of(tmp_path / "broken") == lines_of(tmp_path / "unbroken")
    steps = [line["step"] for line in lines_of(tmp_path / "broken") if line["kind"] == "train"]
    assert steps == list(range(3, 41, 3)), "each line once: the main rank alone writes"


def distil_timm(seed: int = 0) -> nn.Module:
    """Return a task whose student draws random numbers and has parameters that not every step uses."""
    torch.manual_seed(7)
    teacher = models.build("timm:test_convnext", num_classes=CLASSES, image_size=32)
    torch.manual_seed(seed)
    name = "timm:test_vit:patch_size=8:depth=4:embed_dim=16:num_heads=2:drop_path_rate=0.2:proj_drop_rate=0.1"
    student = models.build(name, num_classes=CLASSES, image_size=32)
    distiller = distillers.build("kd,at=10", student=student, teacher=teacher, num_samples=80, image_size=32)
    return DistillTask(student, distiller)


def test_two_ranks_resume_networks_of_timm_bit_for_bit(tmp_path):
    pytest.importorskip("timm")
    first, second = on_ranks(2, stop_and_resume, tmp_path, distil_timm, 80, 32)
    for rank in (first, second):
        assert (rank["stopped"], rank["resumed"], rank["different"]) == (signal.SIGTERM, 13, [])
        assert rank["same_rng"]
    assert first["rng"] != second["rng"], "drop path has to differ from rank to rank"
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])
    assert lines_of(tmp_path / "broken") == lines_of(tmp_path / "unbroken")


def fit_and_tell(folder: Path, **options: Any) -> str:
    try:
        run_fit(folder, data=SharedData(train_size=80), **options)
    except (ConfigError, PeerError) as error:
        return f"{type(error).__name__}: {error}"
    return "fine"


def test_another_number_of_ranks_is_another_run(tmp_path):
    run_fit(tmp_path)
    main, other = on_ranks(2, fit_and_tell, tmp_path)
    assert main.startswith("FingerprintMismatch") and "run.ranks: 1 -> 2" in main
    assert other == "PeerError: rank 0 failed"
    on_ranks(2, fit_and_tell, tmp_path / "two")
    with pytest.raises(FingerprintMismatch, match=r"run\.ranks: 2 -> 1"):
        run_fit(tmp_path / "two")


def disagree(folder: Path) -> str:
    return fit_and_tell(folder, epochs=2 + distributed.rank(), fingerprint={"data": f"of {distributed.rank()}"})


def test_ranks_that_would_train_different_things_do_not_begin(tmp_path):
    main, other = on_ranks(2, disagree, tmp_path)
    expected = "ranks 0 and 1 differ in what they are to train (data: of 0 and of 1; run.epochs: 2 and 3)"
    assert main == f"ConfigError: {expected}"
    assert other == "PeerError: rank 0 failed"
    assert not (tmp_path / "checkpoints").exists()


class Poisoned(SharedTrainLoader):
    """Loader with a NaN in an image of one rank at one step of the run."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for step, batch in enumerate(super().epoch(epoch, start), start=1 + start + epoch * len(self)):
            if step == 8 and distributed.rank() == 1:
                batch.images[0, 0, 0, 0] = torch.nan
            yield batch


class SplitLossTask(TinyTask):
    """Task with a finite gradient and a total that is not finite, which only the rank that computes it sees."""

    def forward(self, images: Tensor, target: Tensor, index: Tensor) -> dict[str, Tensor]:
        terms = super().forward(images.nan_to_num(), target, index)
        return terms | {"total": terms["total"] + images.detach().sum(), "ce": terms["ce"]}


def poison(folder: Path, plain: bool) -> tuple[str, int, dict[str, Tensor]]:
    data, task = SharedData(train_size=80), (TinyTask if plain else SplitLossTask)()
    data.train = Poisoned(data.train.images, data.train.target)
    with pytest.raises(NonFiniteError) as caught:
        run_fit(folder, task=task, data=data, engine={"checkpoint_every": 5})
    return str(caught.value), caught.value.step, task.state_dict()


@pytest.mark.parametrize("plain", [True, False])
def test_what_is_not_finite_on_one_rank_stops_all_before_the_update(tmp_path, plain):
    first, second = on_ranks(2, poison, tmp_path, plain)
    assert first[:2] == second[:2]
    assert "total = nan" in first[0] and ("grad_norm = nan" in first[0]) == plain
    assert first[1] == 8
    learned = [name for name in first[2] if name.endswith(("weight", "bias"))]
    assert all(torch.equal(first[2][name], second[2][name]) for name in learned)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000000005"]


class Waiting(SharedTrainLoader):
    """Loader that delays the last rank's sixth batch until the first rank has requested its own."""

    def __init__(self, loader: SharedTrainLoader, ahead: Event):
        super().__init__(loader.images, loader.target)
        self.ahead, self.waited = ahead, False

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for step, batch in enumerate(super().epoch(epoch, start), start=1):
            if step == 6 and distributed.rank() == 0:
                self.ahead.set()
            if step == 6 and distributed.rank() == 1:
                self.waited = self.ahead.wait(timeout=60)
            yield batch


def lag(folder: Path, ahead: Event) -> tuple[bool, list[dict]]:
    data = SharedData(train_size=80)
    data.train = Waiting(data.train, ahead)
    result = run_fit(folder, data=data, epochs=1)
    return data.train.waited, [*map(without_timing, result.history)]


def test_a_slow_rank_is_waited_for(tmp_path):
    first, second = on_ranks(2, lag, tmp_path, processes.Manager().Event())
    assert second[0], "the first rank was not ahead"
    assert first[1] == second[1] and first[1][0]["step"] == 10


def one_step_in_two_parts() -> dict[str, bool]:
    task = make_task(dropout=0.0)
    forward = parallel.wrap(task)
    batch = torch.randn(4, 3, 6, 6) + distributed.rank(), torch.arange(4), torch.arange(4)
    with parallel.no_sync(forward, more_to_come=True):
        forward(*batch)["total"].backward()
    own = [p.grad.clone() for p in task.parameters()]
    with parallel.no_sync(forward, more_to_come=False):
        forward(*batch)["total"].backward()
    everyones = [torch.stack(distributed.gather(grad)) for grad in own]
    return {
        "separate at first": any(not torch.equal(*grads) for grads in everyones),
        "averaged then": all(
            torch.allclose(p.grad, 2 * grads.mean(0), rtol=1e-4, atol=1e-6)
            for p, grads in zip(task.parameters(), everyones, strict=True)
        ),
        "own names": list(task.state_dict()) == list(make_task().state_dict()),
    }


def test_gradients_meet_with_the_last_part():
    for facts in on_ranks(2, one_step_in_two_parts):
        assert all(facts.values()), facts


def test_batchnorm_over_ranks_needs_a_gpu(tmp_path):
    run_fit(tmp_path / "one", epochs=1, engine={"sync_batchnorm": True})
    expected = "ConfigError: engine.sync_batchnorm must be false on the CPU, got True"
    assert on_ranks(2, fit_and_tell_synchronised, tmp_path / "two") == [expected] * 2


def synchronised() -> tuple[list[str], bool, bool]:
    task = make_task()
    names, weight = list(task.state_dict()), task.model[1].weight
    parallel.synchronise_batchnorm(task, torch.device("cuda"))
    norm = task.model[1]
    return [*task.state_dict()], names == [*task.state_dict()] and norm.weight is weight, type(norm) is nn.SyncBatchNorm


def test_synchronised_batchnorm_keeps_names_and_parameters():
    for names, same, converted in on_ranks(2, synchronised):
        assert "model.1.running_mean" in names and same and converted


def fit_and_tell_synchronised(folder: Path) -> str:
    return fit_and_tell(folder, engine={"sync_batchnorm": True})
