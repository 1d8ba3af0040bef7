"""Finished jobs, written as a run writes them, for the report's tests."""

from __future__ import annotations

import json
from pathlib import Path

METHODS = ("sp,kd=1", "kd", "at:p=1<2>,kd=1")
"""Not in alphabetical order. The last one is no possible folder name, and has something like an HTML tag in it."""

TOP1 = {
    # method: (standard, SFTN), one figure per seed
    "sp,kd=1": ((70.0, 71.0, 72.0), (71.0, 73.0, 75.0)),
    "kd": ((70.0, 70.0, 70.0), (69.0, 70.0, 69.5)),
    "at:p=1<2>,kd=1": ((60.0, 61.0, 62.0), (60.5, 62.0)),
}


def add_job(folder: Path, name: str, seed: int, top1: float, method: str | None = None) -> None:
    """Write the results of a finished job."""
    student = name not in ("teacher", "sftn")
    result = {
        "name": name,
        "seed": seed,
        "network": "resnet8x4" if student else "resnet32x4",
        "parameters": 12345,
        "epochs": 240,
        "last": {"top1": top1, "ce": 1.0, "epoch": 240},
        "best": {"top1": top1 + 0.5, "ce": 1.0, "epoch": 230},
        "agreement": 80.0 if student else None,
        "agreement5": 90.0 if student else None,
        "kl": 0.25 if student else None,
        "cka": 0.9 if student else None,
        "calibration_error": 5.0 if student else None,
        "seconds": 10.0,
        "images_per_second": 1000.0,
        "data_wait_share": 0.1,
        "devices": 2,
        "environment": {"torch": "9.9", "device": "A & B <GPU>", "finished": "2026-01-01T00:00:00"},
        "identity": {"distill": method} if method else {},
    }
    job = folder / f"seed{seed}" / name
    job.mkdir(parents=True)
    (job / "result.json").write_text(json.dumps(result))
    lines = [f"{epoch},{top1 * epoch / 240}" for epoch in range(60, 241, 60)]
    (job / "summary.csv").write_text("\n".join(["epoch,test_top1", *lines, ""]))
