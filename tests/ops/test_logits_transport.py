"""WKD: golden values, and what its formula alone has."""

from __future__ import annotations

import pytest
import torch
from families import refusals, wave

from sftn_fast import ops
from sftn_fast.ops import reference

STUDENT, TEACHER = 3 * wave((4, 10), 0.7, 0.1), 3 * wave((4, 10), 0.3, 0.2, torch.cos)
TARGET = torch.tensor([0, 3, 1, 9])


def authors_cost() -> torch.Tensor:
    """Return the cost of the cosine between classes, at a sharpness of 1."""
    classes = torch.nn.functional.normalize(wave((10, 6), 0.13, 0.2))
    return torch.relu(1 - torch.exp(-(1 - classes @ classes.t()))) + 1e-8


def test_golden_values(backend):
    """What the authors' code gives in float64."""
    student = STUDENT.to(backend.device).clone().requires_grad_()
    inputs = TEACHER.to(backend.device), TARGET.to(backend.device), authors_cost().to(backend.device)
    loss = ops.wkd_loss(student, *inputs)
    loss.backward()
    assert loss.item() == pytest.approx(3.365121148209646, abs=1e-9)
    assert student.grad.square().sum().item() == pytest.approx(0.4822851652514637, abs=1e-9)
    without = ops.wkd_loss(student, *inputs, gamma=0.0)
    assert without.item() == pytest.approx(0.6981733020568438, abs=1e-9)
    assert (loss - without).item() / 30 == pytest.approx(0.08889826153842675, abs=1e-9)


def image_by_image(student, teacher, target, cost, temperature, gamma, regularization, iterations):
    """Compute the loss with the target's row and column removed, as its authors do, for one image after another."""
    total = 0.0
    for s, t, y in zip(student, teacher, target, strict=True):
        others = torch.arange(len(s)) != y
        c = cost[others][:, others]
        kernel = (-c / regularization).exp()
        a, b = ((x[others] / temperature).softmax(0) for x in (s, t))
        u = torch.full_like(a, 1 / len(a))
        for _ in range(iterations):
            v = b / (kernel.t() @ u + 1e-8)
            u = a / (kernel @ v + 1e-8)
        total = total + gamma * (u[:, None] * kernel * v * c).sum() - t.softmax(0)[y] * s.log_softmax(0)[y]
    return total / len(student)


@pytest.mark.parametrize(("n", "c", "iterations"), [(3, 2, 1), (4, 9, 3), (7, 70, 2)])
def test_a_cost_that_is_not_symmetric(backend, n, c, iterations):
    generator = torch.Generator().manual_seed(c)
    pair = torch.randn(2, n, c, generator=generator, dtype=torch.float64)
    cost = torch.rand(c, c, generator=generator, dtype=torch.float64)
    target = torch.randint(c, (n,), generator=generator)
    options = {"temperature": 3.0, "gamma": 7.0, "regularization": 0.2, "iterations": iterations}

    def differentiated(loss, device):
        student, teacher = (x.to(device).requires_grad_() for x in pair)
        total = loss(student, teacher, target.to(device), cost.to(device), **options)
        return [total.detach(), *torch.autograd.grad(total, (student, teacher))]

    results = differentiated(ops.wkd_loss, backend.device), differentiated(image_by_image, "cpu")
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual.cpu(), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("network", ["student", "teacher"])
def test_no_other_class_is_possible(backend, network):
    """Such an image keeps the target's term alone, and the rest of the batch is not touched by it."""
    student, teacher, target, cost = (x.to(backend.device) for x in (STUDENT, TEACHER, TARGET, authors_cost()))
    ruled_out = (student if network == "student" else teacher).clone()
    ruled_out[1] = -torch.inf
    ruled_out[1, target[1]] = 2.0
    pair = [
        (ruled_out if network == name else x).requires_grad_()
        for name, x in (("student", student), ("teacher", teacher))
    ]
    loss = ops.wkd_loss(*pair, target, cost)
    grads = torch.autograd.grad(loss, pair)
    rest = torch.tensor([0, 2, 3], device=backend.device)
    expected = 3 * ops.wkd_loss(pair[0][rest], pair[1][rest], target[rest], cost).item()
    if network == "teacher":
        expected -= student[1].log_softmax(0)[target[1]].item()
    assert loss.item() == pytest.approx(expected / 4, rel=1e-10)
    assert all(grad.isfinite().all() for grad in grads)


def test_one_class(backend):
    one = torch.ones(3, 1, device=backend.device, requires_grad=True)
    loss = ops.wkd_loss(one, one, torch.zeros(3, dtype=torch.int64, device=backend.device), one[:1].detach())
    loss.backward()
    assert loss == 0 and one.grad.count_nonzero() == 0


def products(call):
    """Return how many matrix products a call runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    return sum(event.count for event in profile.key_averages() if event.key in ("aten::mm", "aten::addmm"))


def test_as_many_products_as_autograd_of_plain_pytorch(backend):
    """They are most of the time at many classes."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(6, 20, generator=generator) for _ in range(2)] + [torch.rand(20, 20, generator=generator)]
    student, teacher, cost = (x.to(backend.device) for x in drawn)
    inputs = teacher, torch.arange(6, device=backend.device), cost
    student.requires_grad_()
    counts = [
        products(lambda module=module: module.wkd_loss(student, *inputs, iterations=5).backward())
        for module in (ops, reference)
    ]
    assert counts[0] <= counts[1] == 4 * 5


def test_an_iteration_keeps_two_matrices(backend):
    """Besides the inputs, the kernel matrix and the last product, the backward pass needs ``u`` and ``v``."""
    if not backend.fused:
        pytest.skip("plain PyTorch keeps what its operations need")
    generator = torch.Generator().manual_seed(0)
    pair = [torch.randn(6, 20, generator=generator).requires_grad_() for _ in range(2)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        ops.wkd_loss(*pair, torch.arange(6), torch.rand(20, 20, generator=generator), iterations=5)
    assert sorted(x.numel() for x in kept) == [6] + [6 * 20] * (2 + 1 + 2 * 5) + [20 * 20] * 2


@pytest.mark.parametrize("bad", [-1, -100, 10])
def test_class_out_of_range(backend, bad):
    if backend.device == "cuda":
        pytest.skip("a device-side assertion, after which the process has no GPU")
    target = TARGET.clone()
    target[2] = bad
    with pytest.raises(ValueError, match=f"target must hold classes from 0 to 9, got {bad}"):
        ops.wkd_loss(STUDENT, TEACHER, target, authors_cost())


def call(**changes):
    arguments = {"student_logits": STUDENT, "teacher_logits": TEACHER, "target": TARGET, "cost": authors_cost()}
    return lambda: ops.wkd_loss(**{**arguments, **changes})


test_refuses_types = refusals(
    TypeError,
    {
        "logits": (call(student_logits=1.0), "student_logits must be a tensor, got float"),
        "target": (call(target=TARGET.int()), "target must be int64 class indices, got torch.int32"),
        "cost": (call(cost=None), "cost must be a tensor, got NoneType"),
        "integer cost": (call(cost=torch.ones(10, 10, dtype=torch.int64)), "cost must be float16, bfloat16"),
        "iterations": (call(iterations=2.0), "iterations must be an int, got float"),
    },
)

test_refuses_values = refusals(
    ValueError,
    {
        "target": (call(target=TARGET[:3]), r"target must be \[N\] = \[4\], got \[3\]"),
        "cost": (call(cost=torch.ones(10, 9)), r"cost must be \[C, C\] = \[10, 10\], got \[10, 9\]"),
        "learned cost": (call(cost=torch.ones(10, 10, requires_grad=True)), "cost must not require a gradient"),
        "temperature": (call(temperature=-1.0), "temperature must be a finite number above 0, got -1"),
        "gamma": (call(gamma=float("inf")), "gamma must be a finite number, got inf"),
        "regularization": (call(regularization=0), "regularization must be a finite number above 0, got 0"),
        "iterations": (call(iterations=0), "iterations must be at least 1, got 0"),
    },
)
