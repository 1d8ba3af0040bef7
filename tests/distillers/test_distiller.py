"""The distiller's part for every method: passes, weights, terms, and a teacher that does not change."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from models.networks import probed_once
from torch import Tensor, nn

from sftn_fast import distillers, models
from sftn_fast.data import Batch
from sftn_fast.distillers import methods, registry
from sftn_fast.distillers.distiller import Distiller
from sftn_fast.distillers.method import Method, NetInfo, Setup
from sftn_fast.distillers.options import Positive
from sftn_fast.distillers.spec import parse
from sftn_fast.models import Features, StagedNet

SIZE = 8
CLASSES = 5


class Match(Method):
    """Toy: mean square between the pooled vectors, the student's through a linear adapter."""

    default_weight = 3.0

    def __init__(self, setup: Setup, *, scale: Positive = 1.0) -> None:
        super().__init__(setup)
        self.adapter = nn.Linear(setup.student.pooled, setup.teacher.pooled, bias=False)
        self.scale = scale

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        return self.scale * F.mse_loss(self.adapter(student.pooled), teacher.pooled)


class Preacts(Method):
    """Toy: reads the maps before the ReLU, and checks what it is given."""

    needs_preacts = True

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        assert student.preacts is not None and teacher.preacts is not None
        assert student.preacts[0].requires_grad and not teacher.preacts[0].requires_grad
        assert len(batch.images) == len(batch.target) == len(batch.index)
        return (student.preacts[-1] - teacher.preacts[-1].mean(1, keepdim=True)).square().mean()


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the toy methods for one test."""
    for name in registry.names():
        registry.find(name)  # import all files now, so that their registrations are not undone with the toys'
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))
    registry.register("match")(Match)
    registry.register("preacts")(Preacts)


@pytest.fixture
def nets() -> tuple[StagedNet, StagedNet]:
    """A student and a teacher."""
    torch.manual_seed(0)
    student, teacher = (models.build(name, num_classes=CLASSES) for name in ("resnet8", "wrn_16_2"))
    return probed_once(student), probed_once(teacher)


def build(spec: str, nets: tuple[StagedNet, StagedNet]) -> Distiller:
    return distillers.build(spec, student=nets[0], teacher=nets[1], num_samples=20, image_size=SIZE)


def batch(n: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n, 3, SIZE, SIZE, generator=generator, dtype=dtype)
    return images, torch.arange(n) % CLASSES, torch.arange(n)


@pytest.mark.parametrize(
    ("spec", "weights"),
    [
        ("kd", {"ce": 0.1, "kd": 0.9}),
        ("kd=0.5", {"ce": 0.1, "kd": 0.5}),
        ("kd=0", {"ce": 0.1, "kd": 0.0}),
        ("kd,ce=1", {"ce": 1.0, "kd": 0.9}),
        ("kd,ce=0", {"ce": 0.0, "kd": 0.9}),
        ("match", {"ce": 1.0, "match": 3.0}),
        ("kd,match", {"ce": 1.0, "kd": 1.0, "match": 3.0}),
        ("match=2,kd=0.9,ce=0.1", {"ce": 0.1, "kd": 0.9, "match": 2.0}),
    ],
)
def test_weights(spec: str, weights: dict[str, float], nets: tuple[StagedNet, StagedNet]) -> None:
    assert build(spec, nets).weights == weights


def test_kd_alone_is_a_tenth_of_ce_and_the_rest_of_the_divergence(nets: tuple[StagedNet, StagedNet]) -> None:
    student, teacher = nets
    distiller = build("kd:temperature=3", nets).double()
    student.double()
    images, target, index = batch(dtype=torch.float64)
    terms = distiller(images, target, index)

    s, t = student(images), teacher(images)
    p = (t / 3).softmax(1)
    ce = -s.log_softmax(1)[range(4), target].mean()
    kd = 9 * (p * (p.log() - (s / 3).log_softmax(1))).sum(1).mean()
    expected = {"total": 0.1 * ce + 0.9 * kd, "ce": ce, "kd": kd}
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-10, atol=0, check_device=False)


def test_fused_and_separate_losses_agree(nets: tuple[StagedNet, StagedNet]) -> None:
    gradients = []
    for spec in ("kd=0.9,ce=0.1", "kd=0.9,ce=0.1,match=0"):
        terms = build(spec, nets)(*batch())
        nets[0].zero_grad()
        terms["total"].backward()
        gradients.append([terms["total"], terms["ce"], terms["kd"], *[p.grad.clone() for p in nets[0].parameters()]])
    for fused, separate in zip(*gradients, strict=True):
        torch.testing.assert_close(fused, separate, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("spec", ["kd", "match:scale=2", "kd,match=0.5", "preacts,match,kd,ce=0.3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_terms(spec: str, dtype: torch.dtype, nets: tuple[StagedNet, StagedNet]) -> None:
    distiller = build(spec, nets).to(dtype)
    nets[0].to(dtype)
    terms = distiller(*batch(dtype=dtype))
    assert set(terms) == {"total", "ce"} | {term.name for term in parse(spec).methods}
    assert all(term.shape == () and term.dtype == torch.float32 for term in terms.values())
    assert [name for name, term in terms.items() if term.requires_grad] == ["total"]
    weighted = sum(distiller.weights[name] * term for name, term in terms.items() if name != "total")
    torch.testing.assert_close(terms["total"].detach(), weighted)


@pytest.mark.parametrize("spec", ["kd", "match", "kd,match,preacts"])
def test_one_pass_of_each_network_serves_all_methods(spec: str, nets: tuple[StagedNet, StagedNet]) -> None:
    distiller = build(spec, nets)
    passes = []
    student, teacher = nets
    for net in (student, teacher):
        for module in net.modules():
            module.register_forward_hook(lambda module, *_: passes.append(module))
    distiller(*batch())
    layers = [module for module in passes if isinstance(module, nn.Conv2d | nn.Linear)]
    assert {student.head.fc, teacher.head.fc} < set(layers)
    assert len(layers) == len(set(layers))


def test_preacts_are_kept_only_for_a_method_that_reads_them(nets: tuple[StagedNet, StagedNet]) -> None:
    seen = []

    class Spy(Match):
        def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
            seen.append((student.preacts is not None, teacher.preacts is not None))
            return super().loss(student, teacher, batch)

    registry.register("spy")(Spy)
    build("spy", nets)(*batch())
    build("spy,preacts", nets)(*batch())
    assert seen == [(False, False), (True, True)]


@pytest.mark.parametrize("spec", ["kd", "kd,match,preacts"])
def test_the_teacher_is_frozen(spec: str, nets: tuple[StagedNet, StagedNet]) -> None:
    student, teacher = nets
    teacher.train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    distiller = build(spec, nets)
    assert not any(module.training for module in teacher.modules())
    optimizer = torch.optim.SGD([*student.parameters(), *distiller.parameters()], lr=0.05)
    losses = []
    for _ in range(5):
        distiller.train()
        student.train()
        assert not any(module.training for module in teacher.modules())
        optimizer.zero_grad()
        total = distiller(*batch(8))["total"]
        total.backward()
        optimizer.step()
        losses.append(total.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    teacher.train()
    assert not any(module.training for module in distiller.train().teacher.modules())


def test_only_adapters_are_parameters_and_state(nets: tuple[StagedNet, StagedNet]) -> None:
    assert list(build("kd", nets).state_dict()) == list(build("kd", nets).parameters()) == []
    distiller = build("kd,match", nets)
    assert [name for name, _ in distiller.named_parameters()] == ["methods.0.match.adapter.weight"]
    assert list(distiller.state_dict()) == ["methods.0.match.adapter.weight"]
    assert distiller.methods[0]["match"].adapter.weight.shape == (128, 64)


def test_the_teacher_moves_along(nets: tuple[StagedNet, StagedNet]) -> None:
    distiller = build("match", nets)
    teacher = distiller.teacher
    distiller.to(torch.float64)
    assert {p.dtype for p in teacher.parameters()} == {p.dtype for p in distiller.parameters()} == {torch.float64}
    distiller.to(memory_format=torch.channels_last)
    convolutions = [m for m in teacher.modules() if isinstance(m, nn.Conv2d)]
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in convolutions)
    distiller.to("meta")
    assert {t.device.type for t in (*teacher.parameters(), *teacher.buffers())} == {"meta"}
    assert next(nets[0].parameters()).device.type == "cpu"


def test_a_copy_has_a_teacher_of_its_own(nets: tuple[StagedNet, StagedNet]) -> None:
    distiller = build("kd", nets)
    twin = copy.deepcopy(distiller)
    assert twin.teacher is not distiller.teacher
    assert torch.equal(twin(*batch())["kd"], distiller(*batch())["kd"])


def test_different_classes_are_refused(nets: tuple[StagedNet, StagedNet]) -> None:
    with pytest.raises(ValueError, match="student has 5 classes, teacher has 7"):
        build("kd", (nets[0], models.build("resnet8", num_classes=7)))


@pytest.mark.parametrize("name", ["kd", "ce", "match"])
def test_a_name_is_registered_once(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' is registered already"):
        registry.register(name)(Match)


@pytest.mark.parametrize("name", ["resnet8x4", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV2"])
def test_shapes_that_methods_are_told(name: str) -> None:
    net = models.build(name, num_classes=CLASSES).double().train()
    before = copy.deepcopy(net.state_dict())
    info = NetInfo.of(net, 32)
    assert net.training and all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    with torch.no_grad():
        features = net.eval().forward_features(torch.zeros(1, 3, 32, 32, dtype=torch.float64))
    assert info.stages == [tuple(stage.shape[1:]) for stage in features.stages]
    assert info.pooled == features.pooled.shape[1]


DROPPED = """
from torch import nn
from sftn_fast.distillers.method import Method
from sftn_fast.distillers.registry import register

@register("dropped")
class Dropped(Method):
    default_weight = 7.0

    def __init__(self, setup, *, layers: int = 1):
        super().__init__(setup)
        (inputs, *_), (outputs, *_) = setup.student.stages[layers - 1], setup.teacher.stages[layers - 1]
        self.adapter = nn.Conv2d(inputs, outputs, 1)
        self.layers = layers

    def loss(self, student, teacher, batch):
        return (self.adapter(student.stages[self.layers - 1]) - teacher.stages[self.layers - 1]).square().mean()
"""


@pytest.fixture
def dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Add a file to the folders of methods."""
    (tmp_path / "dropped.py").write_text(DROPPED)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    yield
    sys.modules.pop(f"{methods.__name__}.dropped", None)


@pytest.mark.usefixtures("dropped")
def test_a_method_is_one_file(nets: tuple[StagedNet, StagedNet]) -> None:
    assert "dropped" in registry.names()
    distiller = build("dropped:layers=2,kd=0.5", nets)
    assert distiller.weights == {"ce": 1.0, "dropped": 7.0, "kd": 0.5}
    adapter = distiller.methods[0]["dropped"].adapter
    assert adapter.weight.shape == (64, 32, 1, 1)
    distiller(*batch())["total"].backward()
    assert adapter.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="layers must be an integer, got 'two'"):
        build("dropped:layers=two", nets)


def test_without_its_file_the_method_is_gone(nets: tuple[StagedNet, StagedNet]) -> None:
    with pytest.raises(ValueError, match="unknown method 'dropped'"):
        build("dropped", nets)


class Flipped(Method):
    """Toy: compares the logits of mirrored images, which it adds to the batch."""

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        n = len(batch.target)
        assert len(student.logits) == len(teacher.pooled) == len(student.stages[0]) == 2 * n
        return F.mse_loss(student.logits[n:], teacher.logits[n:])

    def extra_images(self, images: Tensor) -> Tensor:
        return images.flip(3)


def test_images_of_a_methods_own(nets: tuple[StagedNet, StagedNet]) -> None:
    registry.register("flipped")(Flipped)
    student, teacher = (net.eval() for net in nets)  # so that images do not affect each other through BatchNorm
    images, target, index = batch()
    terms = build("flipped,kd,match", nets)(images, target, index)
    torch.testing.assert_close(terms["ce"], F.cross_entropy(student(images), target).detach())
    expected = F.mse_loss(student(images.flip(3)), teacher(images.flip(3)))
    torch.testing.assert_close(terms["flipped"], expected.detach())
    torch.testing.assert_close(terms["kd"], build("kd", nets)(images, target, index)["kd"])
    registry.register("flipped-too")(Flipped)
    with pytest.raises(ValueError, match="only one method may add images of its own, got flipped and flipped-too"):
        build("flipped,flipped-too", nets)(images, target, index)


def test_several_teachers(nets: tuple[StagedNet, StagedNet]) -> None:
    """Average each term over the teachers, each of which has its own adapters."""
    student, first = nets
    second = models.build("resnet14", num_classes=CLASSES)
    both = build("kd,match", (student.eval(), [first, second]))
    singles = [build("kd,match", (student, teacher)) for teacher in (first, second)]
    for number, single in enumerate(singles):
        single.methods[0].load_state_dict(both.methods[number].state_dict())
    terms = both(*batch())
    one, two = (single(*batch()) for single in singles)
    for name in ("total", "kd", "match", "ce"):
        torch.testing.assert_close(terms[name], (one[name] + two[name]) / 2)
    assert len(list(both.parameters())) == 2
    with pytest.raises(ValueError, match="got none"):
        build("kd", (student, []))


def test_a_warm_up_that_is_longer_than_the_training_is_named() -> None:
    teacher, student = models.build("resnet14", num_classes=4), models.build("resnet8", num_classes=4)
    distiller = distillers.build("dkd:warmup=5,reviewkd", student=student, teacher=teacher, num_samples=8, image_size=8)
    lines = distiller.describe_warm_ups(6)
    assert lines == ["warning: the weight of reviewkd warms up over 20 epochs, and this training has 6"]
    assert len(distiller.describe_warm_ups(4)) == 2 and distiller.describe_warm_ups(20) == []
