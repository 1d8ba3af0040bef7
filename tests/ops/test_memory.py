"""The memory of contrastive distillation: contents, dtypes, states and errors."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from families import refusals

from sftn_fast import ops


def batch(memory: ops.CRDMemory, b: int = 4, k: int = 6):
    generator = torch.Generator().manual_seed(3)
    embeddings = [F.normalize(torch.randn(b, memory.dim, generator=generator)) for _ in range(2)]
    index = torch.randperm(memory.num_samples, generator=generator)[:b]
    return *embeddings, index, torch.randint(memory.num_samples, (b, k), generator=generator)


def test_begins_uniform_and_without_normalizers():
    torch.manual_seed(0)
    memory = ops.CRDMemory(2000, 12)
    for bank in (memory.student_bank, memory.teacher_bank):
        assert bank.shape == (2000, 12)
        assert bank.abs().max() <= 0.5
        assert bank.mean().abs() < 0.01
        assert bank.std().item() == pytest.approx(1 / math.sqrt(12), rel=0.02)
    assert not torch.equal(memory.student_bank, memory.teacher_bank)
    assert memory.z_student.isnan()
    assert memory.z_teacher.isnan()
    assert list(memory.parameters()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_state_survives(tmp_path, dtype):
    memory = ops.CRDMemory(20, 5, dtype=dtype)
    *inputs, negatives = batch(memory)
    ops.crd_loss(*inputs, negatives, memory)
    assert set(memory.state_dict()) == {"student_bank", "teacher_bank", "z_student", "z_teacher"}
    torch.save(memory.state_dict(), tmp_path / "memory.pt")
    other = ops.CRDMemory(20, 5, dtype=dtype)
    other.load_state_dict(torch.load(tmp_path / "memory.pt", weights_only=True))
    for name, value in memory.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    assert ops.crd_loss(*inputs, negatives, other) == ops.crd_loss(*inputs, negatives, copy.deepcopy(memory))


def test_another_size_is_refused():
    with pytest.raises(RuntimeError, match="size mismatch for student_bank"):
        ops.CRDMemory(21, 5).load_state_dict(ops.CRDMemory(20, 5).state_dict())


def test_normalizers_keep_their_precision():
    """Normalisers are of the order of N exp(1 / T), beyond the range of half precision."""
    memory = ops.CRDMemory(20, 5)
    memory.z_student.fill_(123456.78)
    before = memory.z_student.clone()
    for cast in (memory.half, memory.bfloat16, lambda: memory.to(torch.float16)):
        cast()
        assert memory.z_student.dtype == torch.float32
        assert memory.z_student == before
        assert memory.student_bank.dtype != torch.float32
    memory.double()
    assert memory.z_student.dtype == memory.student_bank.dtype == torch.float64
    assert memory.z_student == before
    memory.float()
    assert memory.z_student.dtype == memory.student_bank.dtype == torch.float32
    assert memory.to("meta").z_student.is_meta
    assert memory.to_empty(device="cpu").z_student.dtype == torch.float32


def test_repr():
    memory = ops.CRDMemory(50_000, temperature=0.1, dtype=torch.bfloat16)
    assert repr(memory) == (
        "CRDMemory(num_samples=50000, dim=128, temperature=0.1, momentum=0.5, dtype=bfloat16, 24.4 MiB)"
    )


def test_inside_a_network():
    """The memory moves, saves and loads with the module that holds it."""
    holder = torch.nn.ModuleDict({"memory": ops.CRDMemory(10, 4)})
    assert "memory.z_teacher" in holder.half().state_dict()
    assert holder["memory"].z_teacher.dtype == torch.float32
    assert copy.deepcopy(holder)["memory"].num_samples == 10


TYPE_ERRORS = {
    "samples": (lambda: ops.CRDMemory(5.0), "num_samples must be an int, got float"),
    "dim": (lambda: ops.CRDMemory(5, True), "dim must be an int, got bool"),
    "temperature": (lambda: ops.CRDMemory(5, temperature="x"), "temperature must be a number, got str"),
    "dtype": (lambda: ops.CRDMemory(5, dtype=torch.int8), "dtype must be torch.float16, .* got torch.int8"),
    "memory": (lambda: ops.crd_loss(V, V, I, K, None), "memory must be a CRDMemory, got NoneType"),
    "embedding": (lambda: loss(student=[1.0]), "student_embedding must be a tensor, got list"),
    "embedding dtype": (lambda: loss(teacher=V.long()), "teacher_embedding must be float16, .* got torch.int64"),
    "index dtype": (lambda: loss(index=I.int()), "index must be int64, got torch.int32"),
    "no index": (lambda: loss(index=None), "index must be a tensor, got NoneType"),
    "negatives dtype": (lambda: loss(negatives=K.float()), "negatives must be int64 or int32, got torch.float32"),
    "whether to update": (lambda: loss(update="no"), "update must be True or False, got str"),
    "of update": (lambda: M.update(V, V, [1, 2]), "index must be a tensor, got list"),
}

VALUE_ERRORS = {
    "samples": (lambda: ops.CRDMemory(0), "num_samples must be at least 1, got 0"),
    "dim": (lambda: ops.CRDMemory(5, -1), "dim must be at least 1, got -1"),
    "temperature": (lambda: ops.CRDMemory(5, temperature=0), "temperature must be a finite number above 0, got 0"),
    "momentum": (lambda: ops.CRDMemory(5, momentum=1.5), "momentum must be from 0 to 1, got 1.5"),
    "width": (
        lambda: loss(student=torch.zeros(2, 3)),
        r"student_embedding must be \[B, D\] with the memory's D = 4, got \[2, 3\]",
    ),
    "dimensions": (lambda: loss(teacher=torch.zeros(4)), r"teacher_embedding must be \[B, D\] .* got \[4\]"),
    "batch": (
        lambda: loss(teacher=torch.zeros(3, 4)),
        r"teacher_embedding must have the shape of student_embedding, \[2, 4\], got \[3, 4\]",
    ),
    "index": (lambda: loss(index=torch.arange(3)), r"index must be \[B\] = \[2\], got \[3\]"),
    "negatives": (lambda: loss(negatives=K[:1]), r"negatives must be \[B, K\] = \[2, K\] .* got \[1, 3\]"),
    "no negatives": (lambda: loss(negatives=K[:, :0]), r"negatives must be .* K at least 1, got \[2, 0\]"),
    "device": (lambda: loss(student=V.to("meta")), "student_embedding must be on the memory's device, cpu, got meta"),
    "index's device": (lambda: loss(index=I.to("meta")), "index must be on the memory's device, cpu, got meta"),
    "of update": (lambda: M.update(V, V[:1], I), "teacher_embedding must have the shape"),
}

M = ops.CRDMemory(10, 4)
V, I, K = torch.zeros(2, 4), torch.arange(2), torch.zeros(2, 3, dtype=torch.int64)  # noqa: E741


def loss(student=V, teacher=V, index=I, negatives=K, **options):
    return ops.crd_loss(student, teacher, index, negatives, M, **options)


test_type_errors = refusals(TypeError, TYPE_ERRORS)
test_value_errors = refusals(ValueError, VALUE_ERRORS)
