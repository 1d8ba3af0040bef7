"""Methods on logits since 2021: golden values of the authors' code, options, and what they refuse."""

from __future__ import annotations

import math
from types import SimpleNamespace

import golden
import pytest
import torch
import torch.nn.functional as F
from test_methods import batch, build

from sftn_fast import distillers
from sftn_fast.data import Batch
from sftn_fast.distillers import registry
from sftn_fast.distillers.methods import uskd, wkd
from sftn_fast.distillers.normal_form import normal_form
from sftn_fast.distillers.spec import of_method, parse
from sftn_fast.models import Features

EXACT = {"rel": 1e-11, "abs": 1e-12}
BATCH = Batch(torch.zeros(4, 1, 1, 1), golden.TARGET, torch.arange(4))


def features(logits):
    return Features(logits, [], None, logits, logits)


def value(spec, student=golden.STUDENT_LOGITS):
    """Return the loss of a method that needs no network, on the golden logits."""
    (term,) = parse(spec).methods
    method = registry.find(term.name)(SimpleNamespace(), **term.options).double()
    return method.loss(features(student), features(golden.TEACHER_LOGITS), BATCH)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("kd:temperature=1", 1.1432231500326333),
        ("lskd", 0.598802310127021),
        ("lskd:temperature=4", 0.669595974960533),
        ("kd:temperature=1:divergence=reverse_kl", 1.8439509063188697),
        ("kd:temperature=1:divergence=ab", 0.8342954267871591),
        ("kd:temperature=4:divergence=ab", 16 * 0.14050059451297536),
        ("kd:temperature=1:divergence=ab:alpha=0.5:beta=0.5", 1.1415978288942839),
        ("kd:temperature=2:divergence=ab:alpha=0.9:standardize=true", 0.3753431279009521),
        ("kd:temperature=1:divergence=jsd:beta=0.5", 0.24095429824099296),
        ("kd:temperature=1:divergence=tvd", 0.5327167516528268),
        ("kd:temperature=1:divergence=skew_kl:alpha=0.1", 0.775343981914794),
        ("kd:temperature=1:divergence=skew_reverse_kl:alpha=0.1", 0.8413876121767869),
        ("dkd", 23.926962602379117),
        ("dkd:beta=2:temperature=2:standardize=true", 1.2995175612902152),
        ("nkd:gamma=1.5:temperature=1", 4.319939783286616),
        ("nkd", 73.56587517113174),
        ("ttm", 1.4079282216370554),
        ("ttm:gamma=0.5", 1.1979064640131312),
        ("wttm", 9.830386828275342),
        ("wttm:gamma=0.2", 6.79577690653228),
        ("rld", 15.79339244569035),
        ("rld:confidence_temperature=4", 15.662248716242505),
        ("wsld:temperature=2", 18.51470339886535 / 2.5),
        ("hard", 2.030241457395719),
        ("ctkd", 3.349997914118647),
    ],
)
def test_golden_values(spec, expected):
    student = golden.STUDENT_LOGITS.clone().requires_grad_()
    loss = value(spec, student)
    loss.backward()
    assert loss.item() == pytest.approx(expected, **EXACT)
    assert student.grad.isfinite().all() and student.grad.abs().sum() > 0


def test_wkd():
    weight = golden.wave((10, 6), 0.13, 0.2)
    settings = {"gamma": 30.0, "temperature": 2.0}
    net = SimpleNamespace(name="own", head=SimpleNamespace(fc=torch.nn.Linear(6, 10, bias=False, dtype=torch.float64)))
    net.head.fc.weight.data = weight
    method = registry.find("wkd")(SimpleNamespace(teacher=SimpleNamespace(net=net)), **settings)
    loss = method.loss(features(golden.STUDENT_LOGITS), features(golden.TEACHER_LOGITS), BATCH)
    assert loss.item() == pytest.approx(3.365121148209646, **EXACT)
    method.begin_epoch(300)
    label_alone = method.loss(features(golden.STUDENT_LOGITS), features(golden.TEACHER_LOGITS), BATCH)
    assert label_alone.item() == pytest.approx(0.6981733020568438, **EXACT)
    assert (wkd.cost_between_classes(weight, 1.0).diagonal() < 1e-6).all()


def test_uskd():
    """Compute the terms by loops over images and classes."""
    logits, auxiliary, target = golden.STUDENT_LOGITS, golden.TEACHER_LOGITS, golden.TARGET
    p, p_weak = logits.softmax(1), auxiliary.softmax(1)
    mean = sum(p[i, y].item() ** 2 for i, y in enumerate(target.tolist())) / 4
    own = others = 0.0
    for i, y in enumerate(target.tolist()):
        own -= (1 + p[i, y].item() ** 2 - mean) * math.log(p[i, y]) / 4
        scores = [
            (p_weak[i, c] / (1 - p_weak[i, y] + 1e-6) + p[i, c].log() / (1 - p[i, y].log() + 1e-6)).item()
            for c in range(10)
        ]
        ranks = {c: 1 + sum(other > scores[c] for other in scores) for c in range(10) if c != y}
        total, rest = sum(1 / rank for rank in ranks.values()), 1 - p[i, y]
        others -= sum((p[i, c] / rest).log().item() / rank / total for c, rank in ranks.items()) / 4
    weak = F.cross_entropy(auxiliary, target, label_smoothing=0.1).item()
    found = uskd.terms(logits, auxiliary, target, uskd.squared_confidence(logits, target).mean())
    assert [x.item() for x in found] == pytest.approx([own, others, weak], **EXACT)


def test_the_temperature_of_ctkd_climbs():
    method = registry.find("ctkd")(SimpleNamespace()).double()
    found = {}
    for epoch in (0, 4, 8, 9, 50):
        method.begin_epoch(epoch)
        method.theta.grad = None
        method.loss(features(golden.STUDENT_LOGITS), features(golden.TEACHER_LOGITS), BATCH).backward()
        found[epoch] = method.theta.grad.item()
    factors = {0: -0.024471741852423234, 4: -0.5, 8: -0.9755282581475768, 9: -1, 50: -1}
    assert found == pytest.approx({epoch: factor * 0.04019542001156981 for epoch, factor in factors.items()}, rel=1e-9)


@pytest.mark.parametrize("name", ["ctkd", "uskd"])
def test_what_learns_beside_the_student_gets_a_gradient(name):
    distiller = build(f"{name},ce=0")
    distiller.train()(*batch())["total"].backward()
    learns = dict(distiller.named_parameters())
    assert learns and all(p.grad is not None and p.grad.abs().sum() > 0 for p in learns.values())


@pytest.mark.parametrize("divergence", ["kl", "reverse_kl", "jsd", "ab", "tvd", "skew_kl", "skew_reverse_kl"])
@pytest.mark.parametrize("standardize", [False, True])
def test_kd_alone_equals_kd_among_others(divergence, standardize):
    """Alone it is computed together with the cross-entropy."""
    spec = f"kd=2:temperature=3:divergence={divergence}:standardize={str(standardize).lower()},ce=0.5"
    alone, among = build(spec), build(f"{spec},hard=0")
    alone.eval(), among.eval()
    ours, theirs = alone(*batch()), among(*batch())
    for term in ("total", "ce", "kd"):
        torch.testing.assert_close(ours[term].detach(), theirs[term].detach())


def test_variants_are_settings_of_their_method():
    assert normal_form("lskd") == normal_form("kd=9:temperature=2:standardize=true,ce=0.1")
    assert normal_form("lskd=6:temperature=3") == normal_form("kd=6:standardize=true:temperature=3")
    assert normal_form("wttm") == normal_form("ttm=3:weighted=true")
    assert of_method("lskd") == "lskd"
    with pytest.raises(ValueError, match=r"'kd' is given 2 times"):
        parse("kd,lskd")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("kd:divergence=ab:alpha=0", "kd: alpha of divergence=ab must be from 0.01 to 100, got 0"),
        ("kd:divergence=jsd:beta=1.5", "kd: beta of divergence=jsd must be at most 1, got 1.5"),
        ("kd:divergence=skew_kl:alpha=2", "kd: alpha of divergence=skew_kl must be at most 1, got 2"),
        ("kd:alpha=0.5", "kd: alpha is for divergence=ab or skew_kl or skew_reverse_kl; divergence=kl has none"),
        ("kd:divergence=jsd:alpha=0.5", "kd: alpha is for divergence=ab or skew_kl or skew_reverse_kl"),
        ("kd:divergence=skew_kl:beta=0.5", "kd: beta is for divergence=ab or jsd; divergence=skew_kl has none"),
        ("kd:divergence=tvd:beta=0", "kd: beta is for divergence=ab or jsd; divergence=tvd has none"),
        ("wkd:decay_start=9:decay_end=8", "wkd: decay_start must be at most decay_end, 8, got 9"),
    ],
)
def test_refused_options(spec, message):
    with pytest.raises(ValueError, match=message):
        build(spec)


@pytest.mark.parametrize("spec", ["kdd", "lskt"])
def test_names_that_may_have_been_meant(spec):
    with pytest.raises(ValueError, match="did you mean"):
        distillers.parse(spec)
