"""An exported network with everything it needs to classify image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sftn_fast import models
from sftn_fast.config import ConfigError
from sftn_fast.data.decode import DecodeError
from sftn_fast.data.preprocessing import Preprocessing, require_decoder
from sftn_fast.data.resources import cores
from sftn_fast.models import StagedNet
from sftn_fast.utils.text import escape, printable

BATCH = 64
"""Images that go through the network together."""


class Prediction(NamedTuple):
    """A class that an image may show."""

    name: str
    """Name of the class, or its number if the network knows no names."""
    probability: float


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
        self.network, self.preprocessing, self.class_names = load(folder)
        self.device = torch.device(device)
        self.network.to(self.device)

    @torch.inference_mode()
    def probabilities(self, paths: Sequence[str | Path]) -> Tensor:
        """Return the probabilities of all classes [N, num_classes] for the images in ``paths``.

        Raises:
            ConfigError: A file can't be decoded.
        """
        if not paths:
            return torch.empty(0, self.network.num_classes)
        with ThreadPoolExecutor(cores()) as pool:
            pixels = torch.stack(list(pool.map(self._pixels, paths)))
        return self.network(self.preprocessing.normalize(pixels.to(self.device))).float().softmax(1).cpu()

    def predict(self, paths: Sequence[str | Path], *, top: int = 5) -> Iterator[list[Prediction]]:
        """Yield the ``top`` likeliest classes of each image in ``paths``, the likeliest first.

        Raises:
            ConfigError: A file can't be decoded.
        """
        for first in range(0, len(paths), BATCH):
            found = self.probabilities(paths[first : first + BATCH]).topk(min(top, self.network.num_classes), dim=1)
            for probabilities, labels in zip(found.values.tolist(), found.indices.tolist(), strict=True):
                yield [Prediction(self.name_of(k), p) for k, p in zip(labels, probabilities, strict=True)]

    def name_of(self, label: int) -> str:
        """Return the name of class ``label``."""
        return self.class_names[label] if self.class_names else str(label)

    def _pixels(self, path: str | Path) -> Tensor:
        try:
            return self.preprocessing.pixels(path)
        except DecodeError as error:
            raise ConfigError(f"{escape(path)} can't be decoded ({error})") from error


def load(folder: str | Path) -> tuple[StagedNet, Preprocessing, tuple[str, ...]]:
    """Return network, preprocessing and class names of an export; no names if it has none.

    Raises:
        ConfigError: The folder holds no usable export.
    """
    try:
        config = models.read_config(folder)
        network = models.load(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"STUDENT must be the folder of an exported network: {error}") from error
    meta = config.get("meta", {})
    if "preprocessing" not in meta:
        raise ConfigError(
            f"STUDENT {printable(folder, 300)} does not tell how images are normalised: an older version exported it; "
            "train it again"
        )
    preprocessing = Preprocessing.from_json(meta["preprocessing"])
    if len(preprocessing.mean) != network.in_channels:
        raise ConfigError(f"STUDENT {printable(folder, 300)} is damaged: its normalisation has other channels")
    names = meta.get("class_names") or []
    if not isinstance(names, list) or len(names) not in (0, network.num_classes):
        raise ConfigError(f"STUDENT {printable(folder, 300)} is damaged: it has names for other classes")
    return network, preprocessing, tuple(map(str, names))
