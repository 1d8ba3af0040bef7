"""Distillers in other training loops: runs the code blocks of docs/guide/own-loop.md."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from engine.ranks import on_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sftn_fast import distillers
from sftn_fast.engine import distributed
from sftn_fast.tasks import DistillTask

DOCS = Path(__file__).resolve().parents[2] / "docs" / "guide" / "own-loop.md"
CODE = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
# The first block, with fewer and smaller images.
SMALL = CODE[0].replace("200", "24").replace("32, 32", "8, 8").replace("image_size=32", "image_size=8")
SMALL = SMALL.replace("batch_size=50", "batch_size=12")


def run(*snippets: str) -> dict[str, Any]:
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    for snippet in snippets:
        exec(snippet, names)
    return names


def snippet(word: str) -> str:
    (found,) = (code for code in CODE if word in code)
    return found


def watched(names: dict[str, Any]) -> set[torch.dtype]:
    """Record the dtypes in which the student's last layer computes."""
    seen: set[torch.dtype] = set()
    names["student"].head.fc.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    return seen


def test_bare_loop() -> None:
    names = run(CODE[0].replace("200", "50"), "before = student.head.fc.weight.clone()", snippet("warms up"))
    assert names["terms"]["total"].isfinite()
    assert not torch.equal(names["before"], names["student"].head.fc.weight)
    assert all(p.grad is not None for p in names["distiller"].parameters())
    assert not any(module.training for module in names["teacher"].modules())


def train(code: str, small: str = SMALL) -> tuple[dict[str, torch.Tensor], set[torch.dtype], list[str]]:
    """Run ``code`` on this rank; return what it trained, the student's dtypes, and the warnings."""
    names = run(small)
    seen = watched(names)
    with torch.no_grad():  # ranks start with different weights, and must end with the same
        names["student"].head.fc.weight.add_(0.1 * distributed.rank())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(code, names)
    learned = {**names["student"].state_dict(), **names["distiller"].state_dict()}
    statistics = ("running_mean", "running_var", "num_batches_tracked")  # differ, since each rank has its own images
    kept = {name: tensor for name, tensor in learned.items() if not name.endswith(statistics)}
    return kept, seen, [str(warning.message) for warning in caught]


def assert_equal_ranks(results: list[Any], dtype: torch.dtype = torch.bfloat16) -> None:
    (first, seen, caught), *others = results
    for other, other_seen, other_caught in others:
        assert seen == other_seen == {dtype}
        for name, tensor in first.items():
            assert torch.equal(tensor, other[name]), name
        assert not [line for line in caught + other_caught if "outside of DistributedDataParallel" in line]


def test_two_processes() -> None:
    # CRD's memory covers all images on each process, and is equal too.
    assert_equal_ranks(on_ranks(2, train, snippet("DistributedSampler(data)").replace("batch_size=25", "batch_size=6")))


def student_alone(_: None = None) -> tuple[bool, list[str]]:
    """Wrap the wrong module; return whether the ranks differ, and the warnings."""
    torch.manual_seed(0)
    names = run(SMALL)
    student, distiller = names["student"], names["distiller"]
    wrapped = DistributedDataParallel(student)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.05)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for images, target, index in names["loader"]:
            distiller(images + distributed.rank(), target, index)["total"].backward()
            optimizer.step()
    weights = distributed.gather(student.head.fc.weight.detach())
    return not torch.equal(*weights), [str(warning.message) for warning in caught]


def test_a_student_that_is_called_outside_of_its_wrapper_is_noticed() -> None:
    for differ, caught in on_ranks(2, student_alone):
        assert differ
        assert ["DistillTask(student, distiller)" in line for line in caught if "outside of" in line] == [True]


def test_one_process_is_warned_of_nothing() -> None:
    names = run(SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names["distiller"](*next(iter(names["loader"])))


def test_a_task_holds_what_learns_and_nothing_of_the_teacher() -> None:
    names = run(SMALL)
    task = DistillTask(names["student"], names["distiller"])
    learning = {id(p) for p in (*names["student"].parameters(), *names["distiller"].parameters())}
    assert {id(p) for p in task.parameters()} == learning
    assert isinstance(task, nn.Module) and isinstance(names["distiller"], distillers.distiller.Distiller)


def test_lightning(tmp_path, monkeypatch) -> None:
    pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    names = run(SMALL)
    seen = watched(names)
    exec(snippet("LightningModule"), names)
    assert seen == {torch.bfloat16}
    assert not any(name.startswith("task.distiller.teacher") for name in names["module"].state_dict())


def test_accelerate() -> None:
    pytest.importorskip("accelerate")
    _, seen, _ = train(on_cpu(snippet("Accelerator")))
    assert seen == {torch.bfloat16}


def test_accelerate_on_two_processes() -> None:
    pytest.importorskip("accelerate")
    assert_equal_ranks(on_ranks(2, train, on_cpu(snippet("Accelerator"))))


def on_cpu(code: str) -> str:
    """Accelerate uses a GPU if there is one, and needs an address although the processes are connected already."""
    address = "import os\nos.environ |= {'MASTER_ADDR': 'localhost', 'MASTER_PORT': '0'}\n"
    return address + code.replace("Accelerator(", "Accelerator(cpu=True, ")


def test_initialisations_first() -> None:
    names = run(re.sub(r'"kd=1,crd=.+?"', '"ft"', SMALL), snippet("initialisations()"))
    first = names["distiller"].methods[0]["ft"]
    assert not any(p.requires_grad for p in first.paraphraser.parameters())
    assert any(p.requires_grad for p in first.translator.parameters())


def test_every_snippet_is_run() -> None:
    words = re.findall(r'snippet\("(.+?)"\)', Path(__file__).read_text())
    assert CODE[1:] == sorted({snippet(word) for word in words}, key=CODE.index)
