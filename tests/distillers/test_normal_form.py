"""Texts of ``--distill`` that describe the same training are found equal."""

from __future__ import annotations

import pytest

from sftn_fast import cli
from sftn_fast.config import ConfigError
from sftn_fast.distillers.normal_form import normal_form, refuse_equal
from sftn_fast.experiment import run as experiment

SAME = [
    ("kd", "kd=0.9,ce=0.1"),
    ("kd=0.9", "kd=0.90"),
    ("kd=1", "kd = 1"),
    ("kd", "kd:temperature=4"),
    ("kd=1,at=1000", "at=1e3,kd=1.0,ce=1"),
    ("attention=10", "at=10"),
    ("crd:nce_k=64", "crd:negatives=64"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_the_same_training(one: str, other: str) -> None:
    assert normal_form(one) == normal_form(other)
    with pytest.raises(ConfigError, match="methods must differ from each other") as caught:
        refuse_equal(["rkd", one, other])
    assert repr(one) in str(caught.value) and repr(other) in str(caught.value)


@pytest.mark.parametrize(
    ("one", "other"), [("kd", "kd=1"), ("kd", "kd:temperature=2"), ("kd", "kd,ce=1"), ("at", "at,kd"), ("sp", "pkt")]
)
def test_another_training(one: str, other: str) -> None:
    assert normal_form(one) != normal_form(other)
    refuse_equal([one, other])


def test_a_run_is_refused() -> None:
    config = cli.parse(["--methods", "kd", "kd=0.9,ce=0.1"])[0]
    with pytest.raises(ConfigError, match=r"got 'kd' and 'kd=0\.9,ce=0\.1', which are the same"):
        experiment._checked_plan(config)
