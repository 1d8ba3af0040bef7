"""JSON without NaN and infinity, and result files of a training that diverged."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from sftn_fast import report
from sftn_fast.report import results
from sftn_fast.utils import run_files, strict_json
from sftn_fast.utils.checksummed import read_sealed, seal

DIVERGED: dict[str, Any] = {"last": {"epoch": 3, "top1": 10.0, "ce": math.nan}, "kl": math.inf, "rows": [1, -math.inf]}
STRICT = {"last": {"epoch": 3, "top1": 10.0, "ce": None}, "kl": None, "rows": [1, None]}


def strictly(text: str) -> Any:
    return json.loads(text, parse_constant=pytest.fail)


@pytest.mark.parametrize("indent", [None, 2])
def test_numbers_that_are_not_finite_become_null(indent: int | None) -> None:
    assert strictly(strict_json.dumps(DIVERGED, indent=indent)) == STRICT


@pytest.mark.parametrize("value", [0.0, -1.5, 2**70, True, None, "NaN", {"a": []}])
def test_everything_else_stays(value: object) -> None:
    assert strictly(strict_json.dumps(value)) == value


def test_a_sealed_file_is_strict_json_and_fits_its_checksum(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(seal(DIVERGED))
    strictly((tmp_path / "result.json").read_text())
    found = read_sealed(tmp_path / "result.json")
    assert {key: found[key] for key in STRICT} == STRICT


def test_a_file_of_an_older_version_that_holds_nan_is_still_read(tmp_path: Path) -> None:
    text = '{"kl": NaN, "digest": "10ccf1c4236655f1b596fbb1de093949e46e256e84800837bab0179ba48b1b10"}'
    (tmp_path / "result.json").write_text(text)
    assert math.isnan(read_sealed(tmp_path / "result.json")["kl"])


def test_readers_of_results_take_null_for_a_figure_that_there_is_not(tmp_path: Path) -> None:
    about = {"name": "student", "seed": 0, "network": "resnet8", "parameters": 1, "epochs": 3}
    rest = {"best": DIVERGED["last"], "seconds": 1.0, "images_per_second": 2.0, "data_wait_share": 0.0, "agreement": 1}
    folder = tmp_path / "seed0" / "student"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(seal({**about, **rest, **DIVERGED}))
    assert run_files.read_result(folder)["last"]["ce"] is None
    (row,) = report.read_results(tmp_path)
    assert row.by_seed(results.KL) == {} and row.by_seed(results.TOP1) == {0: 10.0}
