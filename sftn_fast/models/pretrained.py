"""Weights that torchvision and timm publish: ``torchvision:IMAGENET1K_V1``, ``timm:TAG``, ``timm:hf-hub:OWNER/NAME``.

``DEFAULT`` in place of torchvision's enum or timm's tag stands for the ones that the project prefers. Networks without
published weights have none to name.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sftn_fast.models import timm_weights
from sftn_fast.models.imagenet import CUTS, torchvision_models
from sftn_fast.models.staged import StagedNet
from sftn_fast.models.timm_weights import DEFAULT
from sftn_fast.models.weight_files import WeightsError
from sftn_fast.utils.timm_names import PREFIX as TIMM
from sftn_fast.utils.timm_names import is_timm

PREFIX = "torchvision:"


class Normalisation(NamedTuple):
    """Mean and deviation of each channel, of the images that weights belong to."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def is_published(path: str | Path) -> bool:
    """Return whether ``path`` names published weights instead of a file."""
    return str(path).startswith((PREFIX, TIMM))


def default_weights(name: str) -> str:
    """Return the published weights of the network ``name``, as ``timm:DEFAULT``.

    Raises:
        WeightsError: No project publishes weights of such a network.
    """
    if name in CUTS:
        return PREFIX + DEFAULT
    if is_timm(name):
        return TIMM + DEFAULT
    raise WeightsError(f"nobody publishes weights of {name}: name a network of torchvision's, or timm:NAME")


def require_published(path: str | Path, name: str) -> None:
    """Check that the weights ``path`` of the network ``name`` are published, without downloading them.

    Raises:
        ImportError: The package that knows them is not installed.
        WeightsError: There is no such network or there are no such weights.
    """
    if str(path).startswith(TIMM):
        timm_weights.find(str(path), name)
    else:
        find_published(path, name)


def published_normalisation(path: str | Path, name: str) -> Normalisation:
    """Return the normalisation of the images that the weights ``path`` of the network ``name`` belong to."""
    if str(path).startswith(TIMM):
        config = timm_weights.find(str(path), name).config
        return Normalisation(tuple(config.mean), tuple(config.std))
    images = find_published(path, name).transforms()
    return Normalisation(tuple(images.mean), tuple(images.std))


def find_published(path: str | Path, name: str) -> Any:
    """Return torchvision's enum member for the weights ``path`` of the network ``name``, without downloading them.

    Raises:
        ImportError: torchvision is not installed.
        WeightsError: torchvision has no such network or no such weights.
    """
    if name not in CUTS:
        raise WeightsError(f"{path} needs a network of torchvision's ({', '.join(CUTS)}), not {name}")
    known = torchvision_models().get_model_weights(name).__members__
    wanted = str(path).removeprefix(PREFIX)
    if wanted not in known:
        raise WeightsError(f"torchvision has no weights {wanted!r} for {name}, only {', '.join(known)}")
    return known[wanted]


def cached_file(path: str | Path, name: str) -> Path | None:
    """Return the path of the weights ``path`` in the cache of downloads, None if timm has not downloaded them.

    Raises as :func:`require_published`.
    """
    if str(path).startswith(TIMM):
        return timm_weights.cached_file(str(path), name)
    return _hub_file(path, name)


def _hub_file(path: str | Path, name: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(find_published(path, name).url).name


def published(path: str | Path, net: StagedNet, *, keep_head: bool = False) -> dict[str, Tensor]:
    """Return the tensors of the weights ``path``, such as ``torchvision:DEFAULT``, of the network ``net``.

    They have the names of torchvision or timm. With ``keep_head``, the classifier of ``net`` stands in for one that
    the weights lack. A download goes into torch.hub's folder, and is checked against the checksum in the
    file's name; a file that is in that folder already is not checked again. No code in the file is run.

    Raises:
        ImportError: The package that knows them is not installed.
        WeightsError: There is no such network or there are no such weights, or they can't be downloaded.
    """
    if str(path).startswith(TIMM):
        return timm_weights.read(str(path), net, keep_head=keep_head)
    name = net.name
    weights = find_published(path, name)
    try:
        return weights.get_state_dict(
            progress=sys.stderr.isatty(), check_hash=True, map_location="cpu", weights_only=True
        )
    except Exception as error:
        cached = _hub_file(path, name)
        # Only the first line: for a file that torch refuses to unpickle, the next ones advise to run its code.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise WeightsError(
            f"{path} of {name} can't be loaded ({reason}): download {weights.url} to {cached}, or remove that file and "
            f"try again"
        ) from error
