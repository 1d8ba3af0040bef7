"""Export of a network's weights under the names of the project it comes from: the inverse of the loader."""

from __future__ import annotations

from torch import Tensor

from sftn_fast.models.reused_head import ReusedHead
from sftn_fast.models.staged import StagedNet

ORIGINAL, OWN = "original", "own"
STYLES = (ORIGINAL, OWN, "repdistiller", "mdistiller", "torchvision")


def export_state_dict(net: StagedNet, style: str = ORIGINAL) -> dict[str, Tensor]:
    """Return copies of ``net``'s tensors on the CPU, under the names of other code.

    ``torch.save({"model": models.export_state_dict(student)}, "student.pth")`` writes a file that RepDistiller's and
    mdistiller's scripts load. Without the key, it loads into torchvision's class of the same name.

    Args:
        net: One of :func:`sftn_fast.models.names`, or one that :func:`sftn_fast.models.as_staged` made.
        style: ``original`` for the names of the project or module that the network comes from; ``own`` for those of
            ``net.state_dict()``; or a project's name, which must be that of the network.

    Raises:
        ValueError: There is no such style, or the network is not from that project.
    """
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}; known are {', '.join(STYLES)}")
    if isinstance(net.head, ReusedHead):  # no other project has such a network
        style = OWN if style == ORIGINAL else style
        if style != OWN:
            raise ValueError(
                f"{net.name} has the classifier of a teacher, which {style} doesn't know: style must be {OWN!r}"
            )
    if style not in (ORIGINAL, OWN, *net.origins):
        known = ", ".join(repr(name) for name in (ORIGINAL, OWN, *net.origins))
        raise ValueError(f"{net.name} is no network of {style}: its styles are {known}")
    names = {} if style == OWN else {own: name for name, own in net.wrapped_names.items()}
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in net.state_dict().items()}
    if style == OWN:
        return tensors
    return {names.get(name) or _foreign_name(net, name): tensor for name, tensor in tensors.items()}


def _foreign_name(net: StagedNet, name: str) -> str:
    """Return the first name that :attr:`StagedNet.foreign_names` translate to ``name``."""
    for anchored in (True, False):
        for pattern, own in net.foreign_names:
            theirs = pattern.removeprefix("^").replace("\\.", ".")
            if pattern.startswith("^") is anchored and (name.startswith(own) if anchored else own in name):
                name = name.replace(own, theirs, 1)
                break
    return name
