"""Every method and variant in half precision: everything after the features and its layers' outputs is float32.

Held against float64 on the same half-precision numbers, under autocast and without.
"""

from __future__ import annotations

import copy

import pytest
import torch
from every_loss import changed
from layers import LAYERS, gradients, leaves_of, recorded, replayed
from precision import assert_rounded_once
from test_methods import NAMES, NETWORKS, ONLY_INITIALISE, OPTIONS, batch, build

from sftn_fast.data import Batch
from sftn_fast.distillers.method import TwoViewMethod
from sftn_fast.distillers.methods.reviewkd import Fusion
from sftn_fast.models import Features

VARIANTS = ["kd:temperature=1", "at:p=1", "ft:variant=paper", "dkd:warmup=0:temperature=2", "dist:inter=2:intra=0.5"]
VARIANTS += ["cat:regions=4:normalise=true", "srd:projector=vkd", "wkd_f:grid=2", "kd:divergence=ab:standardize=true"]
SPECS = [OPTIONS.get(name, name) for name in NAMES if name not in ONLY_INITIALISE] + VARIANTS
ADAPTERS = (*LAYERS, Fusion)
ARITHMETIC = 2e-4  # of the largest gradient: float32 rounding in the sums of the largest method


def parts(features):
    """Return the tensors of a network's features as one nested list."""
    preacts = list(features.preacts or [])
    unpooled = [] if features.unpooled is None else [features.unpooled]
    return [features.stem, list(features.stages), preacts, features.pooled, features.logits, unpooled]


def joined(nest):
    stem, stages, preacts, pooled, logits, unpooled = nest
    return Features(stem, stages, preacts or None, pooled, logits, *unpooled)


def features_of(distiller, method, dtype):
    """Return both networks' features of a batch, rounded to a dtype, and the batch."""
    images, target, index = batch(6)
    more = method.extra_images(images)
    seen = images if more is None else torch.cat([images, more])
    with torch.no_grad():
        nets = [net.eval().forward_features(seen, preact=method.needs_preacts) for net in distiller._held]
    student, teacher = (changed(parts(features), lambda x: x.to(dtype)) for features in nets)
    return student, teacher, Batch(images, target, index)


def halves(features):
    count = len(features.logits) // 2
    return features.first(count), joined(changed(parts(features), lambda x: x[count:]))


def loss_of(method, student, teacher, of_batch):
    """Return the loss; for a method of two views the first half of the features is of the weak ones."""
    if isinstance(method, TwoViewMethod):
        return method.loss_of_views(halves(student), halves(teacher), of_batch)
    return method.loss(student, teacher, of_batch)


def test_every_method_is_here():
    assert {spec.split(":")[0] for spec in SPECS} == set(NAMES) - ONLY_INITIALISE


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32(spec, dtype):
    name = spec.split(":")[0]
    distiller = build(spec, *NETWORKS.get(name, ()))
    method = distiller.methods[0][name].train()
    method.begin_epoch(100)  # past any warm-up
    student, teacher, of_batch = features_of(distiller, method, dtype)
    wide = copy.deepcopy(method).double()
    student = leaves_of(student)
    torch.manual_seed(3)  # negatives
    with torch.autocast("cpu", dtype), recorded(method, ADAPTERS) as outputs:
        value = loss_of(method, joined(student), joined(teacher), of_batch)
    actual = gradients(value, student, outputs)

    wide_student, wide_teacher = (changed(x, torch.Tensor.double) for x in (student, teacher))
    wide_student, wide_outputs = leaves_of(wide_student), [x.detach().double().requires_grad_() for x in outputs]
    torch.manual_seed(3)
    with replayed(wide, wide_outputs, ADAPTERS):
        true_value = loss_of(wide, joined(wide_student), joined(wide_teacher), of_batch)
    assert value.item() == pytest.approx(true_value.item(), rel=ARITHMETIC)
    for grad, right in zip(actual, gradients(true_value, wide_student, wide_outputs), strict=True):
        assert_rounded_once(grad, right, ARITHMETIC)
