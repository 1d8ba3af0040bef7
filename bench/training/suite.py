"""Measurement of whole training steps. Implementations take turns."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench import chart, record
from bench.family import first_line
from bench.measure import MIN_TURNS, Effort, Spread, interleaved, intervals, settled
from bench.record import Row
from bench.training.cases import CASES, WORKERS, TrainingCase
from bench.training.split import PARTS
from bench.training.worker import OURS, PROFILE, USUAL

ALWAYS = {device: [*usual, "ours"] for device, usual in USUAL.items()}
"""Implementations that run in each case; the others run in the first case only."""
TURN = 1.0
"""Approximate seconds of an implementation's turn."""

SECONDS_TO_PREPARE, SECONDS_A_CASE, SECONDS_OF_STARTS = 5.0, 20.0, 25.0
"""Seconds of an implementation, of a case's steps and of the starts of Python, on bench.progress.REFERENCE."""

UNCOUNTED = {"cpu": 1, "cuda": 2 * WORKERS}
"""Uncounted steps before a turn. On a GPU they use up the batches that loader processes prepared in the meantime. On a
CPU that would take longer than the turns, so the usual loop gets those batches for free; and a turn of a single step,
which is longer than the caches remember, needs no other one before it."""


class Trainer:
    """An implementation in a separate process, so that allocators, threads and memory do not affect each other.

    The constructor starts the process, which prepares all but the first step, beside others that do the same.
    :meth:`begin` and :meth:`turn` raise RuntimeError, with the process's last line, if the process has ended.
    """

    def __init__(self, case: TrainingCase, implementation: str, device: str) -> None:
        what = (device, case.method, case.teacher, case.student, str(case.batch_size), implementation)
        command = [sys.executable, "-m", "bench.training.worker", *what]
        pipe = subprocess.PIPE
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed in close(); an unread pipe would fill up
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._errors, text=True)
        self._device = device
        self.first_step = 0.0
        self.turns: list[list[float]] = []  # seconds of each step
        self.split: list[dict[str, float]] = []
        self.shares: dict[str, float] = {}  # of the layers in a step
        self.said: list[str] = []
        self.peak_bytes = 0

    def prepared(self) -> None:
        """Wait until the process could take its first step."""
        self._answer()

    def begin(self) -> None:
        """Take the first steps, while nothing else runs."""
        self.first_step = self._steps(0, 1)["seconds"][0]
        self._steps(UNCOUNTED[self._device] - 1, 1)

    def turn(self) -> None:
        """Train for about :data:`TURN` seconds, after uncounted steps."""
        single = self._device == "cpu" and self.step_seconds >= TURN
        answer = self._steps(0 if single else UNCOUNTED[self._device], max(1, round(TURN / self.step_seconds)))
        self.turns.append(answer["seconds"])
        self.split += answer["split"]

    def profile(self) -> None:
        """Take one step under PyTorch's profiler, which makes it slower."""
        self.shares = self._ask(PROFILE)["shares"]

    @property
    def seconds(self) -> list[float]:
        """The seconds of every step."""
        return [step for turn in self.turns for step in turn]

    def _steps(self, uncounted: int, counted: int) -> dict[str, Any]:
        answer = self._ask(f"{uncounted} {counted}")
        self.step_seconds = min(answer["seconds"])
        self.peak_bytes = answer["peak_bytes"]
        return answer

    def _ask(self, what: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            lines = self._errors.read().strip().splitlines()
            raise RuntimeError(lines[-1] if lines else f"exit code {code}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process, and keep the engine's messages about features it could not use."""
        self._process.communicate()
        self._errors.seek(0)
        self.said = [line.strip() for line in self._errors if line.startswith("engine.")]
        self._errors.close()


def header(device: str) -> str:
    names = [
        "case",
        "implementation",
        "p20 ms",
        "p50 ms",
        "p80 ms",
        "n",
        "images/s",
        "times eager",
        "by turns",
        "peak MiB",
    ]
    cells = [*names, "first step ms", *(f"{part} ms" for part in _parts(device))]
    rule = ["---", "---", *["---:"] * (len(cells) - 2)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (cells, rule))


def _parts(device: str) -> tuple[str, ...]:
    return PARTS if device == "cpu" else ()


def line(row: Row) -> str:
    if "error" in row:
        return record.failed(row)
    cells = [row[key] for key in ("case", "implementation", "p20", "p50", "p80", "n")]
    if "ratio" in row:  # else the row of a program start, which has no more columns
        memory = f"{row['peak_bytes'] / 2**20:,.0f}"
        cells += [row["images_per_second"], f"{row['ratio']:.2f}", record.interval(row), memory, row["first_step"]]
        cells += ["" if ms is None else ms for ms in row["split"].values()]
    return f"| {' | '.join(map(str, cells))} |"


USUAL = (
    f"`eager` is the usual loop (bench/eager/training.py): float32, PIL transforms in {WORKERS} loader processes, the "
    "authors' losses, torch's SGD, the loss read in every step. `ours` is what `python -m sftn_fast.train` runs"
)
HOW = {
    "cpu": (
        f"{USUAL}, in float32 too; `NCHW` with engine.channels_last=false, `bf16` with engine.amp=bf16, `compile` with "
        "engine.compile=true. n counts steps. While others have their turn, the loader processes of `eager` get "
        "batches ready that it has for free. Peak is the process's resident memory, all images included, loader "
        "processes not. The parts are medians; the rest holds losses and checks. Below the table stand the shares of "
        "the layers in a step, forward and backward, by PyTorch's profiler."
    ),
    "cuda": (
        f"{USUAL} with engine.amp=bf16 and engine.channels_last=true; `float32` differs from `ours` in "
        "engine.amp=fp32, `no graphs` in engine.cuda_graphs=false, `compile` in engine.compile=true. In float32 "
        "PyTorch's convolutions are TF32; `eager` has pinned memory, copies that nothing waits for and "
        "cudnn.benchmark; `eager, NHWC` has the networks and images in channels_last too. What the engine had to go "
        "without stands below the table. A turn begins with "
        f"{UNCOUNTED['cuda']} steps that do not count; then only the usual loop waits, by reading its loss, until all "
        "wait for the GPU at the turn's end: a sample is the mean step of a turn, and n counts turns. For the same "
        "reason no step is split into parts. Peak is the GPU memory that PyTorch has allocated at the worst "
        "moment since the start; the images lie there for `ours`, for `eager` in the host's memory."
    ),
}


def write(name: str, about: dict[str, Any], rows: list[Row], folder: Path) -> None:
    """Write the record under ``folder``: rows, page and picture."""
    how = (
        f"{record.facts(about)}. A step from the data to the updated weights, images of 32 x 32 in 100 classes. Each "
        f"implementation trains in a process of its own, in turns of about {TURN:g} s. {record.ending(about)}"
        f"{HOW[about['device']]} The last rows are starts of Python from the shell to its end; the first step, in the "
        "table, has compilation in it for `compile`, and what a first call takes for all."
    )
    text = ["# training: whole steps", "", how, "", f"![training]({name}.png)", "", header(about["device"])]
    said = [f"- {row['case']}, {row['implementation']}: {what}" for row in rows for what in _notes(row)]
    record.save(name, about, rows, [*text, *map(line, rows), "", *said], folder)
    chart.draw(folder / f"{name}.png", "training", about, rows, of_what="the usual loop, a whole step")


def _notes(row: Row) -> list[str]:
    """Return what a row has to say below the table."""
    of_layers = ", ".join(f"{layer} {share:.0%}" for layer, share in row.get("shares", {}).items())
    return [*([of_layers] if of_layers else []), *row.get("said", ())]


def expected(effort: Effort, device: str) -> float:
    """Return about how many seconds the suite takes."""
    cases = [effort.chosen(_names(number, effort, device)) for number, case in _wanted(effort)]
    measured = sum(SECONDS_TO_PREPARE * len(names) + max(effort.seconds, SECONDS_A_CASE) for names in cases)
    return measured + SECONDS_OF_STARTS * effort.wants("start")


def measure(about: dict[str, Any], effort: Effort) -> Iterator[Row]:
    """Yield rows of all cases. Each trains for about the effort's seconds at most, starts not counted."""
    device = about["device"]
    for number, case in _wanted(effort):
        yield from measure_case(case, effort.chosen(_names(number, effort, device)), effort, device)
    if effort.wants("start"):
        yield from starts()


def _wanted(effort: Effort) -> list[tuple[int, TrainingCase]]:
    return [(number, case) for number, case in enumerate(CASES) if effort.wants(case.name)]


def _names(number: int, effort: Effort, device: str) -> list[str]:
    """Return the implementations of a case: the first one has all, unless some are asked for."""
    more = [name for name in OURS[device] if name != "ours" and (effort.compile or name != "ours, compile")]
    return [*ALWAYS[device], *(more if number == 0 or effort.implementations else [])]


def starts() -> Iterator[Row]:
    """Measure how long Python takes to start, with the package and with torch alone."""
    commands = {
        "import torch": ["-c", "import torch"],
        "import sftn_fast.ops": ["-c", "import sftn_fast.ops"],
        "python -m sftn_fast.train --help": ["-m", "sftn_fast.train", "--help"],
    }
    runs = {}
    for name, command in commands.items():
        start = partial(subprocess.run, [sys.executable, *command], check=True, capture_output=True)
        try:
            start()
        except (OSError, subprocess.CalledProcessError) as error:  # for example a package is missing
            yield {"case": "start", "implementation": name, "error": first_line(error)}
        else:
            runs[name] = start
    for name, spread in interleaved(dict(runs), turns=5).items():
        yield {"case": "start", "implementation": name, **spread.row(1, scale=1e-3)}


def measure_case(case: TrainingCase, implementations: list[str], effort: Effort, device: str = "cpu") -> Iterator[Row]:
    """Yield a row or an error for each implementation. Rows compare with "eager"; without it there are none."""
    trainers: dict[str, Trainer] = {}
    failures: dict[str, str] = {}
    try:
        for name in implementations:
            trainers[name] = Trainer(case, name, device)
        for what in (Trainer.prepared, Trainer.begin):  # no first step before all are prepared
            for name in [name for name in trainers if name not in failures]:
                try:
                    what(trainers[name])
                except (RuntimeError, BrokenPipeError) as error:  # no C++ compiler, for example: measure the others
                    failures[name] = first_line(error)
        if "eager" not in failures:
            _take_turns(trainers, failures, effort)
            if device == "cpu" and "ours" in trainers.keys() - failures.keys():
                _profile(trainers["ours"], failures)
    finally:
        for trainer in trainers.values():
            trainer.close()
    if "eager" not in failures:
        good = {name: trainer for name, trainer in trainers.items() if name not in failures}
        ratios = intervals({name: trainer.turns for name, trainer in good.items()})
        usual = statistics.median(good["eager"].seconds)
        for name, trainer in good.items():
            spread = Spread.of(trainer.seconds, ratios.get(name))
            yield {"case": case.name, "implementation": name, **_figures(case, trainer, spread, usual, device)}
    for name, message in failures.items():
        yield {"case": case.name, "implementation": name, "error": message}


def _take_turns(trainers: dict[str, Trainer], failures: dict[str, str], effort: Effort) -> None:
    """Let implementations take turns for about the effort's seconds, or until their ratios are known.

    Add one with an ended process to ``failures``.
    """
    start = time.perf_counter()
    turns = 0
    while turns < MIN_TURNS or time.perf_counter() - start < effort.seconds:
        turns += 1
        for name, trainer in trainers.items():
            if name in failures:
                continue
            try:
                trainer.turn()
            except (RuntimeError, BrokenPipeError) as error:
                failures[name] = first_line(error)
        taken = {name: trainer.turns for name, trainer in trainers.items() if name not in failures}
        if "eager" in failures or settled(taken, effort.within):
            break


def _profile(trainer: Trainer, failures: dict[str, str]) -> None:
    try:
        trainer.profile()
    except (RuntimeError, BrokenPipeError) as error:
        failures["ours"] = first_line(error)


def _figures(case: TrainingCase, trainer: Trainer, spread: Spread, usual: float, device: str) -> Row:

    def median_ms(part: str) -> float | None:
        seconds = [step.get(part, 0.0) for step in trainer.split]
        return round(1e3 * statistics.median(seconds), 1) if seconds else None

    return {
        **spread.row(1, scale=1e3),
        "images_per_second": round(case.batch_size / spread.p50, 1),
        "ratio": round(usual / spread.p50, 3),
        **spread.interval(),
        "peak_bytes": trainer.peak_bytes,
        "first_step": round(1e3 * trainer.first_step, 1),
        "split": {part: median_ms(part) for part in _parts(device)},
        **({"shares": {layer: round(share, 3) for layer, share in trainer.shares.items()}} if trainer.shares else {}),
        "said": trainer.said,
    }
