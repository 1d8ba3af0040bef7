"""Each family's block against its definition, written out over the block's tensors in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sftn_fast.models import mobilenet, resnet, shufflenet_v1, shufflenet_v2, vgg, wrn


class Reference:
    """Return the layers of ``block`` as functions, made from its state dict."""

    def __init__(self, block: nn.Module) -> None:
        self.state = block.state_dict()

    def conv(self, name, x, stride=1, groups=1):
        weight, bias = self.state[f"{name}.weight"], self.state.get(f"{name}.bias")
        return F.conv2d(x, weight, bias, stride, weight.shape[-1] // 2, groups=groups)

    def norm(self, name, x):
        mean, var, weight, bias = (
            self.state[f"{name}.{tensor}"][:, None, None]
            for tensor in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def shuffle(x, groups):
    """Move channel i of group g to position i * groups + g."""
    width = x.shape[1] // groups
    return torch.stack([x[:, g * width + i] for i in range(width) for g in range(groups)], 1)


def basic(r, x, stride, shortcut):
    out = F.relu(r.norm("bn1", r.conv("conv1", x, stride)))
    out = r.norm("bn2", r.conv("conv2", out))
    return F.relu(out + (r.norm("shortcut.1", r.conv("shortcut.0", x, stride)) if shortcut else x))


def bottleneck(r, x, stride, shortcut):
    out = F.relu(r.norm("bn1", r.conv("conv1", x)))
    out = F.relu(r.norm("bn2", r.conv("conv2", out, stride)))
    out = r.norm("bn3", r.conv("conv3", out))
    return F.relu(out + (r.norm("shortcut.1", r.conv("shortcut.0", x, stride)) if shortcut else x))


def wide(r, x, stride, shortcut):
    active = F.relu(r.norm("bn1", x))
    out = r.conv("conv2", F.relu(r.norm("bn2", r.conv("conv1", active, stride))))
    return out + (r.conv("shortcut", active, stride) if shortcut else x)


def vgg_stage(r, x, pooled):
    if pooled:
        x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax((-2, -1))
    x = F.relu(r.norm("layers.1", r.conv("layers.0", x)))
    return F.relu(r.norm("layers.4", r.conv("layers.3", x)))


def inverted(r, x, stride, residual):
    out = F.relu(r.norm("conv.1", r.conv("conv.0", x)))
    out = F.relu(r.norm("conv.4", r.conv("conv.3", out, stride, groups=out.shape[1])))
    out = r.norm("conv.7", r.conv("conv.6", out))
    return out + x if residual else out


def shuffle_v1(r, x, halve, groups):
    out = shuffle(F.relu(r.norm("bn1", r.conv("conv1", x, groups=groups))), groups)
    out = F.relu(r.norm("bn2", r.conv("conv2", out, 2 if halve else 1, groups=out.shape[1])))
    out = r.norm("bn3", r.conv("conv3", out, groups=3))
    if not halve:
        return F.relu(out + x)
    windows = F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 2).unfold(3, 3, 2)
    return F.relu(torch.cat([out, windows.mean((-2, -1))], 1))


def shuffle_v2_halving(r, x):
    left = r.norm("bn1", r.conv("conv1", x, 2, groups=x.shape[1]))
    left = F.relu(r.norm("bn2", r.conv("conv2", left)))
    right = F.relu(r.norm("bn3", r.conv("conv3", x)))
    right = r.norm("bn4", r.conv("conv4", right, 2, groups=right.shape[1]))
    right = F.relu(r.norm("bn5", r.conv("conv5", right)))
    return shuffle(torch.cat([left, right], 1), 2)


def shuffle_v2(r, x):
    passed, right = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]
    right = F.relu(r.norm("bn1", r.conv("conv1", right)))
    right = r.norm("bn2", r.conv("conv2", right, groups=right.shape[1]))
    right = F.relu(r.norm("bn3", r.conv("conv3", right)))
    return shuffle(torch.cat([passed, right], 1), 2)


# Block, input channels, definition.
CASES = {
    "basic": (lambda: resnet.BasicBlock(8, 8, 1), 8, lambda r, x: basic(r, x, 1, False)),
    "basic, halving": (lambda: resnet.BasicBlock(8, 12, 2), 8, lambda r, x: basic(r, x, 2, True)),
    "basic, wider": (lambda: resnet.BasicBlock(8, 12, 1), 8, lambda r, x: basic(r, x, 1, True)),
    "bottleneck": (lambda: resnet.Bottleneck(16, 4, 1), 16, lambda r, x: bottleneck(r, x, 1, False)),
    "bottleneck, halving": (lambda: resnet.Bottleneck(8, 4, 2), 8, lambda r, x: bottleneck(r, x, 2, True)),
    "wide": (lambda: wrn.WideBlock(8, 8, 1), 8, lambda r, x: wide(r, x, 1, False)),
    "wide, halving": (lambda: wrn.WideBlock(8, 12, 2), 8, lambda r, x: wide(r, x, 2, True)),
    "vgg": (lambda: vgg.VGGBlock(6, 8, 2, pooled_from=None), 6, lambda r, x: vgg_stage(r, x, False)),
    "vgg, pooling": (lambda: vgg.VGGBlock(6, 8, 2, pooled_from=8), 6, lambda r, x: vgg_stage(r, x, True)),
    "vgg, too small to pool": (lambda: vgg.VGGBlock(6, 8, 2, pooled_from=9), 6, lambda r, x: vgg_stage(r, x, False)),
    "inverted": (lambda: mobilenet.InvertedResidual(6, 6, 1, 4), 6, lambda r, x: inverted(r, x, 1, True)),
    "inverted, halving": (lambda: mobilenet.InvertedResidual(6, 6, 2, 4), 6, lambda r, x: inverted(r, x, 2, False)),
    "inverted, wider": (lambda: mobilenet.InvertedResidual(6, 8, 1, 1), 6, lambda r, x: inverted(r, x, 1, False)),
    "shuffle v1": (
        lambda: shufflenet_v1.ShuffleUnit(24, 24, halve=False),
        24,
        lambda r, x: shuffle_v1(r, x, False, 3),
    ),
    "shuffle v1, halving": (
        lambda: shufflenet_v1.ShuffleUnit(12, 36, halve=True),
        12,
        lambda r, x: shuffle_v1(r, x, True, 3),
    ),
    "shuffle v1, ungrouped": (
        lambda: shufflenet_v1.ShuffleUnit(12, 36, halve=True, in_groups=1),
        12,
        lambda r, x: shuffle_v1(r, x, True, 1),
    ),
    "shuffle v2": (lambda: shufflenet_v2.ShuffleUnit(12), 12, shuffle_v2),
    "shuffle v2, halving": (lambda: shufflenet_v2.HalvingUnit(6, 16), 6, shuffle_v2_halving),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_block_is_its_definition(case):
    make, channels, definition = CASES[case]
    torch.manual_seed(0)
    block = make().double().eval()
    for tensor in block.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if tensor.dim() == 1 else torch.randn_like(tensor))
    x = torch.randn(2, channels, 8, 8, dtype=torch.float64)
    # The half that passes a ShuffleNet V2 unit is the output of a ReLU.
    x = x.relu() if case == "shuffle v2" else x
    torch.testing.assert_close(block(x), definition(Reference(block), x), rtol=1e-10, atol=1e-10)
