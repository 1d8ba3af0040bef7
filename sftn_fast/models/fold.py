"""A frozen network with its BatchNorms folded into the convolutions before them: fewer passes over each map.

In evaluation a BatchNorm is an affine map of each channel, and so is what a convolution ends with, hence one
convolution does both. Equal to float rounding. Only what is wholly inside folds: in a pre-activation network the norm
that follows a residual sum stays, since the sum goes on without it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sftn_fast.models.copying import copy_network
from sftn_fast.models.staged import StagedNet


class FrozenNet:
    """A network that others learn from, as it is to be run: ``frozen()`` is the folded copy, for evaluation alone.

    It is folded when it is first asked for, and again when the network's tensors are others than then, as after a
    move to a device or other weights. Taps stay where they were: stages, pre-activations and logits are the network's.
    Read a BatchNorm's parameters from the network itself.
    """

    def __init__(self, net: StagedNet) -> None:
        self.net = net
        self._tensors: list[Tensor] = []
        self._state: list[tuple[int, int]] | None = None
        self._folded = net

    def __call__(self) -> StagedNet:
        """The folded copy of the network as it is now. Costs a look at each of its tensors, without the device.

        Under torch.compile the network itself, whose norms the compiler fuses with what is around them.
        """
        if torch.compiler.is_compiling():
            return self.net
        if self._state != _state(self._tensors):
            self._tensors = [*self.net.parameters(), *self.net.buffers()]
            self._state, self._folded = _state(self._tensors), fold(self.net)
        return self._folded


def fold(net: StagedNet) -> StagedNet:
    """A copy of ``net`` in evaluation mode, each BatchNorm that alone takes a convolution's output folded into it.

    A network whose forward pass :mod:`torch.fx` can't trace is copied as it is.
    """
    folded = copy_network(net).requires_grad_(False).eval()
    modules = dict(folded.named_modules())
    for convolution, norm in _pairs(folded, modules):
        folded.set_submodule(convolution, fuse_conv_bn_eval(modules[convolution], modules[norm]))  # type: ignore[type-var]
        folded.set_submodule(norm, nn.Identity())
    return folded.requires_grad_(False)


class _Tracer(fx.Tracer):
    """Looks into whatever has modules inside; what has none may branch as it likes."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(m.children()) or super().is_leaf_module(m, module_qualified_name)


def _pairs(net: nn.Module, modules: dict[str, nn.Module]) -> Iterator[tuple[str, str]]:
    """Names of each convolution and the BatchNorm that is all that reads it, both called once in the same part.

    What the stem and the stages give is seen from outside, and stays as it is.
    """
    try:
        graph = _Tracer().trace(net)
    except Exception:  # the tracer raises whatever the network's code does with a proxy
        return
    calls = [node for node in graph.nodes if node.op == "call_module"]
    targets = [node.target for node in calls]
    for node in calls:
        before = node.args[0]
        if (
            isinstance(modules[node.target], nn.BatchNorm2d)
            and modules[node.target].running_var is not None
            and isinstance(before, fx.Node)
            and before.op == "call_module"
            and type(modules[str(before.target)]) is nn.Conv2d
            and not _is_hooked(modules[str(before.target)], modules[node.target])
            and _part(str(before.target)) == _part(node.target)
            and len(before.users) == targets.count(node.target) == targets.count(before.target) == 1
        ):
            yield str(before.target), node.target


def _is_hooked(*layers: nn.Module) -> bool:
    """Whether anything else than the layers themselves has a say, as pruning and weight_norm in a layer's weight."""
    return any(layer._forward_pre_hooks or layer._forward_hooks for layer in layers)


def _part(name: str) -> list[str]:
    """Stem, one of the stages, or head."""
    return name.split(".")[: 2 if name.startswith("stages.") else 1]


def _state(tensors: list[Tensor]) -> list[tuple[int, int]]:
    """Where each tensor lies and how often it was written to."""
    return [(tensor.data_ptr(), tensor._version) for tensor in tensors]
