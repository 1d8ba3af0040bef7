"""Contrastive distillation on all backends against float64: values, gradients, normalisers, banks."""

from __future__ import annotations

import copy
import math

import contrastive_oracle as oracle
import pytest
import torch
import torch.nn.functional as F
from backends import BACKENDS
from families import DTYPES, accumulator, ids, offset, on_threads, wave
from pairing import paired

from sftn_fast import ops

# relative to the largest gradient; half precision rounds once, when the gradient is stored
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 6e-4, torch.bfloat16: 4.5e-3}


def make(n=50, b=5, k=33, d=16, *, dtype=torch.float32, bank_dtype=torch.float32, device="cpu", seed=0, **options):
    """Return (student, teacher, index, negatives, memory), with distinct, ascending negatives if there are enough."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = [F.normalize(torch.randn(b, d, generator=generator, dtype=torch.float64)) for _ in range(2)]
    index = torch.randperm(n, generator=generator)[:b]
    if k < n:
        negatives = torch.stack([torch.randperm(n - 1, generator=generator)[:k] for _ in range(b)])
        negatives += negatives >= index[:, None]
    else:
        negatives = torch.randint(n, (b, k), generator=generator)
    memory = ops.CRDMemory(n, d, dtype=bank_dtype, **options)
    bound = 1 / math.sqrt(d / 3)
    for bank in (memory.student_bank, memory.teacher_bank):
        bank.copy_((torch.rand(n, d, generator=generator, dtype=torch.float64) * 2 - 1) * bound)
    student, teacher = (v.to(dtype).to(device) for v in embeddings)
    return student, teacher, index.to(device), negatives.sort(1).values.to(device), memory.to(device)


def run(student, teacher, index, negatives, memory, grad_output=1.0, **options) -> oracle.Result:
    student, teacher = (x.detach().requires_grad_() for x in (student, teacher))
    loss = ops.crd_loss(student, teacher, index, negatives, memory, **options)
    loss.backward(torch.tensor(grad_output, dtype=loss.dtype, device=loss.device))
    banks = [memory.student_bank.clone(), memory.teacher_bank.clone()]
    return oracle.Result(
        loss.detach(), [student.grad, teacher.grad], [memory.z_student.clone(), memory.z_teacher.clone()], banks
    )


def assert_close(actual, true, dtype, bank_dtype):
    # Z is stored in float32 unless the banks are float64; loss and gradient use the stored value
    stored = TOLERANCE[accumulator(bank_dtype)]
    assert actual.loss.dim() == 0
    assert actual.loss.dtype == accumulator(dtype, bank_dtype)
    torch.testing.assert_close(actual.loss.double(), true.loss, rtol=stored / 2, atol=0)
    for z, expected in zip(actual.z, true.z, strict=True):
        torch.testing.assert_close(z.double(), expected, rtol=stored, atol=0)
    for grad, expected in zip(actual.grads, true.grads, strict=True):
        assert grad.dtype == dtype
        bound = max(TOLERANCE[dtype], stored) * max(expected.abs().max().item(), 1.0)
        torch.testing.assert_close(grad.double(), expected, rtol=0, atol=bound)
    for bank, expected in zip(actual.banks, true.banks, strict=True):
        assert bank.dtype == bank_dtype
        torch.testing.assert_close(bank.double(), expected, rtol=0, atol=TOLERANCE[bank_dtype])


def check(arguments, grad_output=1.0):
    memory = arguments[-1]
    true = oracle.crd(*arguments, grad_output)
    actual = run(*arguments, grad_output)
    assert_close(actual, true, arguments[0].dtype, memory.student_bank.dtype)


# ---- what RepDistiller's own classes give in float64 ----


def test_repdistillers_contrast_memory(backend):
    memory = ops.CRDMemory(20, 8, dtype=torch.float64)
    memory.student_bank.copy_(0.3 * wave((20, 8), 0.3, 0))
    memory.teacher_bank.copy_(0.3 * wave((20, 8), 0.2, 0.7, torch.cos))
    memory.to(backend.device)
    student, teacher = F.normalize(wave((4, 8), 0.6, 0.3)), F.normalize(wave((4, 8), 0.8, 0.1, torch.cos))
    index = torch.tensor([3, 7, 11, 19])
    negatives = torch.tensor([[0, 1, 2, 4, 5], [6, 8, 9, 10, 12], [13, 14, 15, 16, 17], [18, 0, 1, 2, 3]])
    loss = ops.crd_loss(*(x.to(backend.device) for x in (student, teacher, index, negatives)), memory)
    assert memory.z_student.item() == pytest.approx(565.404522930834, rel=1e-13)
    assert memory.z_teacher.item() == pytest.approx(44.24919471215161, rel=1e-13)
    assert loss.item() == pytest.approx(5.778723396074691 + 4.095920227402166, rel=1e-13)
    after = [
        0.25790755029116447,
        0.4490184042696339,
        0.5323558104935396,
        0.4819755955341428,
        0.31397769880717297,
        0.08101593024816432,
        -0.14555663824106393,
        -0.29971765586126814,
    ]
    assert memory.student_bank[3].tolist() == pytest.approx(after, rel=1e-13)


def test_repdistillers_nce_loss(backend):
    """Scores exp(f) / 20 of 20 samples: bank rows hold f, embeddings select a column, Z = 20."""
    scores = wave((4, 6), 0.4, 0.2)
    memory = ops.CRDMemory(20, 4, temperature=1.0, dtype=torch.float64)
    for bank in (memory.student_bank, memory.teacher_bank):
        bank[:6] = scores.T
    memory.z_student.fill_(20)
    memory.z_teacher.fill_(20)
    memory.to(backend.device)
    pick = torch.eye(4, dtype=torch.float64, device=backend.device)
    index = torch.zeros(4, dtype=torch.int64, device=backend.device)
    negatives = torch.arange(1, 6, device=backend.device).expand(4, 5)
    loss = ops.crd_loss(pick, pick, index, negatives, memory, update=False)
    assert loss.item() == pytest.approx(2 * 2.9668660447340915, rel=1e-13)


# ---- values and gradients ----


@paired(backend=BACKENDS, dtype=DTYPES, bank_dtype=DTYPES)
def test_dtypes(backend, dtype, bank_dtype):
    check(make(dtype=dtype, bank_dtype=bank_dtype, device=backend.device), grad_output=-1.7)


@paired(
    backend=BACKENDS,
    bank_dtype=[torch.float32, torch.float16, torch.float64],
    d=[1, 2, 3, 16, 31, 64, 127, 128, 130, 256, 515, 1024],
)
def test_widths(backend, d, bank_dtype):
    check(make(n=40, b=3, k=21, d=d, bank_dtype=bank_dtype, device=backend.device))


SIZES = [(2, 1, 1), (1, 1, 1), (700, 3, 40), (3000, 2, 70), (9, 4, 300), (600, 70, 5)]


@pytest.mark.parametrize(("n", "b", "k"), SIZES)
def test_sizes(backend, n, b, k):
    check(make(n=n, b=b, k=k, device=backend.device))


def test_many_tiles(backend):
    """Several tiles of the bank and several groups of rows in each."""
    if backend.name == "emulated":
        check(make(n=900, b=2, k=700, d=8, device=backend.device))
    else:
        check(make(n=5000, b=9, k=3000, d=128, device=backend.device))


@pytest.mark.parametrize("order", ["descending", "random", "repeats", "one row", "one falls"])
def test_negatives_in_any_order(backend, order):
    student, teacher, index, negatives, memory = make(n=2000, b=4, k=300, device=backend.device)
    generator = torch.Generator().manual_seed(1)
    negatives = {
        "descending": negatives.flip(1),
        "random": negatives[:, torch.randperm(300, generator=generator)],
        "repeats": torch.randint(2000, (4, 300), generator=generator).to(backend.device) // 7,
        "one row": torch.full_like(negatives, 1999),
        "one falls": torch.where(torch.arange(4 * 300, device=backend.device).view(4, 300) == 899, 0, negatives),
    }[order]
    check((student, teacher, index, negatives, memory))


def test_layouts(backend):
    """Slices, steps, offsets, expanded rows, 32-bit negatives."""
    student, teacher, index, negatives, memory = make(n=60, b=6, k=37, device=backend.device)
    dense = run(student, teacher, index, negatives, copy.deepcopy(memory))
    wide = torch.cat([negatives, negatives + 1000], 1)
    views = {
        "slices": (student.repeat_interleave(2, 1)[:, ::2], teacher.t().contiguous().t(), index, wide[:, :37]),
        "int32": (student, teacher, index.repeat_interleave(2)[::2], negatives.int()),
        "int32 steps": (student, teacher, index, wide.int().repeat_interleave(2, 1)[:, :74:2]),
        "offset": (offset(student), offset(teacher), index, negatives),
    }
    for arguments in views.values():
        other = run(*arguments, copy.deepcopy(memory))
        exact = 0 if backend.fused else 1e-5  # PyTorch's products depend on strides
        for a, b in zip(other.tensors, dense.tensors, strict=True):
            torch.testing.assert_close(a, b, rtol=exact, atol=exact)
    shared = negatives[:1].expand(6, 37)
    check((student[:1].expand_as(student), teacher, index, shared, memory))


def test_banks_at_odd_addresses(backend):
    for bank_dtype in (torch.float32, torch.bfloat16):
        student, teacher, index, negatives, memory = make(bank_dtype=bank_dtype, device=backend.device)
        for name in ("student_bank", "teacher_bank"):
            bank = getattr(memory, name)
            memory.register_buffer(name, offset(bank))
        check((student, teacher, index, negatives, memory))


@pytest.mark.parametrize("bank_dtype", [torch.float64, torch.float32], **ids)
def test_gradcheck(backend, bank_dtype):
    student, teacher, index, negatives, memory = make(
        12, 3, 5, 4, dtype=torch.float64, bank_dtype=bank_dtype, device=backend.device, temperature=0.5
    )
    leaves = [student.requires_grad_(), teacher.requires_grad_()]
    ops.crd_loss(*leaves, index, negatives, memory, update=False)  # sets Z, which then stays constant
    assert torch.autograd.gradcheck(
        lambda s, t: ops.crd_loss(s, t, index, negatives, memory, update=False),
        leaves,
        eps=1e-6,
        atol=1e-6,
        fast_mode=True,
    )


def test_precise_where_the_authors_logarithm_is_not(backend):
    """Sums of log(1 + 6e-5) in float32."""
    if backend.name == "emulated":
        pytest.skip("too large")
    arguments = make(n=8000, b=4, k=6000, d=32, device=backend.device)
    true = oracle.crd(*arguments)
    assert run(*arguments).loss.item() == pytest.approx(true.loss.item(), rel=1e-6)


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
def test_gradients_only_where_asked(backend, wanted):
    student, teacher, index, negatives, memory = make(device=backend.device)
    true = oracle.crd(student, teacher, index, negatives, memory)
    leaves = [x.requires_grad_(flag) for x, flag in zip((student, teacher), wanted, strict=True)]
    loss = ops.crd_loss(*leaves, index, negatives, memory)
    assert loss.item() == pytest.approx(true.loss.item(), rel=1e-5)
    assert loss.requires_grad == any(wanted)
    if any(wanted):
        loss.backward()
    for leaf, flag, grad in zip(leaves, wanted, true.grads, strict=True):
        assert (leaf.grad is not None) == flag
        if flag:
            torch.testing.assert_close(leaf.grad.double(), grad, rtol=1e-4, atol=1e-7)


# ---- the memory ----


def test_normalizers_are_the_first_batchs(backend):
    first, later = make(device=backend.device, seed=0), make(device=backend.device, seed=1)
    memory = first[-1]
    run(*first)
    z = memory.z_student.item(), memory.z_teacher.item()
    check((*later[:-1], memory))
    assert (memory.z_student.item(), memory.z_teacher.item()) == z


def test_one_normalizer_alone(backend):
    arguments = make(device=backend.device)
    arguments[-1].z_teacher.fill_(77.0)
    check(arguments)
    assert arguments[-1].z_teacher.item() == 77


def test_without_update(backend):
    student, teacher, index, negatives, memory = make(device=backend.device)
    before = memory.student_bank.clone(), memory.teacher_bank.clone()
    true = oracle.crd(student, teacher, index, negatives, memory)
    actual = run(student, teacher, index, negatives, memory, update=False)
    assert actual.loss.item() == pytest.approx(true.loss.item(), rel=1e-5)
    assert not memory.z_student.isnan()
    assert not memory.z_teacher.isnan()
    assert torch.equal(memory.student_bank, before[0])
    assert torch.equal(memory.teacher_bank, before[1])
    memory.update(student, teacher, index)
    for bank, expected in zip((memory.student_bank, memory.teacher_bank), true.banks, strict=True):
        torch.testing.assert_close(bank.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bank_dtype", DTYPES, **ids)
def test_the_last_of_a_repeated_index_counts(backend, bank_dtype):
    student, teacher, _, negatives, memory = make(b=40, bank_dtype=bank_dtype, device=backend.device)
    index = torch.tensor([7, 3, 7, 9, 3] * 8, device=backend.device)
    check((student, teacher, index, negatives, memory))


@pytest.mark.parametrize("momentum", [0.0, 0.3, 1.0])
def test_momentum(backend, momentum):
    check(make(device=backend.device, momentum=momentum))


def test_the_gradient_is_of_the_banks_before_the_update(backend):
    student, teacher, index, negatives, memory = make(device=backend.device)
    student.requires_grad_()
    true = oracle.crd(student, teacher, index, negatives, memory)
    loss = ops.crd_loss(student, teacher, index, negatives, memory)
    memory.student_bank.zero_()
    memory.teacher_bank.zero_()
    loss.backward()
    torch.testing.assert_close(student.grad.double(), true.grads[0], rtol=1e-4, atol=1e-7)


def test_a_graph_that_saved_a_bank_notices_the_update(backend):
    student, teacher, index, negatives, memory = make(device=backend.device)
    student.requires_grad_()
    of_user = (student @ memory.teacher_bank.T).sum()
    ops.crd_loss(student, teacher, index, negatives, memory)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        of_user.backward()


# ---- extremes ----


@pytest.mark.parametrize("bank_dtype", DTYPES, **ids)
def test_zero_embeddings_poison_nothing(backend, bank_dtype):
    student, teacher, index, negatives, memory = make(bank_dtype=bank_dtype, device=backend.device)
    student[0], teacher[1] = 0, 0
    memory.student_bank[index[0]] = 0
    for _ in range(3):
        result = run(student, teacher, index, negatives, memory)
        assert result.loss.isfinite()
        assert all(x.isfinite().all() for x in result.grads + result.banks + result.z)
    assert (memory.student_bank[index[0]] == 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_broken_embeddings_poison_nothing(backend, bad):
    """The loss shows them. The memory does not change, and the next batch counts as the first."""
    student, teacher, index, negatives, memory = make(device=backend.device)
    broken = student.clone()
    broken[2, 3] = bad
    true = oracle.crd(student, teacher, index, negatives, memory)
    assert not run(broken, teacher, index, negatives, memory).loss.isfinite()
    assert memory.z_student.isnan()
    assert memory.student_bank.isfinite().all()
    result = run(student, teacher, index, negatives, memory)
    assert result.loss.isfinite()
    assert result.z[0].item() == pytest.approx(true.z[0].item(), rel=0.5)


def test_large_scores_stay_finite(backend):
    """Embeddings that are not normalised, after Z is set: exp(x) overflows, softplus(x) does not."""
    student, teacher, index, negatives, memory = make(dtype=torch.float16, device=backend.device)
    run(student, teacher, index, negatives, memory, update=False)
    result = run(student * 320, teacher, index, negatives, memory, update=False)
    assert result.loss.isfinite()
    assert all(grad.isfinite().all() for grad in result.grads)


def test_subnormal_and_special_halves(backend):
    student, teacher, index, negatives, memory = make(bank_dtype=torch.float16, device=backend.device)
    memory.teacher_bank[:, ::2] *= 1e-4
    check((student, teacher, index, negatives, copy.deepcopy(memory)))
    for special in (math.nan, math.inf):
        memory.teacher_bank[negatives[0, 0], 3] = special
        assert not run(student, teacher, index, negatives, memory, update=False).loss.isfinite()


@pytest.mark.parametrize("dtype", DTYPES, **ids)
def test_empty_batch(backend, dtype):
    student, teacher, index, negatives, memory = make(dtype=dtype, device=backend.device)
    before = {name: value.clone() for name, value in memory.state_dict().items()}
    result = run(student[:0], teacher[:0], index[:0], negatives[:0], memory)
    assert result.loss.item() == 0
    assert all(grad.shape == (0, 16) for grad in result.grads)
    for name, value in memory.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


# ---- conduct ----


def test_inputs_are_not_written_to(backend):
    arguments = make(device=backend.device)
    before = [x.clone() for x in arguments[:4]]
    run(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(arguments[:4], before, strict=True))


def test_same_inputs_same_bits(backend):
    *inputs, memory = make(n=400, b=6, k=200, device=backend.device)
    first, second = (run(*inputs, copy.deepcopy(memory)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.tensors, second.tensors, strict=True))


@pytest.mark.parametrize("k", [2000, 200])  # a share of every tile; a few scattered rows
def test_threads_do_not_change_the_bits(k):
    *inputs, memory = make(n=3000, b=11, k=k, d=100)
    results = on_threads(lambda: run(*inputs, copy.deepcopy(memory)))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result.tensors, results[0].tensors, strict=True))


def test_inference_mode_and_autocast(backend):
    *inputs, memory = make(device=backend.device)
    plain = run(*inputs, copy.deepcopy(memory))
    with torch.autocast(backend.device, dtype=torch.bfloat16):
        cast = run(*inputs, copy.deepcopy(memory))
    assert cast.loss.dtype == torch.float32
    torch.testing.assert_close(cast.loss, plain.loss)
    with torch.inference_mode():
        assert ops.crd_loss(*inputs, memory).item() == plain.loss.item()
        ops.crd_loss(*inputs, ops.CRDMemory(50, 16).to(backend.device))


@pytest.mark.parametrize("bad", [-1, 50, 2**40])
def test_rows_out_of_range(backend, bad):
    """The error names the row, and nothing is written."""
    if backend.device == "cuda":
        pytest.skip("a device-side assertion, which ends the process's use of the GPU")
    student, teacher, index, negatives, memory = make(device=backend.device)
    before = {name: value.clone() for name, value in memory.state_dict().items()}
    wrong = negatives.clone()
    wrong[3, 20] = bad
    with pytest.raises(ValueError, match=f"negatives must hold rows from 0 to 49, got {bad}"):
        ops.crd_loss(student, teacher, index, wrong, memory)
    wrong = index.clone()
    wrong[2] = bad
    with pytest.raises(ValueError, match=f"index must hold rows from 0 to 49, got {bad}"):
        ops.crd_loss(student, teacher, wrong, negatives, memory)
    with pytest.raises(ValueError, match=f"index must hold rows from 0 to 49, got {bad}"):
        memory.update(student, teacher, wrong)
    if backend.name != "emulated":  # the emulator stops, as a GPU does
        for name, value in memory.state_dict().items():
            torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
