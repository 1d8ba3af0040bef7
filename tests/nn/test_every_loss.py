"""Contracts of every module and every class with RepDistiller's names, over the table of `every_loss`."""

from __future__ import annotations

import contextlib
import copy
import inspect

import pytest
import torch
from every_loss import COMPAT, EVERY, MODULES, changed, tensors_in, total
from layers import LAYERS, gradients, leaves_of, recorded, replayed
from pairing import paired
from precision import assert_rounded_once
from torch import nn as torch_nn

from sftn_fast import nn, ops
from sftn_fast.compat import repdistiller

each = pytest.mark.parametrize("name", EVERY)
HALF = [torch.bfloat16, torch.float16]
ARITHMETIC = 5e-5  # relative to the largest gradient, for float32
CONDITION = {"compat.KDSVD": 20, "nn.KDSVDLoss": 20}  # of singular vectors, by the gaps between singular values


def classes(module) -> set[str]:
    public = {name: getattr(module, name) for name in module.__all__}
    return {name for name, x in public.items() if inspect.isclass(x) and issubclass(x, torch_nn.Module)}


@pytest.mark.parametrize(("module", "table"), [(nn, MODULES), (repdistiller, COMPAT)])
def test_table_holds_every_class(module, table):
    assert {name.split(",")[0].split(" ")[0] for name in table} == classes(module)


def build(name):
    torch.manual_seed(0)
    return EVERY[name].build()


# ---- precision ----


@paired(autocast={"autocast": True, "plain": False}, dtype=HALF, kind=["fused", "reference"], name=list(EVERY))
def test_half_precision_is_computed_in_float32(name, kind, dtype, autocast):
    """Half-precision inputs, and outputs of layers, are computed as exactly as float32, with and without autocast."""
    module = build(name)
    with ops.backend(kind):
        for layer in [] if autocast else module.modules():  # without autocast, weights must have the inputs' dtype
            if isinstance(layer, LAYERS):
                layer.to(dtype)
        wide = copy.deepcopy(module).double()
        student, *others = EVERY[name].arguments(dtype)
        student = leaves_of(student)
        context = torch.autocast("cpu", dtype) if autocast else contextlib.nullcontext()
        with context, recorded(module) as outputs:
            value = total(module(student, *others))
        actual = gradients(value, student, outputs)

        wide_student, *wide_others = changed((student, *others), lambda x: x.double() if x.is_floating_point() else x)
        wide_student, wide_outputs = leaves_of(wide_student), [x.detach().double().requires_grad_() for x in outputs]
        with replayed(wide, wide_outputs):
            true_value = total(wide(wide_student, *wide_others))
        true = gradients(true_value, wide_student, wide_outputs)
    assert value.dtype == torch.float32
    off = ARITHMETIC * CONDITION.get(name, 1)
    assert value.item() == pytest.approx(true_value.item(), rel=off)
    for grad, right in zip(actual, true, strict=True):
        assert_rounded_once(grad, right, off)


def test_nst_of_near_maps_under_autocast():
    """Kernels that differ by a thousandth of their size, which half-precision products would lose."""
    torch.manual_seed(0)
    student = torch.randn(4, 16, 8, 8).bfloat16()
    teacher = (student + 0.05 * torch.randn_like(student)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value = nn.NSTLoss()(student, teacher).item()
    assert value == pytest.approx(nn.NSTLoss()(student.double(), teacher.double()).item(), rel=1e-3)


# ---- inference mode ----


@each
@pytest.mark.parametrize("kind", ["fused", "reference"])
def test_what_inference_mode_made_is_taken(name, kind):
    """A teacher's outputs, targets and indices from ``torch.inference_mode()`` give the usual values and gradients."""
    outcomes = []
    for made_there in (False, True):
        module = build(name)
        student, *others = EVERY[name].arguments()
        student = leaves_of(student)
        if made_there:
            with torch.inference_mode():
                others = changed(others, torch.clone)
            assert all(x.is_inference() for x in tensors_in(others))
        with ops.backend(kind):
            value = total(module(student, *others))
            value.backward()
        learned = [p.grad for p in module.parameters() if p.grad is not None]
        outcomes.append([value.detach(), *(x.grad for x in tensors_in(student)), *learned])
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


# ---- odd batches ----


@each
@pytest.mark.parametrize("kind", ["fused", "reference"])
def test_an_empty_batch_gives_zero(name, kind):
    module = build(name)
    student, *others = changed(EVERY[name].arguments(), lambda x: x[:0])
    student = leaves_of(student)
    with ops.backend(kind):
        value = total(module(student, *others))
        value.backward()
    assert value.item() == 0
    grads = [x.grad for x in (*tensors_in(student), *module.parameters())]
    assert all((grad == 0).all() for grad in grads if grad is not None)
    assert all(buffer.isfinite().all() for key, buffer in module.named_buffers() if ".z_" not in key)


@each
@pytest.mark.filterwarnings("ignore:sftn_fast. no compiled kernels")
def test_a_batch_without_data_gives_a_loss_without_data(name):
    module = build(name).to("meta")
    student, *others = changed(EVERY[name].arguments(), lambda x: x.to("meta"))
    value = total(module(leaves_of(student), *others))
    value.backward()
    assert value.is_meta and value.shape == ()


@each
@pytest.mark.parametrize("layout", [torch.Tensor.to_sparse, torch.Tensor.to_mkldnn], ids=["sparse", "mkldnn"])
def test_a_tensor_that_is_not_dense_is_refused(name, layout):
    student, *others = EVERY[name].arguments()
    with pytest.raises(TypeError, match=r"must be a dense tensor, got a tensor of layout (sparse_coo|mkldnn)"):
        build(name)(changed(student, layout), *others)
