"""Measure what a run's teachers have to teach: `python -m bench.evidence.teachers RUN [--json FILE]`.

For each teacher, on its training images as they are and on the test images: accuracy, confidence, calibration error,
and the entropy of its predictions at the temperature of distillation, which is what they say beside the label. For
each student taught by ``--method``: the linear CKA of each of its stages with the teacher's stage at the same relative
depth. Means and sample deviations over the run's seeds, as a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from bench.tables import markdown
from sftn_fast import cli, data, models
from sftn_fast.data import Batch
from sftn_fast.experiment.identity import teaching_folder
from sftn_fast.experiment.kinds import KINDS
from sftn_fast.experiment.plan import plan
from sftn_fast.experiment.similarity import CKA, CKA_BATCH, Calibration
from sftn_fast.models import StagedNet
from sftn_fast.report.statistics import mean_and_deviation

TEMPERATURE = 4.0
Figures = dict[str, float]
COLUMNS = {
    "accuracy, train %": ("train", "accuracy", 2),
    "test %": ("test", "accuracy", 2),
    "confidence, train %": ("train", "confidence", 2),
    "confidence, test %": ("test", "confidence", 2),
    "calibration error, test %": ("test", "calibration_error", 2),
    "entropy at T 4, train, bits": ("train", "soft_entropy", 3),
}
"""Heading of each column: part, figure, digits."""


@torch.no_grad()
def predictions(network: StagedNet, batches: Iterable[Batch]) -> Figures:
    """Return accuracy, confidence and calibration error in percent, and the softened entropy in bits."""
    sums, calibration = torch.zeros(4, dtype=torch.float64), Calibration()
    for batch in batches:
        logits = network(batch.images).double()
        soft = (logits / TEMPERATURE).log_softmax(1)
        entropy = -(soft.exp() * soft).sum() / math.log(2)
        right = (logits.argmax(1) == batch.target).double().sum()
        sums += torch.stack([right, logits.softmax(1).max(1).values.sum(), entropy, torch.tensor(float(len(logits)))])
        calibration.add(logits, batch.target)
    right, confidence, entropy, count = sums.tolist()
    return {
        "accuracy": 100 * right / count,
        "confidence": 100 * confidence / count,
        "calibration_error": 100 * calibration.error(),
        "soft_entropy": entropy / count,
    }


def stage_alignment(student: StagedNet, teacher: StagedNet, batches: Iterable[Batch]) -> list[float]:
    """Return the CKA of each stage of ``student``, its maps averaged over positions, with the teacher's."""
    depth = teacher.num_stages / student.num_stages
    places = [max(0, round((stage + 1) * depth) - 1) for stage in range(student.num_stages)]
    alignments = [CKA() for _ in places]
    with torch.no_grad():
        for batch in batches:
            ours, theirs = (network.forward_features(batch.images).stages for network in (student, teacher))
            for cka, own, place in zip(alignments, ours, places, strict=True):
                pair = (F.adaptive_avg_pool2d(maps, 1).flatten(1).split(CKA_BATCH) for maps in (own, theirs[place]))
                for part in zip(*pair, strict=True):
                    cka.add(*part)
    return [value if (value := cka.value()) is not None else math.nan for cka in alignments]


def measure(folder: Path, method: str | None) -> list[dict[str, Any]]:
    """Return the figures of each finished teacher of the run in ``folder``, and of its student by ``method``."""
    config = cli.load(folder / "config.yaml")
    images = data.build(config.data, seed=0, batch_size=config.optim.batch_size, device="cpu")
    done = [job for job in plan(config) if job.is_finished(folder)]
    rows: list[dict[str, Any]] = []
    for job in done:
        if not job.behaviour.teaches:
            continue
        teacher = models.load(teaching_folder(config, folder / f"seed{job.seed}", job.name))
        row = {"seed": job.seed, "teacher": job.name}
        row |= {"train": predictions(teacher, images.train.unaugmented()), "test": predictions(teacher, images.test)}
        for taught in done:
            if (taught.seed, taught.source, taught.method) == (job.seed, job.name, method):
                row["cka"] = stage_alignment(models.load(taught.folder(folder)), teacher, images.test)
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the means over the seeds as a table in Markdown, a line for each teacher."""
    lines = []
    for teacher in dict.fromkeys(row["teacher"] for row in rows):
        own = [row for row in rows if row["teacher"] == teacher]
        cells = [mean_and_deviation([row[part][key] for row in own], digits) for part, key, digits in COLUMNS.values()]
        stages = [row["cka"] for row in own if "cka" in row]
        ckas = ", ".join(mean_and_deviation(list(stage), 3) for stage in zip(*stages, strict=True))
        lines.append([KINDS[teacher].labels[teacher], *cells, ckas or "-", str(len(own))])
    return markdown(["teacher", *COLUMNS, "CKA by stage", "n"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.evidence.teachers", description="Measure a run's teachers.")
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("--method", help="losses whose students are measured, as in --methods (default: the first)")
    parser.add_argument("--json", type=Path, help="file for the figures of each seed")
    args = parser.parse_args()
    config = cli.load(args.run / "config.yaml")
    rows = measure(args.run, args.method or next(iter(config.methods), None))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
