"""Export of a trained network as two files: ``model.safetensors`` and its description, ``config.json``.

safetensors detects a truncated file but not a flipped bit, so config.json holds a sha256 of both files. It is written
last: if an export is interrupted while it replaces an older one, the folder is refused instead of giving the wrong
weights.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sftn_fast import __version__
from sftn_fast.config import ConfigError
from sftn_fast.models.own_input import KEY as OWN_INPUT
from sftn_fast.models.own_input import describe_input, read_input
from sftn_fast.models.pretrained import is_published, published, require_published
from sftn_fast.models.registry import build, is_buildable, names, require_counts, unknown_name
from sftn_fast.models.reused_head import KEY, ReusedHead, check_description, describe_head, give_head
from sftn_fast.models.staged import StagedNet
from sftn_fast.models.weight_files import WeightsError, read_file, safetensors
from sftn_fast.models.weights import Say, assign
from sftn_fast.utils.atomic import write_atomically
from sftn_fast.utils.checksummed import DamagedError, checksum, read_sealed, seal
from sftn_fast.utils.derived_files import discard
from sftn_fast.utils.text import printable
from sftn_fast.utils.timm_names import is_timm

WEIGHTS, CONFIG = "model.safetensors", "config.json"
ARGUMENTS = "arguments"
"""Key of ``config.json`` with the arguments by which a network is built, beside its name."""
FORMAT = 3
"""Newest format that is read. 2 is that of networks with a :class:`~sftn_fast.models.reused_head.ReusedHead`, 3 that of
networks with arguments or an :class:`~sftn_fast.models.own_input.OwnInput`."""
KEYS: dict[str, tuple[type, str]] = {
    **dict.fromkeys(("format", "num_classes", "in_channels"), (int, "a whole number")),
    **dict.fromkeys(("name", "sha256"), (str, "a text")),
    "custom": (bool, "true or false"),
    "meta": (dict, "an object"),
    KEY: (dict, "an object"),
    ARGUMENTS: (dict, "an object"),
    OWN_INPUT: (dict, "an object"),
}
"""Types of the values in ``config.json``, by key."""
OPTIONAL = ("meta", KEY, ARGUMENTS, OWN_INPUT)
"""Keys that may be missing."""
MANY_CLASSES = 100_000
"""Above this number, the weights are checked for it first, since a classifier of that size takes gigabytes."""


def save(net: StagedNet, folder: str | Path, *, meta: Mapping[str, Any] | None = None) -> None:
    """Write ``net`` into ``folder``, and create the folder if needed.

    A network that was not made by :func:`build` is marked ``custom``. Its weights can be loaded only with
    :func:`load_weights`, into a network that the user has built.

    Args:
        net: The network; its tensors are written in their dtype.
        folder: Folder of ``model.safetensors`` and ``config.json``. Older ones are replaced.
        meta: Further facts, such as accuracy, image size or normalisation, as JSON types.

    Files that ``sftn export`` made from older weights in ``folder`` are removed; see
    :mod:`sftn_fast.utils.derived_files`.

    Raises:
        TypeError: ``meta`` can't be written as JSON.
        ImportError: safetensors is not installed.
    """
    folder = _expanded(folder)
    files = to_files(net, meta=meta)
    folder.mkdir(parents=True, exist_ok=True)
    discard(folder, files)
    write_atomically(folder / WEIGHTS, files[WEIGHTS])
    write_atomically(folder / CONFIG, files[CONFIG])


def to_files(
    net: StagedNet, *, weights: Mapping[str, Tensor] | None = None, meta: Mapping[str, Any] | None = None
) -> dict[str, bytes]:
    """Return the content of the files that :func:`save` writes, by file name.

    Args:
        net: The network.
        weights: State of ``net`` to export instead of the present one.
        meta: As in :func:`save`.
    """
    state = net.state_dict() if weights is None else weights
    # Copies, because safetensors refuses tensors that share memory, such as tied weights.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    data = safetensors().save(tensors)
    head = describe_head(net)  # readers of format 1 would build another network
    built = {ARGUMENTS: dict(net.arguments)} if net.arguments else {}
    built |= describe_input(net.own_input)
    config = {
        "format": FORMAT if built else 2 if head else 1,
        "sftn_fast": __version__,
        "name": net.name,
        "custom": not is_buildable(net.name),
        "num_classes": net.num_classes,
        "in_channels": net.in_channels,
        "sha256": hashlib.sha256(data).hexdigest(),
        "meta": dict(meta or {}),
        **head,
        **built,
    }
    return {WEIGHTS: data, CONFIG: seal(config).encode()}


def load(
    path: str | Path,
    *,
    name: str | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    prefix: str | None = None,
    say: Say | None = None,
) -> StagedNet:
    """Load the network in ``path``, in evaluation mode on the CPU.

    Args:
        path: An export of :func:`save`, as the folder or its ``model.safetensors``; a file of weights from elsewhere
            (``.pth``, ``.pt``, ``.safetensors``); or weights that torchvision or timm publishes
            (``torchvision:DEFAULT``, ``timm:DEFAULT``). The last two need ``name`` and ``num_classes``.
        name: Name of the network; an export must hold this one.
        num_classes: Number of classes; an export must have as many.
        in_channels: Channels of the images; an export must have as many. 3 by default for a file from elsewhere.
        prefix, say: As in :func:`load_weights`.

    Raises:
        FileNotFoundError: There is no such file.
        WeightsError: The file is damaged, holds another or a custom network, or neither file nor caller names the
            network. A ValueError.
        ValueError: There is no network of that name; import the plugin that registers it first.
    """
    folder, weights_file = _locate(path)
    if folder is not None:
        asked = {"name": name, "num_classes": num_classes, "in_channels": in_channels}
        return _load_export(folder, asked, prefix=prefix, say=say)[0]
    if not is_published(path) and not weights_file.is_file():
        raise FileNotFoundError(f"no weights at {weights_file}")
    if name is None or num_classes is None:
        raise WeightsError(f"{weights_file} does not say which network it holds: give name and num_classes")
    # Read before building, so that a damaged file costs no time, and one with a wrong size no memory.
    weights = None if is_published(path) else _weights_of(path)
    net = build(name, num_classes=num_classes, in_channels=3 if in_channels is None else in_channels)
    assign(net, published(path, net) if weights is None else weights, weights_file, prefix=prefix, say=say)
    return net.eval()


def load_export(folder: str | Path) -> tuple[StagedNet, dict[str, Any]]:
    """Load the network that :func:`save` wrote to ``folder``; return it with the content of its ``config.json``.

    That file is read once, so that network and content belong together even while a run replaces both.

    Raises:
        FileNotFoundError, WeightsError, ValueError: As :func:`load` raises them.
    """
    return _load_export(_expanded(folder), {})


def _load_export(
    folder: Path, asked: Mapping[str, Any], *, prefix: str | None = None, say: Say | None = None
) -> tuple[StagedNet, dict[str, Any]]:
    config = read_config(folder)
    for key, value in asked.items():
        if value is not None and value != config[key]:
            raise WeightsError(f"{folder} holds a network with {key} {config[key]!r}, not {value!r}")
    name, num_classes, file = config["name"], config["num_classes"], folder / WEIGHTS
    if config["custom"]:
        raise WeightsError(
            f"{folder} holds a custom network, {name!r}, that can't be built by name: build it with your own code, "
            f"then call models.load_weights(net, {str(folder)!r})"
        )
    if not is_buildable(name):
        raise WeightsError(f"{folder / CONFIG}: {unknown_name('network', name, names())}; plugins may register others")
    # Read before building, so that a damaged file costs no time, and one with a wrong size no memory.
    _check_weights(file, config)
    weights = read_file(file)
    if num_classes > MANY_CLASSES and not any(
        num_classes in getattr(tensor, "shape", ()) for tensor in weights.values()
    ):
        raise WeightsError(f"{CONFIG} beside {file} is damaged: no tensor has its {num_classes} classes")
    net = _build(config, folder / CONFIG)
    if KEY in config:
        give_head(net, config[KEY], weights, str(file))
    assign(net, weights, file, prefix=prefix, say=say)
    return net.eval(), config


def _build(config: Mapping[str, Any], file: Path) -> StagedNet:
    """Build the network that ``config``, the content of ``file``, describes, with new weights."""
    change, given = read_input(config, str(file)), config.get(ARGUMENTS)
    try:
        net = build(
            config["name"],
            num_classes=config["num_classes"],
            in_channels=config["in_channels"] if change is None else change.channels(),
            arguments=given if given is not None else {} if is_timm(config["name"]) else None,
        )
    except ImportError as error:
        raise WeightsError(f"{file.parent} can't be loaded: {error}") from error
    net.in_channels, net.own_input = config["in_channels"], change
    return net


def load_weights(
    net: StagedNet, path: str | Path, *, prefix: str | None = None, keep_head: bool = False, say: Say | None = None
) -> None:
    """Copy the weights in ``path`` into ``net``, all of them or none.

    Args:
        net: The network, on any device and in any mode, also one that :func:`build` did not make.
        path: As in :func:`load`. Weights may be under a key (``model``, ``state_dict``) and have a prefix (``module.``,
            ``student.``). Averaged weights (``model_ema``, ``ema``) are preferred. The names of RepDistiller,
            torchvision, timm and OpenMMLab are accepted. Missing counters of BatchNorm are set to 0.
        prefix: Key or prefix of the network to load, if several networks in the file fit.
        keep_head: Load all but the classifier if the file has another number of classes.
        say: Called with one line about what was removed, ignored or converted; by default it is logged as a warning.

    Raises:
        FileNotFoundError: There is no such file.
        WeightsError: The file is damaged; names or shapes differ, and the message lists the first; several networks
            in it fit; or a tensor is not dense, not floating point or not finite. A ValueError.
    """
    folder, weights_file = (None, Path(path)) if is_published(path) else _locate(path)
    weights = published(path, net, keep_head=keep_head) if is_published(path) else _weights_of(path)
    config = {} if folder is None else read_config(folder)
    before, description = getattr(net, "head", None), config.get(KEY)
    if description is not None and not isinstance(before, ReusedHead):
        give_head(net, description, weights, str(weights_file))
    try:
        assign(net, weights, weights_file, prefix=prefix, keep_head=keep_head, say=say)
    except Exception:
        if before is not None:
            net.head = before
        raise
    if OWN_INPUT in config:
        net.own_input = read_input(config, str(weights_file))


def require_weights(path: str | Path, name: str) -> None:
    """Check that there are weights at ``path``, without reading or downloading them.

    Args:
        path: As in :func:`load`.
        name: Name of the network that they are for.

    Raises:
        FileNotFoundError: There is no such file, or no weights in the folder. Another OSError if it can't be accessed.
        WeightsError: ``path`` names published weights that are not of this network. A ValueError.
        ImportError: ``path`` names published weights, and the package that knows them is not installed.
    """
    if is_published(path):
        require_published(path, name)
        return
    _, weights_file = _locate(path)
    if not weights_file.is_file():
        raise FileNotFoundError(f"no weights at {weights_file}")


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return the content of ``config.json`` in ``folder``.

    Raises:
        FileNotFoundError: There is no such file.
        WeightsError: :func:`save` did not write it, or it is damaged.
    """
    file = _expanded(folder) / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"no {CONFIG} in {folder}: it says which network {WEIGHTS} holds")
    try:
        config: dict[str, Any] = read_sealed(file)
    except DamagedError as error:
        raise WeightsError(str(error)) from error
    written_as = config.get("format")
    if type(written_as) is int and written_as > FORMAT:  # before the keys, which may be others
        raise WeightsError(f"{file} has format {written_as}, this version reads up to {FORMAT}: update sftn_fast")
    for key, (kind, allowed) in KEYS.items():
        if type(config.get(key, {} if key in OPTIONAL else None)) is not kind:  # bool is an int to isinstance
            fault = f"must be {allowed}, got {printable(repr(config[key]))}" if key in config else "is missing"
            raise WeightsError(
                f"{file} is not the {CONFIG} of an exported network: {key!r} {fault}; where the {WEIGHTS} beside it is "
                "from elsewhere, name the file itself"
            )
    try:
        require_counts(num_classes=config["num_classes"], in_channels=config["in_channels"])
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{file} is damaged: {error}") from error
    if KEY in config:
        check_description(config[KEY], str(file))
    if config["format"] < 1:
        raise WeightsError(f"{file} is damaged: 'format' must be at least 1, got {printable(config['format'])}")
    return config


def verify(folder: str | Path) -> None:
    """Check that both files in ``folder`` are as :func:`save` wrote them.

    Raises:
        FileNotFoundError: One of them is missing.
        WeightsError: One of them is damaged. A ValueError.
    """
    _check_weights(_expanded(folder) / WEIGHTS, read_config(folder))


def read_files(folder: str | Path) -> dict[str, bytes]:
    """Read both files in ``folder`` and check them; return exactly the checked bytes, by file name.

    Raises:
        FileNotFoundError: One of them is missing.
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
    """Return the export folder that ``path`` is or is in, or None, and the file of weights."""
    path = _expanded(path)
    if path.is_dir():
        return path, path / WEIGHTS
    if path.name == WEIGHTS and path.is_file() and _is_ours(path.parent / CONFIG):
        return path.parent, path
    return None, path


def _expanded(path: str | Path) -> Path:
    if path == "":  # pathlib's name for the current folder
        raise FileNotFoundError("the path of the network is empty")
    # Not Path.expanduser, which raises for an unknown user; then the file is reported as missing.
    return Path(os.path.expanduser(path))  # noqa: PTH111


def check_not_of_export(file: Path, key: str) -> None:
    """Raise ConfigError if ``file``, which ``key`` names for output, is one of the two files of an exported network."""
    own = [file.parent / name for name in (WEIGHTS, CONFIG)]
    if _is_ours(own[1]) and any(file.name == path.name or _is_same(file, path) for path in own):
        raise ConfigError(f"{key} must be another file than those of an exported network, got {str(file)!r}")


def _is_same(file: Path, other: Path) -> bool:
    try:
        return file.samefile(other)
    except OSError:  # one of them does not exist
        return False


def _is_ours(file: Path) -> bool:
    """Return whether :func:`save` wrote ``file``; Hugging Face's networks have files of the same names."""
    if not file.is_file():
        return False
    try:
        config = read_sealed(file)
    except DamagedError:  # a damaged file is reported as ours
        return True
    return not config.keys().isdisjoint(("sftn_fast", "sha256"))


def _weights_of(path: str | Path) -> Mapping[Any, Any]:
    """Return the weights in an export or a file."""
    folder, weights_file = _locate(path)
    return _verified(folder) if folder is not None else read_file(weights_file)


def _verified(folder: Path) -> Mapping[Any, Any]:
    """Check the files in ``folder`` and return the weights."""
    verify(folder)
    return read_file(folder / WEIGHTS)
