"""Maps of a foreign network's stages before their last activation.

The search follows the last step of a stage's graph into the module that makes it, and on into that module's last step,
until it meets an activation, or a step after which there is none, such as the sum of a residual block. The activation
is then taken out of the graph, and :class:`PreactStage` applies it.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sftn_fast.models.staged import PreactModule
from sftn_fast.models.wrap import trace

ACTIVATIONS = ("torch.nn.modules.activation", "timm.layers.activations")
"""Modules of Python whose classes are activations."""
NOT_POINTWISE = (nn.Softmax, nn.Softmax2d, nn.Softmin, nn.LogSoftmax, nn.GLU, nn.MultiheadAttention, nn.RReLU)
FUNCTIONS: dict[object, type[nn.Module]] = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, "relu", "relu_"), nn.ReLU),
    F.relu6: nn.ReLU6,
    F.silu: nn.SiLU,
    F.hardswish: nn.Hardswish,
}
"""Functions and methods of tensors that are activations, and their modules."""
MOVES = ("contiguous", "flatten", "permute", "reshape", "transpose", "unflatten", "view")
"""Methods of tensors that move values and do not change them."""
SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
LINEAR = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
NORMS = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
"""Norms of which timm has subclasses that apply an activation too, their ``act``."""

NO_ACTIVATION = nn.Identity()


class PreactStage(PreactModule):
    """Stage whose last activation is applied here.

    Args:
        body: The stage without that activation.
        activation: The activation, not in place; Identity for a stage that ends in none. Such a stage's map is its own
            pre-activation.
        norm: Name in ``body`` of the BatchNorm that writes the pre-activation, or the residual path of it; None if no
            single one does.
    """

    def __init__(self, body: fx.GraphModule, activation: nn.Module, norm: str | None) -> None:
        super().__init__()
        self.body, self.activation, self.norm = body, activation, norm

    def forward(self, x: Tensor) -> Tensor:
        """See :meth:`PreactModule.forward`."""
        return self.activation(self.body(x))

    def forward_preact(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`PreactModule.forward_preact`."""
        preact = self.body(x)
        return self.activation(preact), preact

    def preact_norm(self) -> nn.BatchNorm2d:
        """See :meth:`PreactModule.preact_norm`."""
        if self.norm is None:
            raise ValueError("no single BatchNorm writes the pre-activation of a stage")
        return cast(nn.BatchNorm2d, self.body.get_submodule(self.norm))


def give_preact(part: fx.GraphModule) -> nn.Module:
    """Return the stage ``part`` with its map before its last activation; unchanged if it is unknown what that map is.

    The activation is taken out of ``part`` itself, so the network that lends its modules no longer applies it.
    """
    end = _find_end(part)
    if end is None:
        return part
    norm = _norm_before(part, end)
    return PreactStage(part, _take_out(part, end), norm)


class _Step(NamedTuple):
    """A step in the graph of a module of a stage."""

    owner: str
    """Name of the module in the stage; empty for the stage itself."""
    graph: fx.Graph
    node: fx.Node

    def name(self) -> str:
        """Return the name in the stage of the module that this step calls."""
        return f"{self.owner}.{self.node.target}".lstrip(".")

    def at(self, node: fx.Node) -> _Step:
        """Return the step ``node`` of the same graph, or the one before it that computes its values."""
        step = self._replace(node=node)
        while step.node.op == "call_method" and step.node.target in MOVES:
            step = step._replace(node=step.node.all_input_nodes[0])
        return step


def _last_step(owner: str, graph: fx.Graph) -> _Step | None:
    """Return the step that computes the output of a graph; None if it has several outputs."""
    (output,) = graph.output_node().args
    if not isinstance(output, fx.Node):
        return None
    step = _Step(owner, graph, output)
    return step.at(output)


def _called(part: fx.GraphModule, step: _Step) -> nn.Module | None:
    """Return the module that ``step`` calls; None for another step."""
    return part.get_submodule(step.name()) if step.node.op == "call_module" else None


def _inside(part: fx.GraphModule, step: _Step) -> _Step | None:
    """Return the last step of the module that ``step`` calls; None if it can't be traced."""
    try:
        return _last_step(step.name(), trace(part.get_submodule(step.name())))
    except ValueError:
        return None


def _find_end(part: fx.GraphModule) -> _Step | None:
    """Return the step that applies the last activation of ``part``, or the last step if there is none after it.

    None if neither can be told, or if something else also needs what the activation gives.
    """
    step, alone = _last_step("", part.graph), True
    while step is not None:
        alone = alone and _is_only_returned(step)
        module = _called(part, step)
        if isinstance(module, nn.Identity):
            step = step.at(step.node.all_input_nodes[0])
        elif _is_activation(step, module):
            return step if alone else None
        elif module is None:
            return step if _is_sum(step) else None
        elif isinstance(module, LINEAR):
            act = getattr(module, "act", NO_ACTIVATION)
            return step if isinstance(act, nn.Identity) or (alone and _runs_once(step) and _is_pointwise(act)) else None
        else:
            alone = alone and _runs_once(step)
            step = _inside(part, step)
    return None


def _is_activation(step: _Step, module: nn.Module | None) -> bool:
    """Return whether ``step``, which calls ``module`` or a function, is an activation."""
    return step.node.target in FUNCTIONS if module is None else _is_pointwise(module)


def _is_pointwise(module: object) -> bool:
    """Return whether ``module`` is an activation that knows neither channels nor parameters."""
    known = isinstance(module, nn.Module) and type(module).__module__ in ACTIVATIONS
    return known and not isinstance(module, NOT_POINTWISE) and not list(cast(nn.Module, module).parameters())


def _is_only_returned(step: _Step) -> bool:
    """Return whether nothing else in the graph needs the output of ``step``."""
    node = step.node
    while node.op != "output" and len(node.users) == 1:
        (node,) = node.users
    return node.op == "output"


def _runs_once(step: _Step) -> bool:
    """Return whether the module that ``step`` calls is called nowhere else in the graph."""
    return len(step.graph.find_nodes(op="call_module", target=str(step.node.target))) == 1


def _is_sum(step: _Step) -> bool:
    """Return whether ``step`` adds maps, rather than a parameter to a map, as what follows an activation may do."""
    nodes = step.node.all_input_nodes
    return step.node.target in SUMS and len(nodes) > 1 and all(step.at(node).node.op != "get_attr" for node in nodes)


def _norm_before(part: fx.GraphModule, end: _Step) -> str | None:
    """Return the name of the BatchNorm that writes what ``end`` activates, or what it returns; None if none does."""
    module = _called(part, end)
    if isinstance(module, nn.BatchNorm2d):  # if it applies an activation too, that is taken out
        return end.name()
    return _norm_at(part, end.at(end.node.all_input_nodes[0]) if _is_activation(end, module) else end)


def _norm_at(part: fx.GraphModule, step: _Step | None) -> str | None:
    """Return the name of the BatchNorm that writes the output of ``step``; of a residual sum, that on its longest path.

    None if no single one does.
    """
    while step is not None:
        module = _called(part, step)
        if isinstance(module, nn.BatchNorm2d):
            return step.name() if isinstance(getattr(module, "act", NO_ACTIVATION), nn.Identity) else None
        if isinstance(module, nn.Identity) or "Drop" in type(module).__name__:
            step = step.at(step.node.all_input_nodes[0])
        elif module is not None:
            step = _inside(part, step)
        elif _is_sum(step):
            step = _longest(_summands(step))
        else:
            return None
    return None


def _summands(step: _Step) -> list[_Step]:
    """Return the steps whose outputs the sum ``step`` adds, also those of sums in it."""
    given = [step.at(node) for node in step.node.all_input_nodes]
    return [each for one in given for each in (_summands(one) if _is_sum(one) else [one])]


def _longest(steps: Sequence[_Step]) -> _Step | None:
    """Return the one of ``steps`` that needs the most others; None if two need as many, as parallel convolutions do."""
    lengths = [len(_ancestors(step.node)) for step in steps]
    return steps[lengths.index(max(lengths))] if lengths.count(max(lengths)) == 1 else None


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        new = set(waiting.pop().all_input_nodes) - found
        found |= new
        waiting += new
    return found


def _take_out(part: fx.GraphModule, end: _Step) -> nn.Module:
    """Remove the activation that is ``end`` from ``part`` and return it; Identity if ``end`` is none."""
    module = _called(part, end)
    if isinstance(module, NORMS) and isinstance(getattr(module, "act", None), nn.Module):
        activation = cast(nn.Module, module.act)
        module.act = nn.Identity()
        return _out_of_place(activation)
    if not _is_activation(end, module):
        return nn.Identity()
    graph, node = end.graph, end.node
    node.replace_all_uses_with(node.all_input_nodes[0])
    graph.erase_node(node)
    if end.owner:
        owner = part.get_submodule(end.owner)
        part.set_submodule(end.owner, fx.GraphModule(owner, graph, type(owner).__name__))
    else:
        part.recompile()
    return FUNCTIONS[node.target]() if module is None else _out_of_place(module)


def _out_of_place(activation: nn.Module) -> nn.Module:
    copied: Any = copy.deepcopy(activation)
    if hasattr(copied, "inplace"):
        copied.inplace = False
    return cast(nn.Module, copied)
