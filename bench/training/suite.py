"""Measures whole steps of training, implementations in turns, and records them."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench import chart, record
from bench.family import Row, first_line
from bench.measure import MIN_TURNS, interleaved
from bench.training.cases import CASES, TrainingCase
from bench.training.split import PARTS

ALWAYS = ("eager", "ours")
FURTHER = ("ours, NCHW", "ours, bf16", "ours, compile")  # for the first case alone
TURN = 1.0
"""Seconds that an implementation trains, roughly, before it is the next one's turn; one more step goes before it."""


class Trainer:
    """An implementation in a process of its own, so that neither's allocator, threads or memory touch the other's."""

    def __init__(self, case: TrainingCase, implementation: str) -> None:
        what = (case.method, case.teacher, case.student, str(case.batch_size), implementation)
        command = [sys.executable, "-m", "bench.training.worker", *what]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self.first_step: float = self._answer()["first_step"]
        self.seconds: list[float] = []
        self.split: list[dict[str, float]] = []
        self.peak_bytes = 0
        self._steps(1)

    def turn(self) -> None:
        """Train for about :data:`TURN`, after a step that does not count."""
        answer = self._steps(1 + max(1, round(TURN / self.step_seconds)))
        self.seconds += answer["seconds"][1:]
        self.split += answer["split"][1:]

    def _steps(self, count: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        answer = self._answer()
        self.step_seconds = min(answer["seconds"])
        self.peak_bytes = answer["peak_bytes"]
        return answer

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None and self._process.stderr is not None
        line = self._process.stdout.readline()
        if not line:
            lines = self._process.stderr.read().strip().splitlines()
            raise RuntimeError(lines[-1] if lines else f"exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def header() -> str:
    names = ["case", "implementation", "p20 ms", "p50 ms", "p80 ms", "n", "images/s", "times eager", "peak MiB"]
    cells = [*names, "first step ms", *(f"{part} ms" for part in PARTS)]
    rule = ["---", "---", *["---:"] * (len(cells) - 2)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (cells, rule))


def line(row: Row) -> str:
    if "error" in row:
        return f"| {row['case']} | {row['implementation']} | {row['error'].replace('|', '/')} |"
    if "split" not in row:
        return f"| {row['case']} | {row['implementation']} | {row['p20']} | {row['p50']} | {row['p80']} | {row['n']} |"
    cells = [row[key] for key in ("case", "implementation", "p20", "p50", "p80", "n", "images_per_second")]
    cells += [f"{row['ratio']:.2f}", f"{row['peak_bytes'] / 2**20:,.0f}", row["first_step"]]
    return f"| {' | '.join(map(str, [*cells, *(row['split'].get(part, '') for part in PARTS)]))} |"


def write(name: str, about: dict[str, Any], rows: list[Row], folder: Path) -> None:
    """The record under ``folder``: rows, page and picture."""
    how = (
        f"{record.facts(about)}. A step from the data to the updated weights, float32 but for `bf16`, images of "
        "32 x 32 in 100 classes. `eager` is the usual loop (bench/eager/training.py): PIL transforms in two loader "
        "processes, the authors' losses, torch's SGD. `ours` is what `python -m sftn_fast.train` runs; `NCHW` with "
        "engine.channels_last=false, `bf16` with engine.amp=bf16, `compile` with engine.compile=true. Each trains in a "
        f"process of its own, in turns of about {TURN:g} s; n counts steps. Peak is the process's resident memory, all "
        "images included, loader processes not. The parts are medians; the rest holds losses and checks. The last rows "
        "are starts of Python from the shell to its end; the first step, in the table, is without compilation but for "
        "`compile`."
    )
    text = ["# training: whole steps", "", how, "", f"![training]({name}.png)", "", header(), *map(line, rows)]
    record.save(name, about, rows, text, folder)
    chart.draw(folder / f"{name}.png", "training", about, rows, of_what="the usual loop, a whole step")


def measure(seconds: float, report: Callable[[Row], None], *, compile: bool) -> list[Row]:
    """Rows of all cases, each of which trains for about ``seconds``, starts not counted."""
    rows = []
    for number, case in enumerate(CASES):
        further = [name for name in FURTHER if number == 0 and (compile or name != "ours, compile")]
        for row in measure_case(case, [*ALWAYS, *further], seconds):
            rows.append(row)
            report(row)
    for row in starts():
        rows.append(row)
        report(row)
    return rows


def starts() -> Iterator[Row]:
    """How long Python takes to do next to nothing with the package, and with torch alone."""
    commands = {
        "import torch": ["-c", "import torch"],
        "import sftn_fast.ops": ["-c", "import sftn_fast.ops"],
        "python -m sftn_fast.train --help": ["-m", "sftn_fast.train", "--help"],
    }
    runs = {
        name: partial(subprocess.run, [sys.executable, *command], check=True, capture_output=True)
        for name, command in commands.items()
    }
    for name, timing in interleaved(dict(runs), turns=5).items():
        times = {key: round(getattr(timing, key) / 1e3, 1) for key in ("p20", "p50", "p80")}
        yield {"case": "start", "implementation": name, "n": timing.n, **times}


def measure_case(case: TrainingCase, implementations: list[str], seconds: float) -> Iterator[Row]:
    """A row each; the usual loop is the first of ``implementations``."""
    trainers: dict[str, Trainer] = {}
    failures = {}
    try:
        for name in implementations:
            try:
                trainers[name] = Trainer(case, name)
            except RuntimeError as error:  # as without a C++ compiler; the others go on
                failures[name] = first_line(error)
        start = time.perf_counter()
        turns = 0
        while turns < MIN_TURNS or time.perf_counter() - start < seconds:
            turns += 1
            for trainer in trainers.values():
                trainer.turn()
    finally:
        for trainer in trainers.values():
            trainer.close()
    eager = statistics.median(trainers["eager"].seconds)
    for name, trainer in trainers.items():
        yield _row(case, name, trainer, eager)
    for name, error in failures.items():
        yield {"case": case.name, "implementation": name, "error": error}


def _row(case: TrainingCase, name: str, trainer: Trainer, eager: float) -> Row:
    p20, _, _, p80 = statistics.quantiles(trainer.seconds, n=5)
    p50 = statistics.median(trainer.seconds)
    split = {part: statistics.median(step.get(part, 0.0) for step in trainer.split) for part in PARTS}
    return {
        "case": case.name,
        "implementation": name,
        "n": len(trainer.seconds),
        **{key: round(1e3 * value, 1) for key, value in (("p20", p20), ("p50", p50), ("p80", p80))},
        "images_per_second": round(case.batch_size / p50, 1),
        "ratio": round(eager / p50, 3),
        "peak_bytes": trainer.peak_bytes,
        "first_step": round(1e3 * trainer.first_step, 1),
        "split": {part: round(1e3 * seconds, 1) for part, seconds in split.items()} if name != "ours, compile" else {},
    }
