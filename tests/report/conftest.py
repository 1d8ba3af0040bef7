"""A finished run with several methods."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from finished_jobs import METHODS, TOP1, add_job

from sftn_fast import cli
from sftn_fast.experiment.plan import Job


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in range(3):
        for name, top1 in (("teacher", 79.0), ("sftn", 80.0), ("student", 72.0)):
            add_job(tmp_path, name, seed, top1 + seed)
    for method, figures in TOP1.items():
        for source, values in zip(("teacher", "sftn"), figures, strict=True):
            for seed, top1 in enumerate(values):
                add_job(tmp_path, Job("distill", seed, source, method).name, seed, top1, method)
    config, _ = cli.parse(["--config", "resnet32x4_resnet8x4"])
    settings = cli.to_dict(config) | {"methods": list(METHODS), "seeds": [0, 1, 2]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path
