from __future__ import annotations

import pytest
import torch

from sftn_fast import cli, models
from sftn_fast.config import EngineConfig
from sftn_fast.engine import Layout
from sftn_fast.engine.device import is_channels_last
from sftn_fast.experiment.worker import Worker

CPU = torch.device("cpu")
FORMATS = {False: torch.contiguous_format, True: torch.channels_last}


@pytest.mark.parametrize("given", FORMATS.values(), ids=str)
@pytest.mark.parametrize("chosen", FORMATS)
def test_images_lie_as_chosen_however_they_come(chosen, given):
    images = torch.randn(2, 3, 4, 5).contiguous(memory_format=given)
    laid_out = Layout(CPU, channels_last=chosen).images(images)
    assert laid_out.is_contiguous(memory_format=FORMATS[chosen]) and torch.equal(laid_out, images)


@pytest.mark.parametrize(
    ("choice", "network", "device", "amp", "expected"),
    [
        ("auto", "resnet8", "cpu", "fp32", True),
        ("auto", "wrn_16_1", "cpu", "bf16", True),
        ("auto", "vgg8", "cpu", "fp32", False),
        ("auto", None, "cpu", "fp32", True),
        ("auto", "resnet8", "cuda", "fp32", False),
        ("auto", "vgg8", "cuda", "bf16", True),
        ("auto", None, "cuda", "fp16", True),
        (True, "vgg8", "cpu", "fp32", True),
        (True, "vgg8", "cuda", "fp32", True),
        (False, "resnet8", "cpu", "fp32", False),
        (False, "resnet8", "cuda", "bf16", False),
    ],
)
def test_what_is_chosen(choice, network, device, amp, expected):
    engine = EngineConfig(channels_last=choice, amp=amp)
    assert is_channels_last(engine, network and models.build(network), torch.device(device)) is expected


def test_a_worker_asks_its_loaders_for_one_of_the_two(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("sftn_fast.data.build", lambda *_, **options: asked.append(options["channels_last"]))
    for choice in ("auto", "true", "false"):
        config, _ = cli.parse(["--engine.channels_last", choice, "--engine.device", "cpu"])
        Worker(config, tmp_path).images_of(0)
    assert asked == [True, True, False]
