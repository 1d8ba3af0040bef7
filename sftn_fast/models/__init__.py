"""Staged networks: the usual ones by name, a user's own by the names of the modules at which it splits."""

from . import mobilenet, resnet, shufflenet_v1, shufflenet_v2, vgg, wrn  # noqa: F401 (they register their networks)
from .registry import build, names, register
from .staged import Features, StagedNet

__all__ = [
    "Features",
    "StagedNet",
    "build",
    "names",
    "register",
]
