"""Checks that networks can learn from each other: same classes and channels, no shared modules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import fx, nn

from sftn_fast.models import StagedNet


def check_teachers(student: StagedNet, teachers: Sequence[StagedNet]) -> None:
    """Check that ``student`` can learn from each of ``teachers``.

    Raises:
        TypeError: One of them is no :class:`~sftn_fast.models.StagedNet`.
        ValueError: There is no teacher, or :func:`check_pair` refuses one.
    """
    if not teachers:
        raise ValueError("teacher must be a network or several, got none")
    for role, network in (("student", student), *(("teacher", teacher) for teacher in teachers)):
        if not isinstance(network, StagedNet):
            kind = "GraphModule" if isinstance(network, fx.GraphModule) else type(network).__name__
            raise TypeError(
                f"{role} must be a StagedNet, got {kind}: models.as_staged makes one of a module, also of one that "
                f"prepare_qat_fx returned"
            )
    for teacher in teachers:
        check_pair("student", student, "teacher", teacher)


def check_pair(role: str, net: StagedNet, other_role: str, other: StagedNet) -> None:
    """Raise ValueError unless both networks have the same classes and image channels and share no module."""
    check_classes(net)
    if net.num_classes != other.num_classes:
        raise ValueError(f"{role} has {net.num_classes} classes, {other_role} has {other.num_classes}")
    if net.in_channels != other.in_channels:
        channels = f"{role} takes images of {net.in_channels} channels, {other_role} of {other.in_channels}"
        raise ValueError(channels)
    check_disjoint(other_role, other, role, net)


def check_classes(net: StagedNet) -> None:
    """Raise ValueError for a network of one class: its cross-entropy is always 0."""
    if net.num_classes < 2:
        raise ValueError(f"{net.name or 'the network'} has {net.num_classes} class: there is nothing to learn")


def check_disjoint(role: str, net: nn.Module, other_role: str, other: nn.Module) -> None:
    """Raise ValueError if the networks share a module, parameter or buffer.

    Otherwise one network would change the mode or weights of the other.
    """
    theirs = {id(part): name for name, part in _parts(other)}
    for name, part in _parts(net):
        if id(part) in theirs:
            shared = f"{name or 'the whole network'} of the one is {theirs[id(part)] or 'the whole'} of the other"
            raise ValueError(
                f"{role} and {other_role} must share nothing, but {shared}: pass a copy, as copy.deepcopy({role})"
            )


def _parts(net: nn.Module) -> Iterator[tuple[str, object]]:
    """Yield the modules, parameters and buffers of ``net`` by name, ``net`` itself first."""
    yield from net.named_modules()
    yield from net.named_parameters()
    yield from net.named_buffers()
