"""CAT-KD, SRRL, SRD, VkD, WKD-F, OFA and SDD: golden values of the authors' code, gradients, and what they refuse."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from types import SimpleNamespace

import golden
import pytest
import torch
import torch.nn.functional as F
from test_methods import batch, build
from torch import nn

from sftn_fast import distillers, models, ops
from sftn_fast.data import Batch
from sftn_fast.distillers.decay import CosineDecay
from sftn_fast.distillers.methods import cat, ofa, sdd, srd, srrl, wkd_f
from sftn_fast.models import Features, StagedNet
from sftn_fast.models.staged import Head

EXACT = {"rel": 1e-12, "abs": 1e-12}


@pytest.mark.parametrize(("normalise", "expected"), [(False, 0.9138218375021989), (True, 0.5228438177745398)])
def test_cat(normalise, expected):
    maps = ((golden.STUDENT_MAP, golden.STUDENT_WEIGHT), (golden.TEACHER_MAP, golden.TEACHER_WEIGHT))
    found = [cat.activations(F.adaptive_avg_pool2d(map_, 2), weight) for map_, weight in maps]
    assert cat.distance(*found, normalise).item() == pytest.approx(expected, **EXACT)


def test_cat_pools_first_as_the_two_steps_commute():
    classified = F.conv2d(golden.STUDENT_MAP, golden.STUDENT_WEIGHT[..., None, None])
    expected = F.adaptive_avg_pool2d(classified, 2).flatten(2)
    found = cat.activations(F.adaptive_avg_pool2d(golden.STUDENT_MAP, 2), golden.STUDENT_WEIGHT)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_srrl():
    student, teacher = golden.STUDENT_MAP.mean((2, 3)), golden.TEACHER_MAP.mean((2, 3))
    classifier = golden.TEACHER_WEIGHT, golden.TEACHER_BIAS
    found = srrl.terms(student, teacher, F.linear(teacher, *classifier), *classifier)
    assert [x.item() for x in found] == pytest.approx([0.5449737832673944, 0.20163603192220445], **EXACT)


def test_srd():
    distance = srd.log_distance(golden.STUDENT_VECTORS, golden.TEACHER_VECTORS)
    kl = ops.kd_loss(golden.STUDENT_LOGITS, golden.TEACHER_LOGITS, 1.0)
    ce = F.cross_entropy(golden.STUDENT_LOGITS, golden.TARGET)
    assert distance.item() == pytest.approx(4.295236839664583, **EXACT)
    assert (2 * distance + kl).item() == pytest.approx(9.733696829361799, **EXACT)
    assert (ce + 2 * distance + kl).item() == pytest.approx(12.310345759676121, **EXACT)
    vkd = srd.normalised_distance(golden.STUDENT_VECTORS, golden.TEACHER_VECTORS)
    assert vkd.item() == pytest.approx(0.467494674533438, **EXACT)


def test_srd_of_equal_vectors_is_finite():
    vectors = golden.STUDENT_VECTORS.clone().requires_grad_()
    distance = srd.log_distance(vectors, golden.STUDENT_VECTORS)
    distance.backward()
    assert distance.isfinite() and vectors.grad.isfinite().all()


@pytest.mark.parametrize(
    ("grid", "expected"),
    [(1, [4.359790266139155, 0.981079315846019]), (2, [13.146882619396688, 1.4275176930606928])],
)
def test_wkd_f(grid, expected):
    found = wkd_f.distances(golden.STUDENT_MAP, golden.TEACHER_MAP, grid)
    assert [x.item() for x in found] == pytest.approx(expected, **EXACT)


@pytest.mark.parametrize(("eps", "expected"), [(1.0, 2.5901825736107558), (1.5, 1.9167564750868877)])
def test_ofa(eps, expected):
    found = ofa.ofa_loss(golden.STUDENT_LOGITS, golden.TEACHER_LOGITS, golden.TARGET, eps)
    assert found.item() == pytest.approx(expected, **EXACT)


def sdd_of(student, teacher, target, **settings):
    """Return SDD's loss of two maps that the golden classifiers read."""

    def info(weight, bias):
        head = Head(8, 10).double()
        head.fc.weight.data, head.fc.bias.data = weight, bias
        return SimpleNamespace(net=SimpleNamespace(name="own", head=head), unpooled=(8, 4, 4))

    ours, theirs = info(golden.STUDENT_WEIGHT, golden.STUDENT_BIAS), info(golden.TEACHER_WEIGHT, golden.TEACHER_BIAS)
    method = sdd.SDD(SimpleNamespace(student=ours, teacher=theirs, require_maps=lambda: None), **settings)
    seen = (Features(map_, [map_], None, None, None, map_) for map_ in (student, teacher))
    return method.loss(*seen, Batch(None, torch.tensor(target), None))


def test_sdd():
    student = golden.STUDENT_MAP.clone().requires_grad_()
    loss = sdd_of(student, golden.TEACHER_MAP, [3, 2, 6, 5])
    loss.backward()
    assert loss.item() == pytest.approx(0.9708604911911517, **EXACT)
    assert student.grad.isfinite().all() and student.grad.abs().sum() > 0


def test_sdd_by_loops_over_regions():
    target, alike, unlike = [3, 2, 6, 5], 0.0, 0.0
    maps = (golden.STUDENT_MAP, golden.TEACHER_MAP)
    classifiers = (golden.STUDENT_WEIGHT, golden.STUDENT_BIAS), (golden.TEACHER_WEIGHT, golden.TEACHER_BIAS)
    for side in (1, 2, 4):
        step = 4 // side
        for row, column in itertools.product(range(0, 4, step), repeat=2):
            ours, theirs = (
                F.linear(map_[..., row : row + step, column : column + step].mean((2, 3)), *classifier)
                for map_, classifier in zip(maps, classifiers, strict=True)
            )
            for i, label in enumerate(target):
                kl = ops.kd_loss(ours[i : i + 1], theirs[i : i + 1], 2.0).item() / 84
                right = theirs[i].argmax() == label
                of_image = F.linear(golden.TEACHER_MAP.mean((2, 3)), *classifiers[1])[i].argmax() == label
                alike, unlike = (alike + kl, unlike) if right == of_image else (alike, unlike + kl)
    assert alike > 0 and unlike > 0
    for weight in (0.0, 3.0):
        found = sdd_of(*maps, target, temperature=2.0, complementary=weight)
        assert found.item() == pytest.approx(alike + weight * unlike, rel=1e-9)


def test_ofa_has_an_exit_behind_each_stage():
    distiller = build("ofa,ce=0", "resnet8", "wrn_16_2")
    (method,) = distiller.methods[0].values()
    assert [sum(isinstance(x, torch.nn.Conv2d) and x.groups > 1 for x in each) for each in method.exits] == [2, 1, 0]
    images = batch()[0]
    maps = distiller.student.forward_features(images).stages
    assert all(each(x).shape == (len(images), 6) for each, x in zip(method.exits, maps, strict=True))


@pytest.mark.parametrize("grid", [1, 3, 4, 5])
def test_wkd_f_has_the_cells_of_adaptive_pooling(grid):
    maps = torch.randn(2, 3, 7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, deviation = wkd_f.moments(maps, grid)
    as_cells = F.adaptive_avg_pool2d(maps, grid).permute(2, 3, 0, 1).flatten(0, 1)
    torch.testing.assert_close(mean, as_cells)
    first = maps[..., : -(7 // -grid), : -(6 // -grid)]
    torch.testing.assert_close(deviation[0], (first.var((2, 3)) + 1e-5).sqrt())


@pytest.mark.parametrize(
    "value",
    [
        lambda s: cat.distance(cat.activations(s, golden.STUDENT_WEIGHT[:, :3]), torch.ones(4, 10, 4).double(), True),
        lambda s: sum(wkd_f.distances(s, golden.TEACHER_MAP[:, :3], 1)),
        lambda s: srd.log_distance(s.flatten(1), golden.TEACHER_MAP[:, :3, :2, :2].flatten(1)),
        lambda s: srd.normalised_distance(s.flatten(1), golden.TEACHER_MAP[:, :3, :2, :2].flatten(1)),
    ],
)  # fmt: skip
def test_gradients(value):
    torch.autograd.gradcheck(value, golden.STUDENT_MAP[:, :3, :2, :2].clone().requires_grad_())


def test_the_classifiers_of_student_and_teacher():
    """CAT teaches the student's classifier through the maps; the teacher's gets no gradient."""
    distiller = build("cat,ce=0")
    distiller(*batch())["total"].backward()
    fc = distiller.student.head.fc
    assert fc.weight.grad.abs().sum() > 0 and fc.bias.grad.abs().sum() == 0
    assert all(p.grad is None for p in distiller.teacher.parameters())


@pytest.mark.parametrize("spec", ["srd:projector=vkd", "cat=600:regions=4:normalise=true", "wkd_f:grid=2"])
def test_options(spec):
    distiller = build(f"{spec},ce=0", "wrn_16_2", "resnet8")
    distiller.train()(*batch())["total"].backward()
    learns = [*distiller.parameters()]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learns)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert distiller(*batch())["total"].isfinite()
    if "vkd" in spec:
        (method,) = distiller.methods[0].values()
        weight = method.projector.weight
        assert weight.shape == (64, 128)
        torch.testing.assert_close(weight @ weight.T, torch.eye(64), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cat:regions=5", "cat: regions must be at most 4, .* (student 64x4x4, teacher 128x4x4), got 5"),
        (
            "wkd_f:grid=4",
            "wkd_f: each of grid x grid cells must have two pixels or more of the teacher's last map, 128x4x4",
        ),
        ("wkd_f:decay_start=9:decay_end=8", "wkd_f: decay_start must be at most decay_end, 8, got 9"),
    ],
)
def test_what_a_pair_can_not_serve_is_refused(spec, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        build(spec)


class Flattened(nn.Module):
    """A head that classifies all pixels, not their mean."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8 * 16, 6)

    def forward_pooled(self, x):
        return x.flatten(1), self.fc(x.flatten(1))

    def forward(self, x):
        return self.forward_pooled(x)[1]


class Doubled(Head):
    """A head of somebody's own, which inherits ``forward_unpooled`` and does not use it."""

    def forward_pooled(self, x):
        pooled = 2 * x.mean((2, 3))
        return pooled, self.fc(pooled)


class TwoLayers(Head):
    """Two linear layers after the mean."""

    def __init__(self):
        super().__init__(8, 6)
        self.fc = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 6))


class Averaged(nn.Module):
    """A head that averages its map, and tells nobody."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(8, 6))

    def forward_pooled(self, x):
        pooled = x.mean((2, 3))
        return pooled, self.classifier(pooled)

    def forward(self, x):
        return self.forward_pooled(x)[1]


def with_head(head: nn.Module) -> StagedNet:
    stem, stage = nn.Conv2d(3, 8, 3, 2, 1), nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
    return StagedNet(stem, [stage], head, num_classes=6, in_channels=3, name="own")


@pytest.mark.parametrize("name", ["cat", "srrl", "sdd"])
@pytest.mark.parametrize(
    ("head", "message"),
    [
        (Flattened, "the student own must classify the mean of its last map"),
        (lambda: Doubled(8, 6), "the student own must classify the mean of its last map"),
        (TwoLayers, "the student own must end with one linear layer"),
        (Averaged, None),
    ],
)
def test_a_head_that_classifies_otherwise_is_refused(name, head, message):
    teacher = models.build("resnet8", num_classes=6)
    networks = {"student": with_head(head()), "teacher": teacher}
    with pytest.raises(ValueError, match=f"{name}: {message}") if message else nullcontext():
        distiller = distillers.build(name, **networks, num_samples=48, image_size=16)
        assert distiller(*batch())["total"].isfinite()


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "MobileNetV2", "ShuffleV2", "vgg8"])
def test_the_map_that_is_pooled(name):
    """Its mean is the pooled vector, with and without the maps before the ReLUs."""
    torch.manual_seed(0)
    net = models.build(name, num_classes=6).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for preact in (False, True):
            features = net.forward_features(images, preact=preact)
            torch.testing.assert_close(features.unpooled.mean((2, 3)), features.pooled)
            assert torch.equal(features.logits, net(images))
        first = features.first(1)
    assert first.unpooled.shape == (1, *features.unpooled.shape[1:])


def test_a_decay():
    decay = CosineDecay(150, 240)
    assert decay.factor == 1
    assert not decay.begin_epoch(0) and not decay.begin_epoch(149)  # epochs 1 and 150
    assert decay.begin_epoch(150) and decay.factor == pytest.approx(0.99969, abs=1e-5)
    assert decay.begin_epoch(194) and decay.factor == pytest.approx(0.5)
    assert decay.begin_epoch(239) and decay.factor == pytest.approx(0)
    assert not decay.begin_epoch(300)
    constant = CosineDecay(0, 0)
    assert not constant.begin_epoch(500) and constant.factor == 1
