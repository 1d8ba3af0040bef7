"""Weights that timm knows where to find, adapted to a network's images by timm itself."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sftn_fast.models.staged import StagedNet
from sftn_fast.models.timm_networks import (
    Source,
    classifier_names,
    find_source,
    quiet,
    reason_of,
    require_hub,
    timm_module,
)
from sftn_fast.models.weight_files import WeightsError
from sftn_fast.utils.text import printable
from sftn_fast.utils.timm_names import PREFIX, SOURCES, is_timm, parse

DEFAULT = "DEFAULT"
FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
"""Names of the file of weights on the Hub and in a folder, in timm's order."""


def find(path: str, name: str) -> Source:
    """Return what timm knows of the weights ``path``, such as ``timm:DEFAULT``, of the network ``name``.

    Raises:
        ImportError: timm can't be imported.
        WeightsError: The network is not timm's, or it has no such weights.
    """
    if not is_timm(name):
        raise WeightsError(f"{path} needs a network of timm's, such as timm:resnet18, not {name}")
    try:
        source = find_source(PREFIX + _model(path, name))
    except ValueError as error:
        raise WeightsError(str(error)) from error
    if not source.config or not source.config.has_weights:
        raise WeightsError(f"timm has no weights for {printable(name)}")
    return source


def _model(path: str, name: str) -> str:
    """Return timm's name of the network with the weights ``path``."""
    wanted, model = path.removeprefix(PREFIX), parse(name).model
    if wanted.startswith(SOURCES):
        return wanted
    if wanted == DEFAULT or model.startswith(SOURCES):
        return model
    return f"{model.partition('.')[0]}.{wanted}"


def read(path: str, net: StagedNet, *, keep_head: bool) -> dict[str, Tensor]:
    """Return the tensors of the weights ``path`` of ``net``, under timm's names.

    timm reads them into a network of its own with the same arguments, by which it adapts positions and patches to the
    size of the images. A download goes into the cache of the Hugging Face Hub. No code in a file is run.

    Raises:
        ImportError, WeightsError: As :func:`find` raises them, or the weights can't be loaded.
    """
    source = find(path, net.name)
    classes = source.config.num_classes
    try:
        # Its initialisation must not advance the generator from which the student is drawn.
        with quiet(), torch.random.fork_rng(devices=[]):
            if not source.config.file and source.config.hf_hub_id and cached_file(path, net.name) is None:
                require_hub(source.config.hf_hub_id, source.config.hf_hub_filename or FILES[0])
            donor = timm_module().create_model(
                source.architecture,
                pretrained=True,
                pretrained_cfg=source.config,
                num_classes=classes or net.num_classes,
                in_chans=source.config.input_size[0],
                **net.arguments,
            )
    except Exception as error:  # no connection, a damaged file, or one of another network
        reason = f"{type(error).__name__}: {reason_of(error)}"
        raise WeightsError(
            f"{path} of {net.name} can't be loaded ({reason}): download it where there is a connection, into the cache "
            "that HF_HOME names"
        ) from error
    tensors = dict(donor.state_dict())
    if not classes:
        _lend_classifier(tensors, donor, net, path, keep_head=keep_head)
    return tensors


def _lend_classifier(tensors: dict[str, Tensor], donor: Any, net: StagedNet, path: str, *, keep_head: bool) -> None:
    """Replace the donor's random classifier by that of ``net``: the weights have none."""
    if not keep_head:
        raise WeightsError(f"{path} of {net.name} has no classifier; it can only start a training")
    own = net.state_dict()
    for name in tensors:
        if name.startswith(tuple(f"{each}." for each in classifier_names(donor))):
            tensors[name] = own[net.own_name(name)]


def cached_file(path: str, name: str) -> Path | None:
    """Return the file of the weights ``path``; None if it is not there yet."""
    config = find(path, name).config
    if config.file:
        file = Path(config.file)
        return next((file / each for each in FILES if (file / each).is_file()), None) if file.is_dir() else file
    if not config.hf_hub_id:
        return Path(torch.hub.get_dir()) / "checkpoints" / str(config.url).rpartition("/")[2]
    repository, _, revision = config.hf_hub_id.partition("@")
    for each in (config.hf_hub_filename,) if config.hf_hub_filename else FILES:
        found = import_module("huggingface_hub").try_to_load_from_cache(repository, each, revision=revision or None)
        if isinstance(found, str):
            return Path(found)
    return None
