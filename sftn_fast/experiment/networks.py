"""The networks of a run, made for its images: new ones, and those that start from weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sftn_fast import models
from sftn_fast.config import Config, ConfigError
from sftn_fast.data import ImageData
from sftn_fast.experiment.kinds.base import Role
from sftn_fast.models import StagedNet
from sftn_fast.models.own_input import OwnInput, after
from sftn_fast.utils.timm_names import is_timm

Say = Callable[[str], object]

KEEPS_HEAD = ("sftn.init", "teacher_pretrained", "student_pretrained")
"""Settings that name weights to start from: they may have other classes, and the network then keeps its classifier."""


def name_of(config: Config, key: str) -> str:
    """Return the network that the weights of the setting ``key`` are for."""
    return config.student if key == "student_pretrained" else config.teacher


def pretrained(config: Config, role: Role) -> tuple[str, str] | None:
    """Return the setting by which the network of ``role`` starts from published weights, and these; None if it doesn't.

    Raises:
        ConfigError: No project publishes such weights.
    """
    key = f"{role}_pretrained"
    if not getattr(config, key):
        return None
    try:
        return key, models.default_weights(getattr(config, role))
    except models.WeightsError as error:
        raise ConfigError(f"{key}: {error}") from error


def build(name: str, images: ImageData) -> StagedNet:
    """Return a new network for ``images``."""
    return models.build(
        name, num_classes=images.num_classes, in_channels=images.in_channels, image_size=images.image_size
    )


def start(config: Config, role: Role, images: ImageData, say: Say) -> StagedNet:
    """Return the network of ``role`` as its training starts."""
    name, weights = getattr(config, role), pretrained(config, role)
    return build(name, images) if weights is None else load(name, *weights, images, say)


def load(name: str, key: str, path: str, images: ImageData, say: Say) -> StagedNet:
    """Return the network ``name`` with the weights ``path``, which the setting ``key`` names.

    Weights that belong to another mean and deviation than those of ``images`` get their own.

    Raises:
        ConfigError: There are no such weights, or they don't fit.
    """
    try:
        change = own_input(name, path, images)
        network = models.build(
            name,
            num_classes=images.num_classes,
            in_channels=images.in_channels if change is None else change.channels(),
            image_size=images.image_size,
        )
        models.load_weights(network, _of_name(path, name), keep_head=key in KEEPS_HEAD, say=say)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"{key}: {error}") from error
    network.in_channels, network.own_input = images.in_channels, change
    if change is not None:
        say(f"{path}: {name} sees images by its own mean and deviation, not by those of {images.name}")
    return network


def _of_name(path: str, name: str) -> str:
    """Return ``path``, with the place of the weights if ``name`` is of the Hub or of a folder."""
    hub = name.removeprefix("timm:")
    return f"timm:{hub}" if path == "timm:DEFAULT" and is_timm(hub) else path


def own_input(name: str, path: str, images: ImageData) -> OwnInput | None:
    """Return the change from ``images`` to those that the weights ``path`` belong to; None if they are the same.

    Only published weights and exported networks tell their mean and deviation.

    Raises:
        OSError, ValueError, ImportError: There are no such weights, or they are for other channels.
    """
    ours = images.preprocessing
    if models.is_published(path):
        theirs = models.published_normalisation(path, name)
        return models.change_of_input(ours.mean, ours.std, *theirs) if ours else None
    config = _config_of(path)
    first = _normalisation(config)
    change = models.read_input(config, path)
    if ours is None or first is None:
        return change
    return after(change, models.change_of_input(ours.mean, ours.std, *first))


def _config_of(path: str) -> dict[str, Any]:
    """Return the description of an exported network; empty for another file."""
    folder = Path(path).expanduser()
    folder = folder if folder.is_dir() else folder.parent
    try:
        return models.read_config(folder)
    except (OSError, ValueError):
        return {}  # loading the file reports what is wrong with it


def _normalisation(config: dict[str, Any]) -> tuple[list[float], list[float]] | None:
    given = config.get("meta", {}).get("preprocessing")
    usable = isinstance(given, dict) and all(isinstance(given.get(key), list) for key in ("mean", "std"))
    return (given["mean"], given["std"]) if usable else None
