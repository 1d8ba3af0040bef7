"""Weights of a frozen network, stored in the dtype to which autocast casts them in every step.

The stored weights are the network's only ones, in place. There is no copy that could be out of date: whatever writes
them changes the next output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from sftn_fast.distillers.teacher_mode import teacher_mode
from sftn_fast.models import StagedNet

CAST = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers whose weights and biases autocast casts. It leaves those of BatchNorm in float32."""
IMAGES = 2
"""In the batch that compares outputs."""


def store_weights(net: StagedNet, autocast: torch.autocast, image_size: int) -> Callable[[], None]:
    """Store the weights that ``autocast`` casts in its dtype, if no output of ``net`` changes by a bit.

    A network may use a layer's weights in another way than by running the layer, for example normalise them. So the
    features of a batch of noise are compared, and if they differ, the weights stay as they are.

    Args:
        net: Network on the device of ``autocast``, which must not learn.
        autocast: Context in which ``net`` runs.
        image_size: Side of its images in pixels.

    Returns:
        A function that restores the dtype. A weight that was written meanwhile keeps its new value.
    """
    weights = [weight for weight in _cast_weights(net) if weight.dtype == torch.float32]
    if not (autocast._enabled and weights):
        return lambda: None
    before = _outputs(net, autocast, image_size)
    originals = [weight.data for weight in weights]
    for weight in weights:
        weight.data = weight.data.to(autocast.fast_dtype)

    def restore() -> None:
        for weight, original in zip(weights, originals, strict=True):
            weight.data = _widened(weight.data, original)

    if not all(map(torch.equal, before, _outputs(net, autocast, image_size))):
        restore()
    return restore


def _widened(present: Tensor, original: Tensor) -> Tensor:
    """Return ``original`` if ``present`` is its rounding, else ``present`` in the dtype of ``original``."""
    if present.dtype == original.dtype:
        return present
    original = original.to(present.device)
    return original if torch.equal(original.to(present.dtype), present) else present.to(original.dtype)


def _cast_weights(net: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters that only layers in ``CAST`` have, each once."""
    used_by_others = {
        id(parameter)
        for module in net.modules()
        if not _is_plain(module)
        for parameter in module.parameters(recurse=False)
    }
    for module in net.modules():
        if _is_plain(module):
            yield from (p for p in module.parameters(recurse=False) if id(p) not in used_by_others)


def _is_plain(module: nn.Module) -> bool:
    """Return whether a layer computes as PyTorch's: a subclass or a hook may use the weights otherwise."""
    return type(module) in CAST and not module._forward_pre_hooks


@torch.no_grad()
def _outputs(net: StagedNet, autocast: torch.autocast, image_size: int) -> list[Tensor]:
    """Return the features of a batch of noise, the same in every call."""
    noise = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, net.in_channels, image_size, image_size, generator=noise)
    device = next(net.parameters()).device
    # A network that draws random numbers must not change those of the training.
    with torch.random.fork_rng([device] if device.type == "cuda" else []), autocast, teacher_mode(net):
        features = net.forward_features(images.to(device))
    return [features.stem, *features.stages, features.pooled, features.logits]
