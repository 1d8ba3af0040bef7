"""Names of timm's networks: ``timm:NAME``, ``timm:NAME:patch_size=4``, ``timm:hf-hub:OWNER/NAME``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sftn_fast.utils import safe_yaml

PREFIX = "timm:"
SOURCES = ("hf-hub:", "local-dir:")
"""What timm's own names begin with if a description of the network is read from elsewhere."""
ARGUMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
OURS = {
    "num_classes": "the images decide it",
    "in_chans": "the images decide it",
    "img_size": "data.image_size decides it",
    "pretrained": "teacher_pretrained and student_pretrained decide it",
}
"""Arguments of timm's that have a setting here."""
REFUSED = (
    *("pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "checkpoint_path", "cache_dir", "features_only"),
    *("out_indices", "feature_cls", "scriptable", "exportable", "no_jit", "device", "dtype", "pruned", "kwargs_filter"),
)
"""Arguments of timm's that make something else than a network of that name, or read files."""


@dataclass(frozen=True)
class TimmName:
    """One of timm's networks, and arguments of its own."""

    model: str
    """Name as ``timm.create_model`` takes it, such as ``convnext_tiny.in12k_ft_in1k``."""
    arguments: Mapping[str, Any]


def is_timm(name: str) -> bool:
    """Return whether ``name`` is for one of timm's networks."""
    return name.startswith((PREFIX, *SOURCES))


def parse(name: str) -> TimmName:
    """Split ``name`` into timm's name and arguments.

    Raises:
        ValueError: There is no name, or an argument is not one of the network's own.
    """
    model, arguments = name.removeprefix(PREFIX), {}
    while (found := ARGUMENT.fullmatch(model.rpartition(":")[2])) and ":" in model:
        model = model.rpartition(":")[0]
        key, text = found.groups()
        if key in arguments:
            raise ValueError(f"{name!r} gives {key} twice")
        arguments[key] = _value(text)
    if not model or model in SOURCES or ARGUMENT.fullmatch(model):
        raise ValueError(f"{name!r} must name a network, as in timm:resnet18 or timm:vit_tiny_patch16_224:patch_size=4")
    check_arguments(arguments, name, refused=OURS)
    return TimmName(model, dict(reversed(arguments.items())))


def check_arguments(arguments: Mapping[str, Any], place: str, *, refused: Mapping[str, str] | None = None) -> None:
    """Raise ValueError for an argument in ``place`` that is not the network's own, or not a plain value."""
    for key, value in arguments.items():
        if key in (refused or {}):
            raise ValueError(f"{place}: {key} can't be given: {(refused or {})[key]}")
        if key in REFUSED:
            raise ValueError(f"{place}: {key} can't be given: it is not an argument of the network")
        if not _is_plain(value):
            raise ValueError(f"{place}: {key} must be a number, a text, true, false, or a list of these, got {value!r}")


def _value(text: str) -> Any:
    try:
        return safe_yaml.load(text, "network", lines=False)
    except ValueError:
        return text


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float | str)
