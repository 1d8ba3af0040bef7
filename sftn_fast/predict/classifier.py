"""An exported network with everything it needs to classify image files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sftn_fast import models
from sftn_fast.config import ConfigError
from sftn_fast.data.decode import DecodeError
from sftn_fast.data.preprocessing import Preprocessing, require_decoder
from sftn_fast.data.resources import cores
from sftn_fast.models import StagedNet
from sftn_fast.models.export import CONFIG
from sftn_fast.utils.paths import expand_user
from sftn_fast.utils.text import escape, printable

BATCH = 64
"""Images that go through the network together."""


OnUndecodable = Callable[["str | Path", DecodeError], None]
"""Callback for a file that can't be decoded, with the reason."""


class Prediction(NamedTuple):
    """A class that an image may show."""

    name: str
    """Name of the class, or its number if the network knows no names."""
    probability: float


class Loaded(NamedTuple):
    """An exported network."""

    network: StagedNet
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    """Names of the classes; empty if it has none."""
    sha256: str
    """Checksum of its weights."""


class Classifier:
    """An exported network, its preprocessing and the names of its classes.

    Args:
        folder: Folder that training exported, such as ``runs/demo/student``.
        device: Where the network runs.

    Raises:
        ConfigError: The folder holds no network, a damaged one, or one without preprocessing; or Pillow is missing.
    """

    def __init__(self, folder: str | Path, device: torch.device | str = "cpu") -> None:
        require_decoder()
        self.network, self.preprocessing, self.class_names, self.sha256 = load(folder)
        self.device = torch.device(device)
        self.network.to(self.device)

    def probabilities(self, paths: Sequence[str | Path]) -> Tensor:
        """Return the probabilities of all classes [N, num_classes] for the images in ``paths``.

        Raises:
            ConfigError: A file can't be decoded.
        """
        return self._classify([_require(path, pixels) for path, pixels in zip(paths, self._decode(paths), strict=True)])

    def predict(
        self, paths: Sequence[str | Path], *, top: int = 5, on_undecodable: OnUndecodable | None = None
    ) -> Iterator[list[Prediction] | None]:
        """Yield the ``top`` likeliest classes of each image in ``paths``, the likeliest first.

        Args:
            paths: Image files.
            top: Number of classes.
            on_undecodable: Called with each file that can't be decoded, and the reason; None is then yielded for it.

        Raises:
            ConfigError: A file can't be decoded, and there is no ``on_undecodable``.
        """
        for first in range(0, len(paths), BATCH):
            batch = paths[first : first + BATCH]
            decoded = self._decode(batch)
            if on_undecodable is None:
                usable = [_require(path, pixels) for path, pixels in zip(batch, decoded, strict=True)]
            else:
                usable = [pixels for pixels in decoded if isinstance(pixels, Tensor)]
            found = self._classify(usable).topk(min(top, self.network.num_classes), dim=1)
            rows = zip(found.values.tolist(), found.indices.tolist(), strict=True)
            for path, pixels in zip(batch, decoded, strict=True):
                if on_undecodable is not None and isinstance(pixels, DecodeError):
                    on_undecodable(path, pixels)
                    yield None
                else:
                    probabilities, labels = next(rows)
                    yield [Prediction(self.name_of(k), p) for k, p in zip(labels, probabilities, strict=True)]

    def name_of(self, label: int) -> str:
        """Return the name of class ``label``."""
        return self.class_names[label] if self.class_names else str(label)

    @torch.inference_mode()
    def _classify(self, pixels: Sequence[Tensor]) -> Tensor:
        """Return the probabilities [N, num_classes] of N images [C, H, W]."""
        if not pixels:
            return torch.empty(0, self.network.num_classes)
        images = self.preprocessing.normalize(torch.stack(list(pixels)).to(self.device))
        return self.network(images).float().softmax(1).cpu()

    def _decode(self, paths: Sequence[str | Path]) -> list[Tensor | DecodeError]:
        """Return the pixels of each file in ``paths``, or why it can't be decoded."""
        with ThreadPoolExecutor(cores()) as pool:
            return list(pool.map(self._pixels, paths))

    def _pixels(self, path: str | Path) -> Tensor | DecodeError:
        try:
            return self.preprocessing.pixels(path)
        except DecodeError as error:
            if error.white is None:
                return error
            return DecodeError(f"{error.args[0]}; predict takes the value of white, data.white, from the training")


def _require(path: str | Path, pixels: Tensor | DecodeError) -> Tensor:
    if isinstance(pixels, DecodeError):
        raise ConfigError(f"{escape(path)} can't be decoded ({pixels})") from pixels
    return pixels


def load(folder: str | Path) -> Loaded:
    """Return the exported network in ``folder``.

    Raises:
        ConfigError: The folder holds no usable export.
    """
    try:
        network, config = models.load_export(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"STUDENT must be the folder of an exported network: {error}") from error
    meta, file = config.get("meta", {}), expand_user(folder) / CONFIG
    if "preprocessing" not in meta:
        raise ConfigError(
            f"STUDENT {printable(folder, 300)} does not tell how images are normalised: an older version exported it; "
            "train it again"
        )
    preprocessing = Preprocessing.from_json(meta["preprocessing"], file)
    if len(preprocessing.mean) != network.in_channels:
        raise ConfigError(
            f"{printable(file, 300)}: preprocessing.mean must be {network.in_channels} numbers, as the network takes, "
            f"got {list(preprocessing.mean)}"
        )
    names = _class_names(meta.get("class_names"), network.num_classes, file)
    return Loaded(network, preprocessing, names, config["sha256"])


def _class_names(names: Any, num_classes: int, file: Path) -> tuple[str, ...]:
    """Return the names of the classes; none if ``names`` is None, as where a data set has no names."""
    if names is None:
        return ()
    if not isinstance(names, list) or len(names) != num_classes or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"{printable(file, 300)}: class_names must be null or a list of {num_classes} texts, as many as classes, "
            f"got {printable(repr(names))}"
        )
    return tuple(names)
