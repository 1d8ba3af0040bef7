"""Graphed steps train like others, for every task. A step that can't be recorded says so and runs without a graph.

On the CPU the graph is a fake one, as strict as CUDA's. The same tests run on a GPU if there is one.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import precision
import pytest
import torch
from torch import Tensor, nn

from sftn_fast import data, distillers, models
from sftn_fast.config import CollaborateConfig, ConfigError, DataConfig, EngineConfig, OptimConfig, SFTNConfig
from sftn_fast.data import ImageData
from sftn_fast.data.loaders import DeferredBatch
from sftn_fast.engine import Interrupted, Layout, NonFiniteError, Schedule
from sftn_fast.engine.graph import WARM_UP, GraphedStep, Recorder, recorder
from sftn_fast.engine.optim import build_sgd
from sftn_fast.engine.step import TrainStep
from sftn_fast.sftn import StudentAwareTeacher
from sftn_fast.tasks import CollaborativeTask, DistillTask, Route, SFTNTask, SupervisedTask, Task

from . import fake_cuda_graph
from .stubs import Data, StoppingLoader, TinyTask, make_task, run_fit, without_timing

BATCH, TRAIN, SIZE = 8, 20, 8  # two full batches an epoch, and one of four images
LAYERS = 20  # of the deepest network here
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

cuda = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))
on_each = pytest.mark.parametrize("device", ["cpu", cuda])


def images_on(device: str, **mixing: float) -> ImageData:
    config = DataConfig("fake", train_size=TRAIN, image_size=SIZE, crop_padding=2, flip=True, **mixing)
    return data.build(config, seed=0, batch_size=BATCH, device=device)


def networks(images: ImageData, *names: str) -> list[models.StagedNet]:
    return [models.build(name, num_classes=images.num_classes) for name in names]


def distilled(spec: str, *teachers: str) -> Callable[[ImageData], Task]:
    def build(images: ImageData) -> Task:
        student, *held = networks(images, "resnet8", *(teachers or ("resnet8",)))
        about = {"num_samples": TRAIN, "image_size": SIZE, "labels": images.train_labels.cpu()}
        return DistillTask(student, distillers.build(spec, student=student, teacher=held, **about))

    return build


def student_aware(images: ImageData) -> Task:
    return SFTNTask(StudentAwareTeacher(*networks(images, "resnet14", "resnet8"), image_size=SIZE), SFTNConfig())


def collaborating(method: str) -> Callable[[ImageData], Task]:
    return lambda images: CollaborativeTask(networks(images, "resnet8", "resnet8"), CollaborateConfig(method=method))


def supervised(images: ImageData) -> Task:
    return SupervisedTask(networks(images, "resnet8")[0])


def with_an_unused_layer(images: ImageData) -> Task:
    task = supervised(images)
    task.model.unused = nn.Linear(3, 3)
    return task


def first_of(spec: str) -> Callable[[ImageData], nn.Module]:
    """Build what the method of ``spec`` trains before the student."""
    return lambda images: distilled(spec)(images).distiller.initialisations()[0][1].task


SPECS = {name: name for name in distillers.names()} | {"crd": "crd:negatives=6", "sskd": "sskd:init_epochs=1"}
SPECS |= {"dkd": "dkd:warmup=2", "reviewkd": "reviewkd:warmup=2", "several": "kd,at=10,crd:negatives=6:bank=bfloat16"}
TASKS: dict[str, Callable[[ImageData], nn.Module]] = {name: distilled(spec) for name, spec in SPECS.items()}
TASKS |= {"two teachers": distilled("kd,rkd", "resnet14", "resnet20")}
TASKS |= {f"before {name}": first_of(name) for name in ("ab", "ft", "fsp", "sskd")}
TASKS |= {"sftn": student_aware, "dml": collaborating("dml"), "kdcl": collaborating("kdcl"), "supervised": supervised}
TASKS |= {"unused": with_an_unused_layer, "relaxed": distilled("crd:negatives=6:mode=relax")}


def train(
    build: Callable[[ImageData], nn.Module],
    device: str,
    record: Recorder | None,
    *,
    amp: str = "fp32",
    epochs: int = 2,
    mixing: dict[str, float] | None = None,
    **options: object,
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Return weights, memories and momenta after ``epochs``, and the terms of every step."""
    torch.manual_seed(3)
    images = images_on(device, **(mixing or {}))
    task = build(images).train()
    views, strong = getattr(task, "views", 1), getattr(task, "strong_view", False)
    images = images.with_views(views, strong=strong).mixed()
    optim = OptimConfig(lr=0.02, batch_size=BATCH, schedule="cosine", **options)
    layout = Layout(torch.device(device), DTYPES[amp])
    sgd = build_sgd(task.to(device), optim, 0.02)
    schedule = Schedule(optim, 0.02, len(images.train), epochs)
    extra = {"clip_grad": optim.clip_grad, "accumulate": optim.accumulate}
    step = TrainStep(task, sgd, schedule, layout, record=record, must_record=True, **extra)
    torch.manual_seed(4)
    terms = []
    for epoch in range(epochs):
        if getattr(task, "begin_epoch", lambda epoch: False)(epoch):
            step.forget()
        for number, batch in enumerate(step.batches(images.train, epoch, 0), start=epoch * len(images.train)):
            terms.append({name: term.clone() for name, term in step(batch, number).items()})
    momenta = {str(i): value for i, state in enumerate(sgd.state.values()) for value in state.values()}
    return copy.deepcopy({**task.state_dict(), **momenta}), terms


def recorder_on(device: str) -> Recorder | None:
    return fake_cuda_graph.record if device == "cpu" else recorder(True, torch.device(device))


def assert_alike(tolerance: float, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Compare tensors, relative to the largest value of each."""
    assert ours.keys() == theirs.keys()
    for name, true in theirs.items():
        atol = tolerance * true.double().abs().nan_to_num().max().item() if true.numel() else 0.0
        torch.testing.assert_close(ours[name], true, equal_nan=True, rtol=0, atol=atol, msg=name)


def check_like_eager(build: Callable[[ImageData], nn.Module], device: str, **options: object) -> None:
    eager, eager_terms = train(build, device, None, **options)
    replayed, replayed_terms = train(build, device, recorder_on(device), **options)
    dtype = DTYPES[options.get("amp", "fp32")]
    # The same bits on a CPU. On a GPU libraries may choose another algorithm for a recorded call.
    tolerance = 0.0 if device == "cpu" else precision.of_training(dtype, LAYERS, len(eager_terms))
    for ours, theirs in zip(replayed_terms, eager_terms, strict=True):
        assert_alike(tolerance, ours, theirs)
    assert_alike(tolerance, replayed, eager)
    # The steps differ, else a replay that repeats the first would pass.
    assert len({term["total"].item() for term in eager_terms}) == len(eager_terms)


@on_each
@pytest.mark.parametrize("name", TASKS)
def test_replays_train_as_steps_without_a_graph_do(name, device):
    if name == "kdsvd" and device != "cpu":
        pytest.skip("a singular value decomposition waits for the host, which no graph can")
    check_like_eager(TASKS[name], device)


@on_each
@pytest.mark.parametrize(
    "options",
    [{"amp": "bf16"}, {"amp": "fp16"}, {"clip_grad": 0.5}, {"accumulate": 2}, {"nesterov": True}, {"momentum": 0.0}],
    ids=str,
)
def test_whatever_the_arithmetic_and_the_optimizer(options, device):
    check_like_eager(TASKS["several"], device, **options)


@on_each
@pytest.mark.parametrize("name", ["several", "sftn", "kdcl", "supervised"])
def test_mixed_images_are_mixed_in_the_replay(name, device):
    check_like_eager(TASKS[name], device, mixing={"mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1})


def test_one_recording_serves_every_mixture_of_a_shape():
    recorded = []

    def record(function):
        recorded.append(1)
        return fake_cuda_graph.record(function)

    train(TASKS["supervised"], "cpu", record, epochs=3, mixing={"mixup": 1.0, "cutmix": 1.0})
    assert len(recorded) == 2  # full batches and the last, partial one


@on_each
def test_a_route_records_the_next_anchor(tmp_path: Path, device):
    def build(images: ImageData) -> Task:
        anchors = []
        for number in range(2):
            (teacher,) = networks(images, "resnet14")
            models.save(teacher, tmp_path / f"{number}")
            anchors.append(tmp_path / f"{number}")
        task = distilled("kd", "resnet14")(images)
        return DistillTask(task.model, task.distiller, Route(anchors, epochs=2))

    check_like_eager(build, device)


@pytest.fixture
def with_graphs(monkeypatch) -> None:
    """Replay fake graphs in all training on the CPU."""
    monkeypatch.setattr(
        "sftn_fast.engine.step.recorder", lambda choice, device: fake_cuda_graph.record if choice else None
    )


def calls_of(task: TinyTask) -> list[int]:
    calls: list[int] = []
    task.register_forward_pre_hook(lambda module, args: calls.append(1))
    return calls


def test_python_runs_for_a_recording_alone(tmp_path: Path, with_graphs):
    task = make_task()
    calls = calls_of(task)
    run_fit(tmp_path, task=task)  # twenty steps of one shape
    assert len(calls) == WARM_UP + 1


def test_a_task_that_changes_in_each_epoch_is_recorded_in_each(tmp_path: Path, with_graphs):
    task = make_task()
    calls = calls_of(task)
    task.begin_epoch = lambda epoch: True
    run_fit(tmp_path, task=task)
    assert len(calls) == 2 * (WARM_UP + 1)


@pytest.mark.parametrize("amp", ["fp32", "fp16"])
def test_stopped_and_resumed_as_an_unbroken_run(tmp_path: Path, with_graphs, amp):
    unbroken = run_fit(tmp_path / "unbroken", engine={"amp": amp})
    interrupted = Data()
    interrupted.train = StoppingLoader(interrupted.train, 13, 15)
    with pytest.raises(Interrupted):
        run_fit(tmp_path / "stopped", data=interrupted, engine={"amp": amp})
    resumed = run_fit(tmp_path / "stopped", task=make_task(seed=9), engine={"amp": amp})
    assert resumed.resumed_from is not None
    assert [without_timing(row) for row in resumed.history] == [without_timing(row) for row in unbroken.history]
    assert without_timing(unbroken.last) == without_timing(run_fit(tmp_path / "eager", engine=without(amp)).last)


def without(amp: str) -> dict[str, object]:
    return {"amp": amp, "cuda_graphs": False}


def test_what_is_not_finite_is_not_trained_on(tmp_path: Path, with_graphs):
    task, broken = make_task(), Data()
    broken.train.images[broken.train.images.shape[0] // 2] = torch.inf
    before = copy.deepcopy(task.state_dict())
    with pytest.raises(NonFiniteError, match="not finite: total = nan"):
        run_fit(tmp_path, task=task, data=broken)
    after = task.state_dict()
    assert all(torch.isfinite(value).all() for name, value in after.items() if "running" not in name)
    assert any(not torch.equal(before[name], after[name]) for name in after)  # the steps before it


class Reading(TinyTask):
    """A task that reads its loss on the host."""

    def forward(self, images: Tensor, target: Tensor, index: Tensor) -> dict[str, Tensor]:
        terms = super().forward(images, target, index)
        self.seen = terms["ce"].item()
        return terms


def test_what_cannot_be_recorded_says_why_and_trains_on(tmp_path: Path, with_graphs, capsys):
    torch.manual_seed(0)
    result = run_fit(tmp_path / "graphed", task=Reading())
    said = capsys.readouterr().err
    assert said.count("engine.cuda_graphs: not captured, steps run without a graph; RuntimeError: operation not") == 1
    torch.manual_seed(0)
    eager = run_fit(tmp_path / "eager", task=Reading(), engine={"cuda_graphs": False})
    assert without_timing(result.last) == without_timing(eager.last)
    with pytest.raises(ConfigError, match=r"engine\.cuda_graphs is true, but the step can't be captured \(RuntimeErr"):
        run_fit(tmp_path / "must", task=Reading(), engine={"cuda_graphs": True})


def test_a_wrong_task_fails_as_it_does_without_graphs(tmp_path: Path, with_graphs):
    colourless = Data()
    colourless.train.images = colourless.train.images[:, :1]
    with pytest.raises(RuntimeError, match="to have 3 channels, but got 1"):
        run_fit(tmp_path, task=make_task(), data=colourless)


def test_graphs_by_force_are_refused_on_the_cpu(tmp_path: Path):
    with pytest.raises(
        ConfigError, match=r"engine\.cuda_graphs must be auto or false on the CPU and over several ranks"
    ):
        run_fit(tmp_path, engine={"cuda_graphs": True})
    assert recorder("auto", torch.device("cpu")) is None
    assert EngineConfig().cuda_graphs == "auto"


def test_the_previous_batch_is_not_freed_during_a_recording():
    kept = []

    def record(function):
        kept.append(previous is None or previous() is not None)
        return lambda: None, function()

    def make(images):
        return images

    step = GraphedStep(lambda batch: {}, nullcontext, record, torch.device("cpu"))
    previous = None
    for images in (2, 1, 2):  # the last one is replayed
        tensor = torch.zeros(images)
        step(DeferredBatch(torch.arange(images), (tensor,), make))
        previous = weakref.ref(tensor)
        del tensor
    assert kept == [True, True]
