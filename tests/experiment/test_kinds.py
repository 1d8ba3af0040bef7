"""The kinds of jobs: one class each, found by name, and no other place that knows them by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sftn_fast.config import STAGES, Config
from sftn_fast.experiment.kinds import KINDS
from sftn_fast.experiment.labels import LABELS
from sftn_fast.experiment.plan import plan
from sftn_fast.utils import run_files

PACKAGE = Path(__file__).parents[2] / "sftn_fast"


def test_every_stage_of_the_command_line_is_a_kind():
    assert set(KINDS) == set(STAGES)
    assert all(KINDS[name].name == name for name in KINDS)


def test_folders_of_all_kinds_are_a_runs_own():
    assert tuple(LABELS) == run_files.KINDS


@pytest.mark.parametrize("name", STAGES)
def test_every_job_tells_what_it_is(name: str):
    config = Config(stages=tuple(dict.fromkeys(("teacher", name))))
    job = next(job for job in plan(config) if job.kind == name)
    assert job.behaviour.networks(config)[-1] in job.behaviour.describe(config, job)
    assert job.behaviour.networks(config)[-1] in (config.teacher, config.student)
    assert job.name in LABELS


def test_no_other_module_compares_kinds():
    ladders = [
        f"{path.relative_to(PACKAGE)}:{number}"
        for path in PACKAGE.rglob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if ".kind ==" in line or ".kind in (" in line
    ]
    assert not ladders


def test_kinds_import_no_torch():
    code = "import sys, sftn_fast.experiment.plan; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
