"""A finished network as two files: ``model.safetensors`` and the ``config.json`` that says what it is.

safetensors notices a truncated file but no flipped bit, so config.json holds the sha256 of the other and its own. It is
written last: interrupted while it replaces an older export, a folder may be refused, but never gives the wrong weights.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sftn_fast import __version__
from sftn_fast.models.pretrained import find_published, is_published, published
from sftn_fast.models.registry import build, names, require_counts
from sftn_fast.models.staged import StagedNet
from sftn_fast.models.weight_files import WeightsError, read_file, safetensors
from sftn_fast.models.weights import Say, assign
from sftn_fast.utils.atomic import write_atomically
from sftn_fast.utils.checksummed import DamagedError, checksum, read_sealed, seal
from sftn_fast.utils.text import printable

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FORMAT = 1
MANY_CLASSES = 100_000
"""Above that the weights are asked whether they have so many, since a classifier for them takes gigabytes."""


def save(net: StagedNet, folder: str | Path, *, meta: Mapping[str, Any] | None = None) -> None:
    """Write ``net`` into ``folder``, which is made if need be.

    A network that was not made by :func:`build` is marked ``custom``: its weights can be loaded, but only into a
    network that the user built again.

    Args:
        net: The network; tensors are written as they are, in its dtype.
        folder: Where ``model.safetensors`` and ``config.json`` go. Older ones are replaced.
        meta: What else is known, such as accuracy, image size or normalisation; must go into JSON.

    Raises:
        TypeError: ``meta`` holds what JSON can't.
        ImportError: safetensors is not installed.
    """
    folder = _expanded(folder)
    # Copies, because safetensors refuses tensors that share memory, as tied weights do.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in net.state_dict().items()}
    data = safetensors().save(tensors)
    config = {
        "format": FORMAT,
        "sftn_fast": __version__,
        "name": net.name,
        "custom": net.name not in names(),
        "num_classes": net.num_classes,
        "in_channels": net.in_channels,
        "sha256": hashlib.sha256(data).hexdigest(),
        "meta": dict(meta or {}),
    }
    text = seal(config)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS, data)
    write_atomically(folder / CONFIG, text)


def load(
    path: str | Path,
    *,
    name: str | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    prefix: str | None = None,
    say: Say | None = None,
) -> StagedNet:
    """The network in ``path``, in evaluation mode on the CPU.

    Args:
        path: What :func:`save` wrote, its folder or the ``model.safetensors`` in it; or a file of weights from
            elsewhere (``.pth``, ``.pt``, ``.safetensors``) or torchvision's published ones (``torchvision:DEFAULT``),
            which take ``name`` and ``num_classes``.
        name: Which network it must be.
        num_classes: How many classes it must have.
        in_channels: How many channels its images must have; 3 for a file from elsewhere.
        prefix, say: As in :func:`load_weights`.

    Raises:
        FileNotFoundError: There is no such file.
        WeightsError: The file is damaged, is not what was asked for, holds a custom network, or does not say which
            network it holds and neither does the caller. A ValueError.
        ValueError: There is no network of that name; a plugin that registers it must be imported first.
    """
    folder, weights_file = _locate(path)
    asked = {"name": name, "num_classes": num_classes, "in_channels": in_channels}
    if folder is not None:
        config = read_config(folder)
        for key, value in asked.items():
            if value is not None and value != config[key]:
                raise WeightsError(f"{folder} holds a network with {key} {config[key]!r}, not {value!r}")
        if config["custom"]:
            raise WeightsError(
                f"{folder} holds a custom network, {config['name']!r}, that can't be built by name: build it as it "
                f"was, then models.load_weights(net, {str(path)!r})"
            )
        name, num_classes, in_channels = config["name"], config["num_classes"], config["in_channels"]
    if name is None or num_classes is None:
        raise WeightsError(f"{weights_file} does not say which network it holds: give name and num_classes")
    # Read before building: a damaged file costs no time, and one that claims too much no memory.
    weights = _weights_of(path, name)
    claims_much = folder is not None and num_classes > MANY_CLASSES
    if claims_much and not any(num_classes in getattr(tensor, "shape", ()) for tensor in weights.values()):
        raise WeightsError(f"{CONFIG} beside {weights_file} is damaged: no tensor has its {num_classes} classes")
    net = build(name, num_classes=num_classes, in_channels=3 if in_channels is None else in_channels)
    assign(net, weights, weights_file, prefix=prefix, say=say)
    return net.eval()


def load_weights(
    net: StagedNet, path: str | Path, *, prefix: str | None = None, keep_head: bool = False, say: Say | None = None
) -> None:
    """Copy the weights in ``path`` into ``net``, all of them or none.

    Args:
        net: The network, of whatever device, mode and origin.
        path: As in :func:`load`. Weights may stand under a key (``model``, ``state_dict``), of which averaged ones
            (``model_ema``, ``ema``) are preferred, and behind a prefix (``module.``, ``student.``); the names of
            RepDistiller, torchvision, timm and OpenMMLab are understood. Missing counters of BatchNorm are 0.
        prefix: The key or prefix of the network that is meant, where the file holds several that fit.
        keep_head: Where the file has another number of classes, load all but the classifier.
        say: Told in one line what was taken off, passed over or converted; by default that is logged as a warning.

    Raises:
        FileNotFoundError: There is no such file.
        WeightsError: The file is damaged; names or shapes differ, of which the message lists the first; several
            networks in it fit; or a tensor is not dense, not floating point or not finite. A ValueError.
    """
    file = path if is_published(path) else _locate(path)[1]
    assign(net, _weights_of(path, net.name), file, prefix=prefix, keep_head=keep_head, say=say)


def require_weights(path: str | Path, name: str) -> None:
    """Make sure that there are weights to be had at ``path``, without reading or fetching them.

    Args:
        path: As in :func:`load`.
        name: The network that they are for.

    Raises:
        FileNotFoundError: There is no such file, or no weights in the folder. Another OSError: one can't look there.
        WeightsError: ``path`` names published weights, and torchvision has none such of this network. A ValueError.
        ImportError: ``path`` names published weights, and torchvision is missing.
    """
    if is_published(path):
        find_published(path, name)
        return
    _, weights_file = _locate(path)
    if not weights_file.is_file():
        raise FileNotFoundError(f"no weights at {weights_file}")


def read_config(folder: str | Path) -> dict[str, Any]:
    """What ``config.json`` in ``folder`` says.

    Raises:
        FileNotFoundError: There is none.
        WeightsError: It is not one that :func:`save` wrote.
    """
    file = _expanded(folder) / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"no {CONFIG} in {folder}: it says which network {WEIGHTS} holds")
    try:
        config: dict[str, Any] = read_sealed(file)
    except DamagedError as error:
        raise WeightsError(str(error)) from error
    expected = {"format": int, "name": str, "custom": bool, "num_classes": int, "in_channels": int, "sha256": str}
    for key, kind in expected.items():
        if not isinstance(config.get(key), kind):
            raise WeightsError(
                f"{file} is not the {CONFIG} of an exported network: {key!r} is missing or wrong; where the "
                f"{WEIGHTS} beside it is from elsewhere, name the file itself"
            )
    try:
        require_counts(num_classes=config["num_classes"], in_channels=config["in_channels"])
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{file} is damaged: {error}") from error
    if config["format"] > FORMAT:
        raise WeightsError(f"{file} has format {config['format']}, this version reads up to {FORMAT}: update sftn_fast")
    return config


def verify(folder: str | Path) -> None:
    """Make sure that both files in ``folder`` are what :func:`save` wrote.

    Raises:
        FileNotFoundError: One of them is not there.
        WeightsError: One of them is damaged. A ValueError.
    """
    _check_weights(_expanded(folder) / WEIGHTS, read_config(folder))


def read_files(folder: str | Path) -> dict[str, bytes]:
    """Both files in ``folder`` by name, after their checksums: the bytes that were checked.

    Raises:
        FileNotFoundError: One of them is not there.
        WeightsError: One of them is damaged. A ValueError.
    """
    folder = _expanded(folder)
    config = read_config(folder)
    content = (folder / WEIGHTS).read_bytes()
    _compare(folder / WEIGHTS, hashlib.sha256(content).hexdigest(), config)
    text = (folder / CONFIG).read_bytes()
    if json.loads(text) != config:
        raise WeightsError(f"{folder / CONFIG} was changed while it was read")
    return {WEIGHTS: content, CONFIG: text}


def _check_weights(file: Path, config: dict[str, Any]) -> None:
    if not file.is_file():
        raise FileNotFoundError(f"no weights at {file}")
    _compare(file, checksum(file)["sha256"], config)


def _compare(file: Path, found: str, config: dict[str, Any]) -> None:
    if found != config["sha256"]:
        raise WeightsError(
            f"{file} is damaged or not the file that was saved: its sha256 is {found[:12]}.., {CONFIG} says "
            f"{printable(config['sha256'][:12])}.."
        )


def _locate(path: str | Path) -> tuple[Path | None, Path]:
    """The folder, if ``path`` is or lies in one that :func:`save` wrote, and the file of weights."""
    path = _expanded(path)
    if path.is_dir():
        return path, path / WEIGHTS
    if path.name == WEIGHTS and path.is_file() and _is_ours(path.parent / CONFIG):
        return path.parent, path
    return None, path


def _expanded(path: str | Path) -> Path:
    # Not Path's own method, which raises where there is no such user: then there is no such file either.
    return Path(os.path.expanduser(path))  # noqa: PTH111


def _is_ours(file: Path) -> bool:
    """Whether ``file`` is there and :func:`save` wrote it: Hugging Face's networks come as files of the same names."""
    if not file.is_file():
        return False
    try:
        config = read_sealed(file)
    except DamagedError:  # whose ever it was
        return True
    return not config.keys().isdisjoint(("sftn_fast", "sha256"))


def _weights_of(path: str | Path, name: str) -> Mapping[Any, Any]:
    """What ``path``, whatever it is, holds for the network ``name``."""
    if is_published(path):
        return published(path, name)
    folder, weights_file = _locate(path)
    return _verified(folder) if folder is not None else read_file(weights_file)


def _verified(folder: Path) -> Mapping[Any, Any]:
    """The weights in ``folder``, after their checksum."""
    verify(folder)
    return read_file(folder / WEIGHTS)
