"""The pooling for maps of different sizes, compared with PyTorch's in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from backends import BACKENDS
from families import DTYPES, FAKES, accumulator, ids
from pairing import paired

from sftn_fast.ops import _library
from sftn_fast.ops._backend import kernels
from sftn_fast.ops.features_pool import pooled_alike

SIZES = [
    ((32, 32), (8, 8)),
    ((8, 70), (4, 35)),
    ((6, 9), (2, 3)),
    ((7, 7), (4, 5)),
    ((13, 3), (13, 2)),
    ((5, 5), (1, 1)),
]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture
def raw(backend):
    """Return the namespace of the kernels."""
    if not backend.fused:
        pytest.skip("plain PyTorch has no kernels")
    return kernels(backend.device)


def pool(raw, features, size):
    return pooled_alike(raw, features, features.new_empty(len(features), 1, *size))[0]


@paired(backend=BACKENDS, layout=LAYOUTS, dtype=DTYPES)
def test_values_and_gradients(backend, raw, dtype, layout):
    for size, out in SIZES:
        features = torch.randn(2, 19, *size, dtype=torch.float64).to(dtype).to(backend.device, memory_format=layout)
        features.requires_grad_()
        leaf = features.detach().double().requires_grad_()
        pooled, true = pool(raw, features, out), F.adaptive_avg_pool2d(leaf, out)
        upstream = torch.randn(true.shape, dtype=torch.float64, device=backend.device).to(accumulator(dtype))
        pooled.backward(upstream)
        true.backward(upstream.double())
        assert pooled.dtype == accumulator(dtype)
        assert pooled.is_contiguous(memory_format=layout)
        assert features.grad.stride() == features.stride()
        torch.testing.assert_close(pooled.double(), true, rtol=0, atol=1e-6)
        tolerance = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(dtype, 1e-6)
        torch.testing.assert_close(features.grad.double(), leaf.grad, rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], **ids)
def test_other_strides(backend, raw, dtype):
    wide = torch.randn(4, 6, 8, 10, device=backend.device).to(dtype)
    for features in (wide[::2, 1:4, :, ::2], wide[:1].expand(3, -1, -1, -1), wide.transpose(2, 3)):
        true = F.adaptive_avg_pool2d(features.double(), (4, 3))
        torch.testing.assert_close(pool(raw, features, (4, 3)).double(), true, rtol=0, atol=1e-6)


def test_equal_sizes_are_left_alone(raw, backend):
    features = torch.randn(2, 3, 4, 5, device=backend.device)
    assert pool(raw, features, (4, 5)) is features


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
def test_threads_do_not_change_the_bits(layout):
    if not _library.CPU.loaded:
        pytest.skip("no CPU kernels")
    features = torch.randn(40, 33, 16, 16).to(memory_format=layout)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            pooled = torch.ops.sftn_fast.features_pool_forward(features, 5, 8)
            results.append((pooled, torch.ops.sftn_fast.features_pool_backward(pooled, features)))
    finally:
        torch.set_num_threads(threads)
    for pooled, grad in results[1:]:
        assert torch.equal(pooled, results[0][0])
        assert torch.equal(grad, results[0][1])


@pytest.mark.skipif(not _library.CPU.loaded, reason=f"no CPU kernels: {_library.CPU.error}")
@paired(channels=[1, 3], dtype=DTYPES, layout=LAYOUTS)
def test_opcheck(dtype, layout, channels):
    features = torch.randn(2, channels, 4, 6).to(dtype).to(memory_format=layout)
    namespace = torch.ops.sftn_fast
    torch.library.opcheck(namespace.features_pool_forward.default, (features, 2, 4), test_utils=FAKES)
    pooled = namespace.features_pool_forward(features, 2, 4)
    torch.library.opcheck(namespace.features_pool_backward.default, (pooled, features), test_utils=FAKES)
