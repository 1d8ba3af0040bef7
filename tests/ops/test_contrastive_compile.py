"""Contrastive distillation under PyTorch's compilers, which must keep its writes to the memory."""

from __future__ import annotations

import copy

import pytest
import torch
from families import FAKES, needs_kernels
from test_contrastive import make

from sftn_fast import ops
from sftn_fast.ops import _library


@needs_kernels
@pytest.mark.parametrize("bank_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wanted", [(True, True), (False, True), (False, False)])
def test_opcheck(bank_dtype, wanted):
    student, teacher, index, negatives, memory = make(bank_dtype=bank_dtype)
    banks, z = (memory.student_bank, memory.teacher_bank), (memory.z_student, memory.z_teacher)
    batch = (student, teacher, index, negatives, *banks, *z, 0.07)
    namespace = torch.ops.sftn_fast
    torch.library.opcheck(namespace.contrastive_normalizers.default, batch, test_utils=FAKES)
    namespace.contrastive_normalizers(*batch)
    torch.library.opcheck(namespace.contrastive_forward.default, (*batch, *wanted), test_utils=FAKES)
    torch.library.opcheck(namespace.contrastive_forward.default, (*batch, *wanted, True), test_utils=FAKES)
    torch.library.opcheck(
        namespace.contrastive_update.default, (student, teacher, index, *banks, 0.5), test_utils=FAKES
    )


@pytest.mark.parametrize(("kind", "compiler"), [("fused", "aot_eager"), ("reference", "inductor")])
def test_traced_whole(kind, compiler):
    """No graph break; loss, gradients and memory of three steps are those of eager calls."""
    if kind == "fused" and not _library.CPU.loaded:
        pytest.skip(f"no CPU kernels: {_library.CPU.error}")
    student, teacher, index, negatives, memory = make()
    torch._dynamo.reset()
    compiled = torch.compile(ops.crd_loss, fullgraph=True, backend=compiler)
    results = []
    with ops.backend(kind):
        for function in (ops.crd_loss, compiled):
            own = copy.deepcopy(memory)
            leaves = [x.clone().requires_grad_() for x in (student, teacher)]
            for _ in range(3):
                value = function(*leaves, index, negatives, own)
                value.backward()
            results.append([value.detach(), *(x.grad for x in leaves), *own.state_dict().values()])
    for ours, eager in zip(*results[::-1], strict=True):
        torch.testing.assert_close(ours, eager)
