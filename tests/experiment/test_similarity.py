"""Likeness of two networks against computations by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sftn_fast.data import Batch
from sftn_fast.experiment import similarity
from sftn_fast.models import Features


class Table(nn.Module):
    """Answers image i with row i of a table of logits, which are its features as well."""

    def __init__(self, logits: list[list[float]]) -> None:
        super().__init__()
        self.register_buffer("logits", torch.tensor(logits))

    def forward_features(self, images: torch.Tensor) -> Features:
        logits = self.logits[images[:, 0, 0, 0].long()]
        return Features(images, [images], None, logits, logits)


def batches_of(labels: list[int], *sizes: int) -> list[Batch]:
    index = torch.arange(len(labels))
    parts = zip(index.split(list(sizes)), torch.tensor(labels).split(list(sizes)), strict=True)
    return [Batch(i.float().view(-1, 1, 1, 1), target, i) for i, target in parts]


def test_agreement_and_kl_over_uneven_batches() -> None:
    student = Table([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    teacher = Table([[1.0, 0.0], [3.0, 0.0], [0.0, 0.0]])
    batches = batches_of([0, 1, 1], 2, 1)
    measured = similarity.measure(student, teacher, batches)

    p, q = teacher.logits.double().softmax(1), student.logits.double().softmax(1)
    assert measured.kl == pytest.approx((p * (p / q).log()).sum().item() / 3, rel=1e-12)
    assert measured.agreement == pytest.approx(200 / 3)
    assert measured.agreement5 == 100.0  # there are two classes
    assert measured.cka is None  # three samples are too few
    itself = similarity.measure(teacher, teacher, batches)
    assert (itself.agreement, itself.kl) == (100.0, 0.0)


def test_the_teachers_class_among_the_students_first_five() -> None:
    student = Table([[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]] * 2)
    teacher = Table([[0.0, 0, 0, 0, 9, 0], [0.0, 0, 0, 0, 0, 9]])
    measured = similarity.measure(student, teacher, batches_of([0, 0], 2))
    assert (measured.agreement, measured.agreement5) == (0.0, 50.0)


def test_cka_of_rotated_and_scaled_features_is_one() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 6, generator=generator)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator))
    cka = similarity.CKA()
    for part in features.split(8):
        cka.add(part, 3 * part @ rotation + 1)
    assert cka.value() == pytest.approx(1.0, abs=1e-6)


def test_cka_is_the_population_value_whatever_the_batch() -> None:
    """Against the biased estimate of many samples, and near 0 for features that have nothing to do with each other."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4096, 5, generator=generator, dtype=torch.float64)
    b = torch.cat([a[:, :2], torch.randn(4096, 3, generator=generator, dtype=torch.float64)], 1)
    left, right = a - a.mean(0), b - b.mean(0)
    population = (left.T @ right).norm() ** 2 / ((left.T @ left).norm() * (right.T @ right).norm())
    for size in (16, 256):
        cka, unrelated = similarity.CKA(), similarity.CKA()
        for one, other in zip(a.split(size), b.split(size), strict=True):
            cka.add(one, other)
            unrelated.add(one[:, :2], other[:, 2:])
        assert cka.value() == pytest.approx(population.item(), abs=0.01)
        assert abs(unrelated.value()) < 0.01


def test_cka_of_constant_features_is_undefined() -> None:
    cka = similarity.CKA()
    cka.add(torch.ones(5, 2), torch.randn(5, 2))
    assert cka.value() is None


def test_calibration_error_by_hand() -> None:
    calibration = similarity.Calibration(bins=10)
    confidence = torch.tensor([0.95, 0.95, 0.85, 0.61], dtype=torch.float64)
    logits = torch.stack([confidence, 1 - confidence], 1).log()
    calibration.add(logits[:3], torch.tensor([0, 1, 0]))
    calibration.add(logits[3:], torch.tensor([0]))
    expected = (2 * abs(0.5 - 0.95) + abs(1 - 0.85) + abs(1 - 0.61)) / 4
    assert calibration.error() == pytest.approx(expected)


def test_calibration_error_of_a_network_gone_astray_is_not_a_number() -> None:
    calibration = similarity.Calibration()
    calibration.add(torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), torch.tensor([1, 0]))
    assert math.isnan(calibration.error())
