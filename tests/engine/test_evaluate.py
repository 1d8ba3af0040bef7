from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pairing import paired
from torch import nn

from sftn_fast.engine import Layout, evaluate

from .stubs import EvalLoader, make_task

CPU = Layout(torch.device("cpu"))


def images_and_target(size: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(size, 3, 6, 6, generator=generator), torch.randint(classes, (size,), generator=generator)


@paired(size=[1, 7, 64, 101], batch_size=[1, 8, 64, 200], classes=[2, 4, 5, 30])
def test_each_image_counts_once(size, batch_size, classes):
    images, target = images_and_target(size, classes)
    model = make_task(classes=classes).model
    result = evaluate(model, EvalLoader(images, target, batch_size), CPU)

    logits = model.eval().double()(images.double())
    order = logits.argsort(dim=1, descending=True)
    rank = (order == target[:, None]).int().argmax(dim=1)
    assert result["top1"] == pytest.approx(100 * (rank < 1).double().mean().item())
    assert result["ce"] == pytest.approx(F.cross_entropy(logits, target).item(), rel=1e-5)
    if classes >= 5:
        assert result["top5"] == pytest.approx(100 * (rank < 5).double().mean().item())
    else:
        assert "top5" not in result


@pytest.mark.parametrize(("dtype", "channels_last"), [(torch.bfloat16, False), (torch.float16, True)])
def test_half_precision_is_close(dtype, channels_last):
    images, target = images_and_target(50, 6)
    model = make_task().model
    full = evaluate(model, EvalLoader(images, target), CPU)
    half = evaluate(model, EvalLoader(images, target), Layout(CPU.device, dtype, channels_last))
    assert half["ce"] == pytest.approx(full["ce"], rel=2e-2) and half["ce"] != full["ce"]


def test_modes_and_gradients_are_left_alone():
    images, target = images_and_target(9, 6)
    model = make_task().model.train()
    model[1].eval()  # a BatchNorm frozen on purpose
    statistics = model[1].running_mean.clone()
    evaluate(model, EvalLoader(images, target), CPU)
    assert [module.training for module in model] == [True, False, True, True, True, True, True]
    assert torch.equal(model[1].running_mean, statistics)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_images_is_an_error():
    with pytest.raises(ValueError, match="no images"):
        evaluate(nn.Flatten(), [], CPU)
