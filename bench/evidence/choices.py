"""Measure the choices that the SFTN paper leaves open: `python -m bench.evidence.choices [--only NAME ...]`.

For each choice a student-friendly teacher and a student of it by KD are trained for each seed, all else being equal.
The setting is that of ``make demo``, see ``choices.yaml``. A row of the table is a choice, with the paired differences
to the defaults and the p of a paired t-test, corrected by Holm. A second call keeps what is finished.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.tables import markdown
from sftn_fast.report.results import AGREEMENT, KL, TOP1, read_results
from sftn_fast.report.statistics import format_p, holm, mean_and_deviation, paired

HERE = Path(__file__).parent
RECIPE = HERE / "choices.yaml"
BASE = "defaults"
CHOICES: dict[str, dict[str, str]] = {
    BASE: {},
    "the divergence in the other direction": {"sftn.direction": "branch_to_teacher"},
    "sum over the branches": {"sftn.branch_reduction": "sum"},
    "KL's gradient to the branches alone": {"sftn.kl_gradient": "branches"},
    "KL weight 0": {"sftn.kl_weight": "0"},
    "KL weight 0.5": {"sftn.kl_weight": "0.5"},
    "KL weight 1": {"sftn.kl_weight": "1"},
    "KL weight 10": {"sftn.kl_weight": "10"},
    "KL warmed up over half the epochs": {"sftn.kl_warmup_epochs": "3"},
    "temperature 4": {"sftn.temperature": "4"},
    "no branch on the first stage": {"sftn.branch_stages": "2"},
    "one copy of the student for all branches": {"sftn.share_student": "true"},
    "branches learn at a tenth of the rate": {"sftn.branch_lr": "0.1"},
    "no weight decay on the branches": {"sftn.branch_weight_decay": "0"},
    "student begins as its branch": {"sftn.init_student": "true"},
}
TEACHER, STUDENT = "sftn", "distill-sftn"
MEASURED = {"top1_last": TOP1, "agreement": AGREEMENT, "kl": KL}
HEADS = ["choice", "SFTN teacher %", "difference", "student %", "difference", "p (Holm)", "agreement %", "KL", "n"]
Run = dict[str, dict[str, dict[int, float]]]
"""Figures by job, name and seed."""


def options(name: str) -> list[str]:
    """Return the options of the choice on a command line."""
    return [word for key, value in CHOICES[name].items() for word in (f"--{key}", value)]


def train(name: str, root: Path, more: list[str]) -> Path:
    """Train one choice, unless it is finished, and return its folder."""
    folder = root / re.sub(r"[^a-zA-Z0-9.]+", "_", name)
    command = ["-m", "sftn_fast.train", "--config", str(RECIPE), "--output", str(folder), *options(name), *more]
    subprocess.run([sys.executable, *command], check=True)
    return folder


def read(folder: Path) -> Run:
    """Return the figures of the run in ``folder``."""
    return {row.name: {name: row.by_seed(column) for name, column in MEASURED.items()} for row in read_results(folder)}


def load(path: Path) -> dict[str, Run]:
    """Return the figures of each choice that ``--json`` wrote to ``path``, where seeds are text."""
    return json.loads(path.read_text(), object_hook=_with_numbers)


def _with_numbers(mapping: dict[str, Any]) -> dict[Any, Any]:
    return {int(key) if key.isdecimal() else key: value for key, value in mapping.items()}


def table(results: dict[str, Run]) -> str:
    """Return a line for each choice, as Markdown."""
    gains = {name: paired(_top1(run, STUDENT), _top1(results[BASE], STUDENT)) for name, run in results.items()}
    tested = [name for name in results if name != BASE]
    corrected = dict(zip(tested, holm([gain.p if (gain := gains[name]) else None for name in tested]), strict=True))
    lines = []
    for name, run in results.items():
        teacher, student = _top1(run, TEACHER), run[STUDENT]
        p = corrected.get(name)
        lines.append(
            [
                name,
                mean_and_deviation([*teacher.values()], 2),
                "-" if name == BASE else str(paired(teacher, _top1(results[BASE], TEACHER)) or "-"),
                mean_and_deviation([*_top1(run, STUDENT).values()], 2),
                "-" if name == BASE else str(gains[name] or "-"),
                "-" if p is None else format_p(p),
                mean_and_deviation([*student["agreement"].values()], 1),
                mean_and_deviation([*student["kl"].values()], 3),
                str(len(teacher)),
            ]
        )
    return markdown(HEADS, lines)


def _top1(run: Run, job: str) -> dict[int, float]:
    return run[job]["top1_last"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.evidence.choices", description="Measure SFTN's choices.")
    parser.add_argument("--only", nargs="+", choices=CHOICES, metavar="NAME", help="; ".join(CHOICES))
    parser.add_argument("--output", type=Path, default=Path("runs/choices"), help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="file for the figures of each seed")
    args, more = parser.parse_known_args()
    names = [BASE, *(name for name in args.only or CHOICES if name != BASE)]
    results = {name: read(train(name, args.output, more)) for name in names}
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
