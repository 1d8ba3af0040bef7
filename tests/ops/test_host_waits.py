"""No source code before a kernel launch waits for the GPU. `test_cuda_graphs.py` tests this on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from host_waits import find_waits

from sftn_fast import ops

FILES = sorted(Path(ops.__file__).parent.glob("*.py"))

# (file, function): the reason why it may wait, which must hold on a GPU.
ALLOWED = {
    ("_autograd.py", "scaled"): "reads the gradient of a loss that was computed on the CPU",
    ("features_pointwise.py", "_hint_backward"): "reads the gradient of a loss that was computed on the CPU",
    ("_logits.py", "packed"): "makes a tensor on the CPU, for an op of the CPU alone",
    ("_logits_arguments.py", "check_temperature_tensor"): "reads a temperature that is on the CPU",
    ("_logits_divergence.py", "takes_cross_entropy"): "reads a target on the CPU",
    ("memory.py", "check_rows"): "called once the CPU kernel has raised, to say what is wrong",
    ("validation.py", "check_classes"): "called once the CPU kernel has raised, to say what is wrong",
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_waits(path):
    waits = find_waits(path.read_text())
    assert not [wait for wait in waits if (path.name, wait.function) not in ALLOWED]


def test_what_is_allowed_is_there():
    found = {(path.name, wait.function) for path in FILES for wait in find_waits(path.read_text())}
    assert set(ALLOWED) <= found


PLANTED = [
    "loss.item()",
    "loss.detach().cpu().numpy()",
    "x.to('cpu')",
    "float(loss)",
    "int(target.max())",
    "target.tolist()",
    "x[target != 3]",
    "x[(target >= 0) & (target < 5)]",
    "x[~other]",
    "torch.nonzero(other)",
    "torch.where(other)",
    "torch.equal(x, loss)",
    "torch.tensor([1.0], device=x.device)",
    "torch.cuda.synchronize()",
    "1 if (target < 0).any() else 0",
    "1 if loss > 3 else 0",
    "bool(target.any()) or None",
    "not loss",
]


@pytest.mark.parametrize("expression", PLANTED)
def test_planted_waits_are_found(expression):
    source = f"def f(x: Tensor, loss: torch.Tensor, target: Tensor | None, other, n: int):\n    y = {expression}\n"
    assert {(wait.function, wait.line) for wait in find_waits(source)} == {("f", 2)}


def test_a_mask_is_followed_to_its_use():
    source = "def f(target: Tensor, x: Tensor):\n    valid = target != 3\n    return x[valid]\n"
    assert [wait.line for wait in find_waits(source)] == [3]


def test_a_tensor_that_decides_is_found():
    source = "def f(target: Tensor):\n    if target[0] == 3:\n        return 1\n    assert target.all()\n"
    assert [wait.line for wait in find_waits(source)] == [2, 4]


HARMLESS = [
    "float(n)",
    "x[:, n > 3]",
    "x[None, 1:]",
    "1 if target is None else 0",
    "1 if x.requires_grad or n > 3 else 0",
    "any(t.requires_grad for t in other)",
    "torch.where(target == 3, x, 0.0)",
    "x.sum() / max(x.shape[0], 1)",
    "x.to(torch.float32)",
    "x.dtype == loss.dtype and x.shape[0] != 3",
    "(target == 3).sum()",
]


@pytest.mark.parametrize("expression", HARMLESS)
def test_harmless_code_passes(expression):
    assert not find_waits(
        f"def f(x: Tensor, loss: Tensor, target: Tensor | None, other, n: int):\n    y = {expression}\n"
    )
