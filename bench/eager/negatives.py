"""CRD's negatives as RepDistiller's data sets draw them: by NumPy, a sample after the other, in a loader's worker."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class InstanceSample:
    """For each class an array of the samples of all others.

    RepDistiller makes the arrays of all classes when it builds the data set, N times as many numbers as classes: 10 GB
    for ImageNet. Here they are made for the classes that are asked for.
    """

    def __init__(self, labels: Tensor, index: Tensor, num_negatives: int) -> None:
        self.labels, self.num_negatives = labels.numpy(), num_negatives
        classes = np.unique(self.labels[index.numpy()])
        self.negatives = {c: np.flatnonzero(self.labels != c) for c in classes}

    def __call__(self, index: Tensor) -> Tensor:
        """Return the negatives that a loader collates for a batch, [B, K]."""
        return torch.stack([torch.from_numpy(self._of_sample(position)) for position in index.tolist()])

    def _of_sample(self, position: int) -> np.ndarray:
        candidates = self.negatives[self.labels[position]]
        replace = self.num_negatives > len(candidates)
        return np.random.choice(candidates, self.num_negatives, replace=replace)  # noqa: NPY002
