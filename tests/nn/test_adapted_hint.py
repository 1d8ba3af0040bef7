"""The hint loss with its regressor, compared with plain modules: convolution, BatchNorm, ReLU and MSE."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from backends import BACKENDS
from pairing import paired
from torch import nn

from sftn_fast import ops
from sftn_fast.nn import AdaptedHint
from sftn_fast.ops import _library

# student, teacher, the convolution's kernel, stride, padding, and whether it is transposed
CONVOLUTIONS = {
    "equal": ((32, 8, 8), (64, 8, 8), (1, 1), (1, 1), (0, 0), False),
    "halved": ((6, 8, 8), (4, 4, 4), (3, 3), (2, 2), (1, 1), False),
    "halved to a pixel": ((6, 2, 2), (4, 1, 1), (3, 3), (2, 2), (1, 1), False),
    "doubled": ((6, 4, 4), (4, 8, 8), (4, 4), (2, 2), (1, 1), True),
    "cropped": ((6, 9, 9), (4, 7, 7), (3, 3), (1, 1), (0, 0), False),
    "wide": ((6, 4, 10), (4, 4, 10), (1, 1), (1, 1), (0, 0), False),
    "wide, halved": ((6, 4, 10), (4, 2, 5), (3, 3), (2, 2), (1, 1), False),
    "halved and cropped": ((6, 8, 7), (4, 4, 5), (3, 3), (2, 1), (1, 0), False),
    "doubled and kept": ((6, 4, 7), (4, 8, 7), (4, 1), (2, 1), (1, 0), True),
}


class Plain(nn.Module):
    """RepDistiller's regressor and loss, built from another module's layers."""

    def __init__(self, hint: AdaptedHint) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = hint.conv, hint.bn, nn.ReLU()

    def forward(self, student, teacher):
        return F.mse_loss(self.relu(self.bn(self.conv(student))), teacher)


def twins(*args, **options) -> tuple[AdaptedHint, Plain]:
    """Build both with the same weights."""
    torch.manual_seed(0)
    hint = AdaptedHint(*args, **options)
    with torch.no_grad():
        hint.bn.weight.uniform_(0.5, 1.5)
        hint.bn.bias.normal_()
    return hint, Plain(copy.deepcopy(hint))


def maps(student_shape, teacher_shape, n=5):
    return torch.randn(n, *student_shape), torch.randn(n, *teacher_shape)


def assert_same(hint: AdaptedHint, plain: Plain) -> None:
    for (name, ours), theirs in zip(hint.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    ("student", "teacher", "kernel", "stride", "padding", "transposed"), CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys()
)
def test_convolution(student, teacher, kernel, stride, padding, transposed):
    hint, plain = twins(student, teacher)
    assert isinstance(hint.conv, nn.ConvTranspose2d) == transposed
    assert (hint.conv.kernel_size, hint.conv.stride, hint.conv.padding) == (kernel, stride, padding)
    assert hint.conv.bias is not None
    batch = maps(student, teacher)
    torch.testing.assert_close(hint(*batch), plain(*batch))
    assert hint.regress(batch[0]).shape == batch[1].shape


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((6, 4, 4), (4, 7, 7)),
        ((6, 4, 4), (4, 16, 16)),
        ((6, 8, 4), (4, 4, 8)),
        ((6, 9, 4), (4, 7, 8)),
        ((6, 4, 4), (4, 4, 5)),
        ((6, 4), (4, 4, 4)),
        ((6, 4, 4), (4, 0, 4)),
    ],
)
def test_no_convolution(student, teacher):
    with pytest.raises(ValueError) as error:
        AdaptedHint(student, teacher)
    assert str(student) in str(error.value)
    assert str(teacher) in str(error.value)


def test_names_are_those_of_repdistillers_regressor():
    """ConvReg's weights load, and there are no other parameters."""
    names = [f"bn.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
    hint, plain = twins((6, 8, 8), (4, 4, 4))
    assert list(hint.state_dict()) == ["conv.weight", "conv.bias", *names]
    assert list(plain.state_dict()) == list(hint.state_dict())
    hint.load_state_dict(plain.state_dict(), strict=True)


@paired(
    backend=BACKENDS,
    channels_last=[False, True],
    options=[{}, {"momentum": None}, {"track_running_stats": False}, {"eps": 0.1}],
)
def test_training_agrees_with_the_plain_modules(backend, options, channels_last):
    shapes = (6, 8, 8), (4, 4, 4)
    hint, plain = (module.to(backend.device) for module in twins(*shapes, **options))
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9) for module in (hint, plain)]
    for _ in range(6):
        student, teacher = (x.to(backend.device) for x in maps(*shapes))
        if channels_last:
            student = student.contiguous(memory_format=torch.channels_last)
        losses = []
        for module, optimizer in zip((hint, plain), optimizers, strict=True):
            optimizer.zero_grad()
            loss = module(student, teacher)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert_same(hint, plain)
    hint.eval(), plain.eval()
    torch.testing.assert_close(hint(student, teacher), plain(student, teacher), rtol=1e-4, atol=1e-5)
    assert_same(hint, plain)


def test_evaluation_changes_nothing(backend):
    hint, plain = (module.to(backend.device).eval() for module in twins((6, 4, 4), (4, 4, 4)))
    batch = [x.to(backend.device) for x in maps((6, 4, 4), (4, 4, 4))]
    before = copy.deepcopy(hint.state_dict())
    torch.testing.assert_close(hint(*batch), plain(*batch))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), hint.state_dict().values(), strict=True))


def test_a_frozen_batchnorm_stays_frozen():
    """``bn.eval()`` inside a training module freezes the statistics."""
    hint, plain = twins((6, 4, 4), (4, 4, 4))
    for module in (hint, plain):
        module.bn.eval()
    batch = maps((6, 4, 4), (4, 4, 4))
    torch.testing.assert_close(hint(*batch), plain(*batch))
    assert_same(hint, plain)


def test_another_batchnorm_is_called():
    """Another norm, as after ``convert_sync_batchnorm``, is called: it computes its statistics in its own way."""

    class Shifted(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) + 1

    hint, _ = twins((6, 4, 4), (4, 4, 4))
    hint.bn = Shifted(4)
    student, teacher = maps((6, 4, 4), (4, 4, 4))
    torch.testing.assert_close(hint(student, teacher), F.mse_loss(hint.regress(student), teacher))


def test_autocast():
    hint, plain = twins((6, 8, 8), (4, 8, 8))
    batch = maps((6, 8, 8), (4, 8, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = hint(*batch), plain(*batch)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs.float(), rtol=2e-2, atol=0)
    ours.backward()
    assert all(p.grad.dtype == torch.float32 for p in hint.parameters())


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_traced_whole(training):
    if not _library.CPU.loaded:
        pytest.skip(f"no CPU kernels: {_library.CPU.error}")
    hint, _ = twins((6, 8, 8), (4, 4, 4))
    traced = copy.deepcopy(hint)
    torch._dynamo.reset()
    compiled = torch.compile(traced.train(training), fullgraph=True, backend="aot_eager")
    batch = maps((6, 8, 8), (4, 4, 4))
    with ops.backend("fused"):
        for module in (hint.train(training), compiled):
            module(*batch).backward()
    for (name, ours), theirs in zip(hint.named_parameters(), traced.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda text, name=name: f"{name}: {text}")
    assert all(torch.equal(a, b) for a, b in zip(hint.state_dict().values(), traced.state_dict().values(), strict=True))
