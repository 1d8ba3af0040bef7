"""What the loggers are told of an experiment: a run for each training, and one with the results of all."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sftn_fast import cli
from sftn_fast.config import Config
from sftn_fast.experiment.plan import Job
from sftn_fast.experiment.settings import flat
from sftn_fast.loggers import RunInfo, Services, run_ids
from sftn_fast.utils import run_files
from sftn_fast.utils.environment import surroundings

PICTURES = ("report.png", "curves.png")
SUMMARY = "summary"
FIGURES = ("agreement", "agreement5", "kl", "cka", "calibration_error", "seconds", "images_per_second")
"""Figures of ``result.json`` that are logged under the same names; others as in ``results.csv``."""


def names(config: Config) -> tuple[str, ...]:
    """Return the loggers of a configuration."""
    return (*config.logger, *(["tensorboard"] if config.engine.tensorboard else []))


def describe(config: Config, job: Job, root: Path, device: torch.device, *, part: str | None = None) -> RunInfo:
    """Return what services are told about a job, or about the ``part`` of it that has a folder of its own."""
    about = {"name": job.name, "kind": job.kind, "seed": job.seed, "network": job.behaviour.networks(config)[-1]}
    parameters = flat({**cli.to_dict(config), "job": about, "environment": surroundings(device)})
    folder = job.folder(root)
    info = RunInfo(root.name, job.place, job.kind, root, folder, parameters)
    if part is None:
        return info
    return dataclasses.replace(info, name=f"{job.place}/{part}", kind="initialisation", folder=folder / part)


def figures(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of a job's ``result.json`` that services are told."""
    found = {
        "top1_last": result["last"]["top1"],
        "top1_best": result["best"]["top1"],
        "top1_ema": result.get("ema", {}).get("top1"),
        "parameters": result["parameters"],
        **{name: result.get(name) for name in FIGURES},
    }
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}


def log_summary(config: Config, jobs: Sequence[Job], root: Path, services: Services) -> None:
    """Log the results of all jobs and the report's pictures as a run of its own, unless they are there already."""
    known = run_ids.read(root)
    waiting = [name for name in services.names if _sent(known, name) < len(jobs)]
    if not waiting:
        return
    parameters = flat(cli.to_dict(config))
    with services.open(RunInfo(root.name, SUMMARY, SUMMARY, root, root, parameters)) as run:
        results = {
            f"{job.place}/{name}": value
            for job in jobs
            for name, value in figures(run_files.read_result(job.folder(root))).items()
        }
        run.begin(len(jobs), {})
        run.results(results)
        run.pictures([root / name for name in PICTURES if (root / name).is_file()])


def _sent(known: Mapping[str, run_ids.Entry], name: str) -> int:
    return known[name].sent.get("result", 0) if name in known else 0
