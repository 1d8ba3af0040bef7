"""Weight files of any origin: read without running them, loaded without guessing."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from sftn_fast.models.staged import StagedNet

WRAPPERS = ("state_dict_ema", "model_ema", "model", "state_dict", "net")
"""Keys under which training scripts (RepDistiller, timm, torchvision) keep the weights beside the optimizer and the
like. Averaged weights come first, as in timm: they are what such a script evaluates."""
PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""
AVERAGED = "n_averaged"
"""The counter that torch.optim.swa_utils.AveragedModel, of torchvision's scripts, keeps beside the weights."""
HARMLESS = (argparse.Namespace,)
"""What is let through beside tensors: timm and torchvision save their command line. It runs nothing."""
SHOWN = 5


class WeightsError(ValueError):
    """A file that can't be loaded as weights, or not into this network."""


def read(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a ``.safetensors`` file or a PyTorch one, wrappers and prefixes taken off.

    Nothing in the file is ever run: PyTorch files are read with ``weights_only=True``.

    Raises:
        FileNotFoundError: There is no such file.
        WeightsError: The file is damaged, or holds other things than tensors by name.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    payload = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pytorch(path)
    return unwrap(payload, path)


def unwrap(payload: Any, path: Path) -> dict[str, Tensor]:
    """The tensors by name within what a file held."""
    for key in WRAPPERS:
        if isinstance(payload, Mapping) and isinstance(payload.get(key), Mapping):
            payload = payload[key]
    if not isinstance(payload, Mapping) or not payload:
        raise WeightsError(f"{path} holds no weights by name: it is a {type(payload).__name__}")
    strangers = [name for name, value in payload.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if strangers:
        raise WeightsError(
            f"{path} holds other things than weights by name, such as {strangers[0]!r}, and no "
            f"{', '.join(map(repr, WRAPPERS))} that holds only weights"
        )
    weights = {name: value for name, value in payload.items() if name != AVERAGED}
    for prefix in PREFIXES * 2:
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def assign(net: nn.Module, weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Copy ``weights`` into ``net``, all of them or none.

    Names that are not the network's own are tried as those that it has in RepDistiller, or in the library it is from.

    Raises:
        WeightsError: Names or shapes differ; the message lists the first of them.
    """
    own = net.state_dict()
    if isinstance(net, StagedNet):
        renamed = {net.own_name(name): value for name, value in weights.items()}
        # Two names of one tensor are a mismatch to report: which of the values is meant, nobody knows.
        if len(renamed) == len(weights) and len(renamed.keys() & own) > len(weights.keys() & own):
            weights = renamed
    differences = _differences(own, weights)
    if differences:
        listed = "".join(f"\n  {line}" for line in differences[:SHOWN])
        more = f"\n  and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        what = f"{net.name} with {net.num_classes} classes" if isinstance(net, StagedNet) else type(net).__name__
        raise WeightsError(f"{path} does not fit {what}:{listed}{more}")
    net.load_state_dict(weights)


def safetensors() -> ModuleType:
    """The module ``safetensors.torch``, imported when it is needed.

    Raises:
        ImportError: It is not installed; the message says what to do.
    """
    try:
        import safetensors.torch as codec
    except ImportError as error:
        raise ImportError(f"networks are saved with safetensors: pip install safetensors ({error})") from error
    return codec


def _differences(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """A line for each tensor that both have in different shapes, or that one of them lacks."""
    lines = []
    for name, tensor in own.items():
        if name in weights and weights[name].shape != tensor.shape:
            lines.append(f"{name}: {list(weights[name].shape)} in the file, {list(tensor.shape)} in the network")
    lines += [f"{name}: {list(own[name].shape)} in the network, not in the file" for name in own if name not in weights]
    lines += [
        f"{name}: {list(weights[name].shape)} in the file, not in the network" for name in weights if name not in own
    ]
    return lines


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    codec = safetensors()
    try:
        return codec.load_file(path)
    except Exception as error:
        raise WeightsError(f"{path} is damaged or no safetensors file ({_cause(error)})") from error


def _read_pytorch(path: Path) -> Any:
    try:
        # torch warns of odd pickles that it refuses a moment later; the refusal says enough.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.serialization.safe_globals(list(HARMLESS)):
                return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message advises to switch the protection off, so only the culprit's name is taken from it.
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        held = f"holds Python objects ({culprit[1]})" if culprit else "is damaged or holds Python objects"
        raise WeightsError(
            f"{path} {held}: unpickling those can run any code, so nothing was loaded. If you trust the file, load it "
            f"where it was made and save the weights alone: torch.save(model.state_dict(), ...)"
        ) from error
    except Exception as error:
        raise WeightsError(f"{path} is damaged or no PyTorch file ({_cause(error)})") from error


def _cause(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split(". ")[0].split("\n")[0]
