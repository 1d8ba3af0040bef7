"""Properties of every method: it builds, its loss falls, and gradients reach exactly what should learn."""

from __future__ import annotations

import copy

import pytest
import torch
from models.networks import probed_once

from sftn_fast import distillers, models
from sftn_fast.distillers import registry

SIZE, CLASSES, SAMPLES = 16, 6, 48

# Options that make a method small enough for a test, and networks that suit it.
OPTIONS = {"crd": "crd:negatives=20", "fsp": "fsp:variant=joint"}
NETWORKS = {"fsp": ("resnet8", "resnet14"), "kdsvd": ("resnet8", "resnet14")}
PAIRS = [("vgg8", "resnet8x4"), ("ShuffleV1", "resnet14"), ("MobileNetV2", "vgg8")]  # those of `build` are another
ONLY_INITIALISE = {"ab"}  # methods that have no loss once they are initialised
WITH_CE = {"wsld"}  # methods that weigh images by the student's cross-entropy, and rise if it alone is not taught
NAMES = registry.names()


def spec_of(name):
    return OPTIONS.get(name, name)


def build(spec, student="resnet8", teacher="wrn_16_2", size=SIZE, labels=True):
    torch.manual_seed(0)
    networks = [probed_once(models.build(name, num_classes=CLASSES)) for name in (student, teacher)]
    return distillers.build(
        spec,
        student=networks[0],
        teacher=networks[1],
        num_samples=SAMPLES,
        image_size=size,
        labels=torch.arange(SAMPLES) % CLASSES if labels else None,
    )


def batch(n=8, size=SIZE):
    generator = torch.Generator().manual_seed(1)
    index = torch.randperm(SAMPLES, generator=generator)[:n]
    return torch.randn(n, 3, size, size, generator=generator), index % CLASSES, index


def batch_for(distiller, n=8, size=SIZE):
    """Return the batch with a strong view of each image, if the distiller asks for it."""
    images, target, index = batch(n, size)
    return torch.stack([images, images.flip(-1)], 1) if distiller.strong_view else images, target, index


def initialise(distiller, steps=1):
    """Run a few steps of the methods' initialisations; return the losses of each."""
    history = []
    for _, first in distiller.initialisations():
        task = first.task.train()
        optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], 1e-3, momentum=0.9)
        losses = [minimise(optimizer, lambda task=task: task(*batch())["total"]) for _ in range(steps)]
        first.task.finish()
        history.append(losses)
    return history


def minimise(optimizer, loss):
    torch.manual_seed(2)  # the same negatives in every step
    total = loss()
    optimizer.zero_grad()
    total.backward()
    optimizer.step()
    return total.item()


def learning(distiller):
    return [p for p in (*distiller.student.parameters(), *distiller.parameters()) if p.requires_grad]


@pytest.mark.parametrize("name", NAMES)
def test_its_own_loss_falls(name):
    distiller = build(f"{spec_of(name)},ce={int(name in WITH_CE)}", *NETWORKS.get(name, ()))
    for losses in initialise(distiller, steps=6):
        assert losses[-1] < losses[0]
    distiller.train(name != "crd")  # CRD's memory changes in training, and its loss with it
    distiller.student.train()
    if name in ONLY_INITIALISE:
        return
    optimizer = torch.optim.Adam(learning(distiller), 1e-3)
    losses = [minimise(optimizer, lambda: distiller(*batch_for(distiller))["total"]) for _ in range(6)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("spec", "terms", "teacher_passes"),
    [("ab", {"ce"}, 0), ("fsp", {"ce"}, 0), ("fsp,ab", {"ce"}, 0), ("fsp:variant=joint", {"ce", "fsp"}, 1),
     ("ab,kd", {"ce", "kd"}, 1), ("ab,at", {"ce", "at"}, 1)],
)  # fmt: skip
def test_methods_that_only_initialise_cost_no_teacher_later(spec, terms, teacher_passes):
    distiller = build(spec, "resnet8", "resnet14")
    initialise(distiller)
    passes = []
    distiller.teacher.stem.register_forward_hook(lambda *_: passes.append(1))
    losses = distiller.train()(*batch_for(distiller))
    assert losses.keys() == {"total"} | terms and len(passes) == teacher_passes
    weighted = sum(distiller.weights[name] * losses[name] for name in terms)
    torch.testing.assert_close(losses["total"].detach(), weighted)


@pytest.mark.parametrize("student", ["resnet8", "wrn_16_1", "vgg8", "ShuffleV1"])
@pytest.mark.parametrize("name", ["ab", "ft", "fsp", "sskd"])
def test_all_that_an_initialisation_does_not_freeze_gets_a_gradient(name, student):
    """Leave no parameter without gradient, which other processes would wait for."""
    distiller = build(name, student, student if name == "fsp" else "resnet14")
    (_, first), *_ = distiller.initialisations()
    first.task.train()(*batch())["total"].backward()
    learns = {key: p for key, p in first.task.named_parameters() if p.requires_grad}
    assert learns and [key for key, p in learns.items() if p.grad is None] == []


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_what_learns_and_nothing_else(name):
    distiller = build(f"{spec_of(name)}", *NETWORKS.get(name, ()))
    initialise(distiller)
    before = copy.deepcopy(distiller.teacher.state_dict())
    for parameter in learning(distiller):
        parameter.grad = None
    distiller.train()
    distiller(*batch_for(distiller))["total"].backward()
    silent = [number for number, p in enumerate(learning(distiller)) if p.grad is None or not p.grad.isfinite().all()]
    assert not silent
    assert all(p.grad is None for p in distiller.teacher.parameters())
    assert all(torch.equal(before[key], value) for key, value in distiller.teacher.state_dict().items())


@pytest.mark.parametrize(
    ("pair", "name"),
    [(pair, name) for i, name in enumerate(NAMES) for j, pair in enumerate(PAIRS) if (i + j) % len(PAIRS)],
)
def test_networks_of_other_families(name, pair):
    """Train two of three pairs, or refuse them and say what does not fit."""
    try:
        distiller = build(spec_of(name), *pair, size=32)
    except ValueError as error:
        assert name in str(error)
        return
    initialise(distiller)
    terms = distiller(*batch_for(distiller, 4, size=32))
    assert terms["total"].isfinite()
    assert set(terms) == {"total", "ce", name} - ONLY_INITIALISE


@pytest.mark.parametrize("name", NAMES)
def test_with_kd(name):
    if name == "kd":
        pytest.skip("that is itself")
    distiller = build(f"kd=2,{spec_of(name)}", *NETWORKS.get(name, ()))
    terms, weights = distiller(*batch_for(distiller)), distiller.weights
    total = sum(weights[term] * value for term, value in terms.items() if term != "total")
    torch.testing.assert_close(terms["total"].detach(), total)
    assert weights["kd"] == 2 and weights["ce"] == 1


@pytest.mark.parametrize("name", NAMES)
def test_half_precision(name):
    distiller = build(spec_of(name), *NETWORKS.get(name, ()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        initialise(distiller)
        terms = distiller(*batch_for(distiller))
    assert all(term.dtype == torch.float32 and term.dim() == 0 and term.isfinite() for term in terms.values())
    terms["total"].backward()
