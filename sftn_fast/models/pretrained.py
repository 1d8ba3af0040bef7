"""Weights that torchvision publishes, by the names of its own enums: ``torchvision:IMAGENET1K_V1``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sftn_fast.models.imagenet import CUTS, torchvision_models
from sftn_fast.models.weight_files import WeightsError

PREFIX = "torchvision:"


def is_published(path: str | Path) -> bool:
    """Whether ``path`` is no file but names published weights."""
    return str(path).startswith(PREFIX)


def find_published(path: str | Path, name: str) -> Any:
    """torchvision's own entry for the weights ``path`` of the network ``name``; fetches nothing.

    Raises:
        ImportError: torchvision is missing.
        WeightsError: torchvision has no such network or no such weights.
    """
    if name not in CUTS:
        raise WeightsError(f"{path} needs a network of torchvision's ({', '.join(CUTS)}), not {name}")
    known = torchvision_models().get_model_weights(name).__members__
    wanted = str(path).removeprefix(PREFIX)
    if wanted not in known:
        raise WeightsError(f"torchvision has no weights {wanted!r} for {name}, only {', '.join(known)}")
    return known[wanted]


def cached_file(path: str | Path, name: str) -> Path:
    """Return where torch.hub keeps the file of the weights ``path``; raises as :func:`find_published`."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(find_published(path, name).url).name


def published(path: str | Path, name: str) -> dict[str, Tensor]:
    """The tensors of the weights ``path``, as ``torchvision:DEFAULT``, of the network ``name``, by torchvision's names.

    They are fetched into torch.hub's folder, and held against the checksum in their name when they are, not again when
    they come from that folder. Nothing in the file is ever run.

    Raises:
        ImportError: torchvision is missing.
        WeightsError: torchvision has no such network or no such weights, or they can't be fetched.
    """
    weights = find_published(path, name)
    try:
        return weights.get_state_dict(
            progress=sys.stderr.isatty(), check_hash=True, map_location="cpu", weights_only=True
        )
    except Exception as error:
        cached = cached_file(path, name)
        # The first line: torch's advice on what it refuses to unpickle is to let it run.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise WeightsError(
            f"{path} of {name} can't be had ({reason}): {weights.url} belongs into {cached}; remove what is there, or "
            f"put it there by hand"
        ) from error
