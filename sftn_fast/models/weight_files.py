"""Reader of files of weights, which runs no code from them."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from sftn_fast.utils.format import readable_bytes

PACKED_LIMIT, PACKED_RATIO = 64_000_000, 20
"""Limits of a compressed file: one that unpacks to more bytes than the first, and to more times its own size than the
second, is refused. PyTorch itself does not compress, and zeros compress a thousandfold."""
NUMPY = tuple(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct"))
PASSED_OVER = (*NUMPY, "numpy.ndarray", "numpy.dtype", "pathlib.PosixPath", "pathlib.WindowsPath", "datetime.datetime")
"""Python objects that scripts save beside the weights. An :class:`Unread` replaces each of them."""


class WeightsError(ValueError):
    """A file that can't be loaded as weights, or not into this network."""


class Unread:
    """Placeholder of an object of :data:`PASSED_OVER`; neither code nor state of the object is used."""

    def __new__(cls, *_: object) -> Unread:
        """Create an empty object and ignore the arguments in the file."""
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        """Ignore the state in the file."""


def read_file(path: Path) -> Mapping[Any, Any]:
    """Return the content of a ``.safetensors`` or PyTorch file: tensors by name, or mappings of them.

    PyTorch files are read with ``weights_only=True``. The format is recognised by the content.

    Raises:
        FileNotFoundError: There is no such file.
        WeightsError: The file is damaged, would unpack to far more than its size, or holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    payload = _read_safetensors(path) if _is_safetensors(path) else _read_pytorch(path)
    if not isinstance(payload, Mapping) or not payload:
        raise WeightsError(f"{path} holds no weights by name: it is a {type(payload).__name__}")
    return payload


def safetensors() -> ModuleType:
    """Import and return ``safetensors.torch``.

    Raises:
        ImportError: It is not installed; the message says how to install it.
    """
    try:
        import safetensors.torch as codec
    except ImportError as error:
        raise ImportError(f"networks are saved with safetensors: pip install safetensors ({error})") from error
    return codec


def _is_safetensors(path: Path) -> bool:
    """Return whether the suffix, or the start of the file (length and brace of a header), is that of safetensors."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _read_safetensors(path: Path) -> Any:
    codec = safetensors()
    try:
        return codec.load_file(path)
    except Exception as error:
        raise WeightsError(f"{path} is damaged or no safetensors file ({_cause(error)})") from error


def _read_pytorch(path: Path) -> Any:
    _require_unpacked_size(path)
    harmless: list[Any] = [argparse.Namespace, *((Unread, name) for name in PASSED_OVER)]
    try:
        # torch warns about pickles that it then refuses; the error is enough.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.serialization.safe_globals(harmless):
                return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's message advises to switch the protection off, so only the object's name is used from it.
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        held = f"holds Python objects ({culprit[1]})" if culprit else "is damaged or holds Python objects"
        raise WeightsError(
            f"{path} {held}: unpickling those can run any code, so nothing was loaded. If you trust the file, load it "
            f"where it was made and save the weights alone: torch.save(model.state_dict(), ...)"
        ) from error
    except (Exception, RecursionError) as error:
        raise WeightsError(f"{path} is damaged or no PyTorch file ({_cause(error)})") from error


def _require_unpacked_size(path: Path) -> None:
    """Refuse a decompression bomb by the sizes in the archive's directory, without unpacking anything."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return  # PyTorch's older format, or damaged, which the reader reports
    if unpacked > max(PACKED_LIMIT, PACKED_RATIO * path.stat().st_size):
        raise WeightsError(
            f"{path} is packed: {readable_bytes(path.stat().st_size)} would unpack to {readable_bytes(unpacked)}. "
            f"Unpack it with other tools, and save its content with torch.save"
        )


def _cause(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".split(". ")[0].split("\n")[0]
