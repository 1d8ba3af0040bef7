"""The price of a call: small losses beside an autograd function that computes nothing, forward and backward.

A ratio of 1 would be a loss for free. Both save the student and return a gradient of its size. Losses are measured with
their autograd nodes in C++, if these were built, and with their autograd functions in Python, as in a wheel.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import record
from bench.cases.case import step
from bench.measure import Effort, interleaved
from bench.record import Row
from sftn_fast import ops
from sftn_fast.ops import _nodes

THREADS = (1, 2)
AUTOGRAD = ("C++", "Python")
SECONDS_A_CASE = 1.0  # on bench.progress.REFERENCE
NOTES = (
    "Microseconds of forward and backward, in turns; n counts calls. `empty` is an autograd function with as many "
    "inputs and outputs as the loss, which computes nothing. `C++` is the loss with its autograd node, `Python` with "
    "its function in Python. The ratio is that of the fastest fifths, p20, because a call of a tenth of a millisecond "
    "is easily disturbed."
)

Case = tuple[tuple[Tensor, ...], int, Callable[[], Tensor]]  # inputs, the student first; number of results; the loss


def _cases() -> Iterator[tuple[str, Case]]:
    generator = torch.Generator().manual_seed(0)

    def pair(*shape: int) -> tuple[Tensor, Tensor]:
        student, teacher = (torch.randn(shape, generator=generator) for _ in range(2))
        return student.requires_grad_(), teacher

    logits, target = pair(64, 100), torch.randint(100, (64,), generator=generator)
    yield "KD (64, 100)", (logits, 1, lambda: ops.kd_loss(*logits))
    yield "KD + CE (64, 100)", ((*logits, target), 3, lambda: ops.kd_ce_loss(*logits, target).total)
    rows, maps, margin = pair(64, 128), pair(64, 64, 8, 8), torch.full((64,), -0.5)
    yield "hint (64, 128)", (rows, 1, lambda: ops.hint_loss(*rows))
    yield "hint (64, 64, 8, 8)", (maps, 1, lambda: ops.hint_loss(*maps))
    yield "OH (64, 64, 8, 8)", ((*maps, margin), 1, lambda: ops.oh_loss(*maps, margin))
    yield "AT (64, 64, 8, 8)", (maps, 1, lambda: ops.at_loss(*maps))
    yield "PKT (64, 128)", (rows, 1, lambda: ops.pkt_loss(*rows))
    yield "RKD (64, 128)", (rows, 3, lambda: ops.rkd_loss(*rows).total)


def empty(num_results: int) -> Callable[..., Tensor]:
    """Return a function of tensors with a gradient for the first, which computes nothing."""

    class Empty(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Tensor) -> Any:  # type: ignore[override]
            ctx.save_for_backward(*inputs)
            results = tuple(inputs[0].new_empty(()) for _ in range(num_results))
            return results if num_results > 1 else results[0]

        @staticmethod
        def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
            student, *others = ctx.saved_tensors
            return (torch.empty_like(student), *[None] * len(others))

    return (lambda *inputs: Empty.apply(*inputs)[0]) if num_results > 1 else Empty.apply


def header(device: str) -> str:
    return (
        "| case | autograd in | threads | empty p20 us | ours p20 us | empty p50 us | ours p50 us | n | ratio |\n"
        "|---|---|---:|---:|---:|---:|---:|---:|---:|"
    )


def line(row: Row) -> str:
    times = [row[name][key] for key in ("p20", "p50") for name in ("empty", "ours")]
    counts = [row["autograd"], row["threads"], *times, row["ours"]["n"], row["ratio"]]
    return f"| {row['case']} | {' | '.join(map(str, counts))} |"


def expected(effort: Effort, device: str) -> float:
    """Return about how many seconds the suite takes."""
    return SECONDS_A_CASE * len(THREADS) * len(_built()) * sum(effort.wants(case) for case, _ in _cases())


def _built() -> tuple[str, ...]:
    return AUTOGRAD if _nodes.LIBRARY.loaded else AUTOGRAD[1:]


def measure(about: dict[str, Any], effort: Effort) -> Iterable[Row]:
    before = torch.get_num_threads()
    try:
        for threads in (count for count in THREADS if count <= (os.cpu_count() or 1)):
            torch.set_num_threads(threads)
            for name, case in _cases():
                for autograd in _built() if effort.wants(name) else ():
                    with nullcontext() if autograd == "C++" else _nodes.in_python():
                        times = _times(case, effort)
                    ratio = round(times["ours"]["p20"] / times["empty"]["p20"], 2)
                    yield {"case": name, "autograd": autograd, "threads": threads, **times, "ratio": ratio}
    finally:
        torch.set_num_threads(before)


def _times(case: Case, effort: Effort) -> dict[str, Any]:
    inputs, num_results, loss = case
    nothing = empty(num_results)
    calls = {"empty": lambda: nothing(*inputs), "ours": loss}
    steps = {name: step(inputs[:1], call) for name, call in calls.items()}
    spread = interleaved(steps, turns=effort.turns, seconds=effort.seconds, within=effort.within)
    return {name: of.row() for name, of in spread.items()}


def write(name: str, about: dict[str, Any], rows: list[Row], folder: Path) -> None:
    text = [
        "# host: the price of a call",
        "",
        f"{record.facts(about)}. {record.ending(about, intervals=False)}{NOTES}",
        "",
        header("cpu"),
        *map(line, rows),
    ]
    record.save(name, about, rows, text, folder)
