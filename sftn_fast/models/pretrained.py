"""Weights that torchvision publishes, by the names of its enums: ``torchvision:IMAGENET1K_V1``."""

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
    """Return whether ``path`` names published weights instead of a file."""
    return str(path).startswith(PREFIX)


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


def cached_file(path: str | Path, name: str) -> Path:
    """Return the path of the weights ``path`` in torch.hub's cache; raises as :func:`find_published`."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(find_published(path, name).url).name


def published(path: str | Path, name: str) -> dict[str, Tensor]:
    """Return the tensors of the weights ``path``, such as ``torchvision:DEFAULT``, of the network ``name``.

    They have torchvision's names. A download goes into torch.hub's folder, and is checked against the checksum in the
    file's name; a file that is in that folder already is not checked again. No code in the file is run.

    Raises:
        ImportError: torchvision is not installed.
        WeightsError: torchvision has no such network or no such weights, or they can't be downloaded.
    """
    weights = find_published(path, name)
    try:
        return weights.get_state_dict(
            progress=sys.stderr.isatty(), check_hash=True, map_location="cpu", weights_only=True
        )
    except Exception as error:
        cached = cached_file(path, name)
        # Only the first line: for a file that torch refuses to unpickle, the next ones advise to run its code.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise WeightsError(
            f"{path} of {name} can't be loaded ({reason}): download {weights.url} to {cached}, or remove that file and "
            f"try again"
        ) from error
