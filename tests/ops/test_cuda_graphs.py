"""On a GPU: no loss waits for the device, and each can be captured in a CUDA graph."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from every_op import LOSSES, TABLE, assert_same_bits, evaluate, tensors_of

from sftn_fast import ops
from sftn_fast.ops import _library

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(not _library.CUDA.loaded, reason=f"no CUDA kernels: {_library.CUDA.error}"),
]


@pytest.fixture(autouse=True)
def fused() -> Iterator[None]:
    with ops.backend("fused"):
        yield


@pytest.mark.parametrize("name", TABLE)
def test_nothing_waits(name):
    op = TABLE[name]
    evaluate(op, op.arguments(device="cuda"))
    arguments = op.arguments(device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        evaluate(op, arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", LOSSES)
def test_captured(name):
    """A replay gives the bits of a call, including the states it changes."""
    op = TABLE[name]
    expected = evaluate(op, op.arguments(device="cuda"))
    arguments = op.arguments(device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # one-time initialisation must not be captured
        for _ in range(3):
            evaluate(op, arguments)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = evaluate(op, arguments)
    for used, fresh in zip(tensors_of(arguments), tensors_of(op.arguments(device="cuda")), strict=True):
        used.copy_(fresh)
    graph.replay()
    torch.cuda.synchronize()
    assert_same_bits(captured, expected)
