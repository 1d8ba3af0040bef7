"""A network's weights by the names that they have where it is from: what the loader understands, turned round."""

from __future__ import annotations

from torch import Tensor

from sftn_fast.models.staged import StagedNet

ORIGINAL, OWN = "original", "own"
STYLES = (ORIGINAL, OWN, "repdistiller", "mdistiller", "torchvision")


def export_state_dict(net: StagedNet, style: str = ORIGINAL) -> dict[str, Tensor]:
    """Return copies of ``net``'s tensors on the CPU, by the names that other code has for them.

    ``torch.save({"model": models.export_state_dict(student)}, "student.pth")`` is a file that RepDistiller's and
    mdistiller's scripts load; without the key it loads into torchvision's class of the same name.

    Args:
        net: One of :func:`sftn_fast.models.names`, or one that :func:`sftn_fast.models.as_staged` made.
        style: ``original``, the names of the project or the module that the network is from; ``own``, those of
            ``net.state_dict()``; or the project by its name, which is refused if the network is from another.

    Raises:
        ValueError: There is no such style, or the network is not from that project.
    """
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}; known are {', '.join(STYLES)}")
    if style not in (ORIGINAL, OWN, *net.origins):
        known = ", ".join(repr(name) for name in (ORIGINAL, OWN, *net.origins))
        raise ValueError(f"{net.name} is no network of {style}: its styles are {known}")
    names = {} if style == OWN else {own: name for name, own in net.wrapped_names.items()}
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in net.state_dict().items()}
    if style == OWN:
        return tensors
    return {names.get(name) or _foreign_name(net, name): tensor for name, tensor in tensors.items()}


def _foreign_name(net: StagedNet, name: str) -> str:
    """The name that :attr:`StagedNet.foreign_names` turn into ``name``: of those that could, the first."""
    for anchored in (True, False):
        for pattern, own in net.foreign_names:
            theirs = pattern.removeprefix("^").replace("\\.", ".")
            if pattern.startswith("^") is anchored and (name.startswith(own) if anchored else own in name):
                name = name.replace(own, theirs, 1)
                break
    return name
