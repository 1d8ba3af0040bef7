"""Conversion of a user's network to a staged one: its graph is traced and cut after the modules that end a stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn

from sftn_fast.models.layouts import IN_ORDER, Layout, find_layouts
from sftn_fast.models.registry import unknown_name
from sftn_fast.models.staged import StagedNet

FindLayouts = Callable[[Sequence[nn.Module], int, Sequence[str]], list[Layout]]
"""Finds the layouts of maps, as :func:`~sftn_fast.models.layouts.find_layouts` does, with its arguments."""


def as_staged(
    module: nn.Module,
    stages: Sequence[str],
    head: str,
    *,
    stem: str | None = None,
    in_channels: int | None = None,
    num_classes: int | None = None,
) -> StagedNet:
    """Cut ``module`` into a staged network that shares its parameters.

    Only the forward functions of the modules *around* the named ones are traced, by :mod:`torch.fx`. All other modules,
    including the named ones, are called unchanged. Code between two named modules belongs to the later stage, code
    after the last stage to the head. Such a network has no pre-activations.

    Maps [N, H, W, C], such as those of torchvision's Swin, are returned as [N, C, H, W]. The channel axis is the one
    that does not change with the images' size. Tokens [N, L, C] are refused.

    A trace turns ``x += y`` into ``x = x + y``, so another name for ``x`` keeps the old value.

    Args:
        module: Network from images [N, C, H, W] to logits [N, num_classes].
        stages: Dotted name of the last module of each stage, in the order in which they run. Each returns a map
            [N, C, H, W].
        head: Dotted name of the classifier. Its flattened input is the pooled vector.
        stem: Dotted name of the stem's last module; by default the stem is everything before ``stages[0]``.
        in_channels: Channels of the images; by default those of the first convolution.
        num_classes: Classes; by default the width of the head's last linear or convolutional layer.

    Example::

        net = as_staged(torchvision.models.resnet18(), ["layer1", "layer2", "layer3", "layer4"], head="fc")

    Raises:
        ValueError: A name is unknown or given twice; a named module runs never, twice or out of order, or returns no
            map; a value other than a stage's output crosses a cut; or code around the named modules can't be traced.
    """
    return cut(module, stages, head, find_layouts, stem=stem, in_channels=in_channels, num_classes=num_classes)


def cut(
    module: nn.Module,
    stages: Sequence[str],
    head: str,
    find: FindLayouts,
    *,
    stem: str | None,
    in_channels: int | None,
    num_classes: int | None,
) -> StagedNet:
    """Cut ``module`` as :func:`as_staged` does; ``find`` tells how its maps lie in memory."""
    if not stages:
        raise ValueError("stages must name at least one module")
    named = [*([] if stem is None else [stem]), *stages, head]
    with _constants(module):
        graph = trace(module, named)
        start, result = _ends(graph)
        *cuts, head_node = _calls_in_order(graph, named)
        if stem is None:
            cuts.insert(0, _only_input(cuts[0]))
        for cut in cuts:
            _refuse_overwriting(module, cut)
        ends = [start, *cuts, _only_input(head_node), result]
        channels = _in_channels(module) if in_channels is None else in_channels
        layouts = find(_split(module, graph, ends)[:-2], channels, [_label(cut) for cut in cuts])
        stem_part, *stage_parts, pool, classifier = _split(module, graph, ends, layouts)
    net = StagedNet(
        stem_part,
        stage_parts,
        WrappedHead(pool, classifier),
        num_classes=_num_classes(module.get_submodule(head), head) if num_classes is None else num_classes,
        in_channels=channels,
        name=f"as_staged({type(module).__name__})",
    )
    net.wrapped_names = names_in(module, net)
    net.training = module.training
    return net


def names_in(module: nn.Module, net: nn.Module) -> dict[str, str]:
    """Return ``net``'s names of the tensors that it shares with ``module``, by their names in ``module``."""
    return names_of(module.state_dict(keep_vars=True), net)


def names_of(tensors: Mapping[str, Tensor], net: nn.Module) -> dict[str, str]:
    """Return ``net``'s names of those of ``tensors`` that it holds, by their names there."""
    # keep_vars returns the tensors themselves, so that they can be identified.
    own = {id(tensor): name for name, tensor in net.state_dict(keep_vars=True).items()}
    return {name: own[id(tensor)] for name, tensor in tensors.items() if id(tensor) in own}


class WrappedHead(nn.Module):
    """Everything after the last stage, cut before the classifier."""

    def __init__(self, pool: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.pool = pool
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, num_classes] of the last stage's output."""
        return self.forward_pooled(x)[1]

    def forward_pooled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the classifier's input, flattened to [N, D], and logits [N, num_classes]."""
        pooled = self.pool(x)
        return pooled.flatten(1), self.classifier(pooled)


class _Tracer(fx.Tracer):
    """Tracer that traces into ``containers`` only."""

    # Otherwise values computed from a buffer alone, as self.mean.view(-1, 1, 1), would be constants of the trace.
    proxy_buffer_attributes = True

    def __init__(self, containers: set[nn.Module]) -> None:
        super().__init__()
        self.containers = containers

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m not in self.containers


def trace(module: nn.Module, named: Sequence[str] = ()) -> fx.Graph:
    """Return the graph of ``module``, in which all modules but those around the ``named`` ones are single steps.

    Raises:
        ValueError: A name is unknown or given twice, or the module can't be traced.
    """
    modules = dict(module.named_modules())
    for name in named:
        if name not in modules or not name:
            raise ValueError(unknown_name("module", name, [other for other in modules if other]))
        if named.count(name) > 1:
            raise ValueError(f"module {name!r} is named twice")
    parents = {"", *(name[:i] for name in named for i, letter in enumerate(name) if letter == ".")}
    containers = {modules[parent] for parent in parents}
    for name in named:
        if modules[name] in containers:
            raise ValueError(f"module {name!r} contains another of the named modules")
    with _constants(module) as training_constants:
        training_graph = _trace_in(True, module, containers)
    before = set(vars(module))
    graph = _trace_in(False, module, containers)
    constants = {name: vars(module)[name] for name in vars(module).keys() - before}
    codes = [each.python_code("self").src for each in (training_graph, graph)]
    if codes[0] != codes[1] or not _same(training_constants, constants):
        raise ValueError(
            f"the forward function of {type(module).__name__} depends on self.training or on random numbers, which a "
            f"trace can't: move that code into a submodule, such as nn.Dropout in place of functional dropout"
        )
    return graph


def _trace_in(training: bool, module: nn.Module, containers: set[nn.Module]) -> fx.Graph:
    try:
        with _mode(containers, training):
            return _Tracer(containers).trace(module)
    except Exception as error:
        raise ValueError(
            f"{type(module).__name__} can't be traced: {error}. The forward functions of the network and of the "
            f"modules that contain the named ones must not branch on tensors; move such code into a submodule"
        ) from error


@contextmanager
def _constants(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Remove on exit the constants that traces stored on ``module``, and put them into the yielded dict.

    Constants are tensors that the forward function creates, such as ``torch.tensor(2.0)``.
    """
    before = set(vars(module))
    found: dict[str, Tensor] = {}
    try:
        yield found
    finally:
        for name in vars(module).keys() - before:
            found[name] = vars(module).pop(name)


def _same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


@contextmanager
def _mode(modules: set[nn.Module], training: bool) -> Iterator[None]:
    """Set the training flag of exactly these modules inside the context."""
    before = {module: module.training for module in modules}
    try:
        for module in modules:
            module.training = training
        yield
    finally:
        for module, flag in before.items():
            module.training = flag


def _ends(graph: fx.Graph) -> tuple[fx.Node, fx.Node]:
    """Return the nodes of the images and of the logits."""
    start, *others = graph.find_nodes(op="placeholder")
    if any(other.users for other in others):
        raise ValueError(f"the network must take images alone, but it also uses {', '.join(map(str, others))}")
    (output,) = graph.find_nodes(op="output")
    (result,) = output.args
    if not isinstance(result, fx.Node):
        raise ValueError(f"the network must give one tensor, but it gives {result!r}")
    return start, result


def _calls_in_order(graph: fx.Graph, named: list[str]) -> list[fx.Node]:
    """Return the call of each named module; there must be exactly one, and they must be in order."""
    position = {node: i for i, node in enumerate(graph.nodes)}
    found: list[fx.Node] = []
    for name in named:
        calls = graph.find_nodes(op="call_module", target=name)
        if len(calls) != 1:
            raise ValueError(f"module {name!r} must run once in a forward pass, but runs {len(calls)} times")
        if found and position[calls[0]] < position[found[-1]]:
            raise ValueError(
                f"modules must be named in the order in which they run: {name!r} runs before {found[-1].target!r}"
            )
        found += calls
    return found


def _only_input(node: fx.Node) -> fx.Node:
    inputs = node.all_input_nodes
    if len(inputs) != 1:
        raise ValueError(f"module {node.target!r} must take one tensor, but takes {len(inputs)}")
    return inputs[0]


def _refuse_overwriting(module: nn.Module, cut: fx.Node) -> None:
    """Raise ValueError if a step after ``cut`` overwrites its map, which is returned as a feature."""
    for user in cut.users:
        if user.op == "call_module":
            in_place = _starts_in_place(module.get_submodule(str(user.target)))
        else:
            function = user.target if isinstance(user.target, str) else user.target.__name__
            in_place = bool(user.kwargs.get("inplace")) or (function.endswith("_") and not function.endswith("__"))
        if in_place and user.all_input_nodes[0] is cut:
            raise ValueError(
                f"the output of {_label(cut)} is overwritten in place by {_label(user)}: make that step work out of "
                f"place, or cut after it"
            )


def _starts_in_place(module: nn.Module) -> bool:
    while isinstance(module, nn.Sequential) and len(module) > 0:
        module = module[0]
    return getattr(module, "inplace", False)


def _split(module: nn.Module, graph: fx.Graph, ends: list[fx.Node], layouts: Sequence[Layout] = ()) -> list[nn.Module]:
    """Return one module for each pair of neighbouring ``ends``, made of all nodes between them.

    ``layouts`` are those of the maps at the inner ends, if they are known.
    """
    nodes = list(graph.nodes)
    stops = [nodes.index(end) + 1 for end in ends]
    # Nodes after the last end may still change it in place.
    stops[-1] = len(nodes) - 1
    moved = dict(zip(ends[1:], layouts, strict=False))
    parts: list[nn.Module] = []
    for start, end, first, stop in zip(ends, ends[1:], stops, stops[1:], strict=False):
        part = fx.Graph()
        copies = {start: moved.get(start, IN_ORDER).to_own(part, part.placeholder("x"))}
        for node in nodes[first:stop]:
            for needed in node.all_input_nodes:
                if needed.op == "get_attr":
                    copies.setdefault(needed, part.node_copy(needed))
                elif needed not in copies:
                    raise ValueError(
                        f"{_label(node)} needs {_label(needed)}, which crosses the cut after {_label(start)}: only "
                        f"the output of {_label(start)} may. Name modules between which a single tensor flows"
                    )
            if node.op not in ("get_attr", "placeholder"):
                copies[node] = part.node_copy(node, copies.__getitem__)
        if end not in copies:
            raise ValueError(f"{_label(end)} must depend on {_label(start)}, but it does not")
        part.output(moved.get(end, IN_ORDER).to_ours(part, copies[end]))
        parts.append(fx.GraphModule(module, part, type(module).__name__))
    return parts


def _label(node: fx.Node) -> str:
    """Return the dotted name of a module, or the trace's name of another step, in quotes."""
    return repr(node.target if node.op == "call_module" else node.name)


def _num_classes(head: nn.Module, name: str) -> int:
    for layer in reversed(list(head.modules())):
        if isinstance(layer, nn.Linear):
            return layer.out_features
        if isinstance(layer, nn.Conv2d):
            return layer.out_channels
    raise ValueError(f"head {name!r} holds no linear or convolutional layer to count classes by; give num_classes")


def _in_channels(module: nn.Module) -> int:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            return layer.in_channels
    raise ValueError("the network holds no convolution to count the images' channels by; give in_channels")
