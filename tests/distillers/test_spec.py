"""Specifications of ``--distill``: what they mean, and what is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sftn_fast.config import ConfigError
from sftn_fast.distillers.spec import Spec, Term, parse

ACCEPTED = {
    "kd": Spec((Term("kd"),)),
    "kd=0.9": Spec((Term("kd", 0.9),)),
    "kd=1,ce=0.5": Spec((Term("kd", 1.0),), ce_weight=0.5),
    "ce=0,kd": Spec((Term("kd"),), ce_weight=0.0),
    "kd,ce": Spec((Term("kd"),)),
    "kd=1e-3": Spec((Term("kd", 1e-3),)),
    "kd:temperature=2": Spec((Term("kd", None, {"temperature": 2.0}),)),
    " kd = 0.9 : temperature = 2 , ce = 0.5 ": Spec((Term("kd", 0.9, {"temperature": 2.0}),), ce_weight=0.5),
}

REFUSED = {
    "": "unknown method ''",
    "kdd": "unknown method 'kdd', known are ce, .*kd",
    "KD": "unknown method 'KD'",
    "kd,": "unknown method ''",
    "ce=1": "at least one method of .*kd",
    "kd,kd=2": "'kd' is given 2 times",
    "kd,ce=1,ce=1": "'ce' is given 2 times",
    "lskd:standardize=false": "lskd is kd with standardize=true; write kd for the other one",
    "wttm=2:weighted=false": "wttm is ttm with weighted=true; write ttm",
    "kd=0,ce=0": "every weight is 0, so that nothing would be learned; give one above 0",
    "ce=0,at=0,kd=0": "every weight is 0",
    "kd=": "weight must be a finite number at least 0, got ''",
    "kd=much": "got 'much'",
    "kd=-0.1": "got '-0.1'",
    "kd=nan": "got 'nan'",
    "kd=inf": "got 'inf'",
    "kd=1=2": "got '1=2'",
    "kd:tau=4": r"unknown option 'tau', kd takes temperature \(a finite number greater than 0\)",
    "kd:temperature": "temperature must be a finite number greater than 0, got ''",
    "kd:temperature=-1": "temperature must be a finite number greater than 0, got '-1'",
    "kd:temperature=0": "got '0'",
    "kd:temperature=nan": "got 'nan'",
    "kd:temperature=inf": "got 'inf'",
    "kd:temperature=1:temperature=2": "option 'temperature' is given twice",
    "kd:": "unknown option ''",
    "kd,ce=1:temperature=2": "unknown option 'temperature', ce takes no options",
}


@pytest.mark.parametrize("text", ACCEPTED)
def test_accepts(text: str) -> None:
    assert parse(text) == ACCEPTED[text]


@pytest.mark.parametrize("text", REFUSED)
def test_refuses_in_one_line_that_names_the_piece(text: str) -> None:
    with pytest.raises(ConfigError, match=REFUSED[text]) as refusal:
        parse(text)
    assert "\n" not in str(refusal.value)
    pieces = [text, *(piece.strip() for piece in text.split(","))]
    assert any(repr(piece) in str(refusal.value) for piece in pieces)


@pytest.mark.parametrize("text", ["kd", "kd=0.9,ce=0.1", "nonsense", "kd=-1"])
def test_names_and_weights_are_checked_without_torch(text: str) -> None:
    program = """
import sys
from sftn_fast.config import ConfigError
from sftn_fast.distillers.spec import parse
try:
    parse(sys.argv[1])
except ConfigError:
    pass
sys.exit("torch was imported" if "torch" in sys.modules else 0)
"""
    done = subprocess.run([sys.executable, "-c", program, text], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
