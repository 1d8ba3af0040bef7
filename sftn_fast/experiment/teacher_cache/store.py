"""Files with a frozen teacher's logits on the training images, which replace the teacher's forward passes.

If the images of an epoch are a pure function of seed and epoch, so are the teacher's logits. If images are never
augmented, they are the same in every epoch.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sftn_fast.models.weights import safetensors
from sftn_fast.utils.atomic import write_atomically

logger = logging.getLogger(__name__)

NAME = "logits"
SHOWN = 3  # differences that a warning names


def files(epochs: int, *, augmented: bool) -> list[str]:
    """Return the names of the files that ``epochs`` of training use: one each, or a single one for all."""
    return [f"epoch{epoch:04d}.safetensors" for epoch in range(1, epochs + 1)] if augmented else ["every.safetensors"]


class TeacherLogits:
    """Logits of one epoch in a table on the device, and those of every epoch in files.

    Within an epoch, each step either reads its rows of the table, or runs the teacher and writes them. That is no work
    for the host, and the memory is the same in every epoch.

    Args:
        folder: Of the files, see :func:`files`.
        identity: All that the logits depend on but the epoch, in JSON's types. A file of another one is not used.
        num_samples: Number of training images; a batch's ``index`` is below it.
        seen: Number of images in an epoch, each once.
        like: A tensor with the logits' classes [..., num_classes], dtype and device.
        unaugmented: For images that are the same in every epoch: yields index [N] and logits [N, num_classes] of all.

    Attributes:
        table: Logits [num_samples, num_classes]; NaN where unknown.
        known: Whether a step reads the table instead of writing to it.
    """

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any],
        *,
        num_samples: int,
        seen: int,
        like: Tensor,
        unaugmented: Callable[[], Iterable[tuple[Tensor, Tensor]]] | None = None,
    ) -> None:
        self.folder, self.identity, self.seen, self._unaugmented = folder, identity, seen, unaugmented
        self.table = torch.full((num_samples, like.shape[-1]), torch.nan, dtype=like.dtype, device=like.device)
        self.known = False
        self._teacher: tuple[nn.Module, ...] = ()
        self._weights = ""
        self._changed = False

    def __call__(self, index: Tensor, teacher: Callable[[], Tensor]) -> Tensor:
        """Return the logits [N, num_classes] of the images at ``index`` [N] int64; call ``teacher`` if unknown."""
        if self.known:
            return self.table.index_select(0, index)
        logits = teacher()
        self.table.index_copy_(0, index, logits)
        return logits

    def watch(self, teacher: nn.Module) -> None:
        """Compare the weights of ``teacher`` with its present ones whenever an epoch begins or ends."""
        self._teacher, self._weights = (teacher,), _digest(teacher.state_dict().values())

    def begin_epoch(self, epoch: int) -> bool:
        """Prepare the table for ``epoch``, counted from 0. Return whether steps change between reading and writing."""
        before = self.known
        if self._is_of_other_weights():
            self.known = False
        elif self._unaugmented is None:
            self.known = self._read(epoch + 1)
        elif not self.known:
            if not self._read(epoch + 1):
                for index, logits in self._unaugmented():
                    self.table.index_copy_(0, index, logits)
                self._write(epoch + 1)
            self.known = True
        return self.known != before

    def end_epoch(self, epoch: int) -> None:
        """Write the logits of ``epoch``, counted from 1, unless they were read or are incomplete.

        They are incomplete if a stopped run was resumed in mid-epoch. A full disk causes a warning.
        """
        if self.known or self._is_of_other_weights():
            return
        if int((~self.table[:, 0].isnan()).sum()) == self.seen:
            self._write(epoch)

    def _is_of_other_weights(self) -> bool:
        """Return whether the teacher's weights changed since :meth:`watch`; warn once. Waits for the device."""
        for teacher in () if self._changed else self._teacher:
            self._changed = _digest(teacher.state_dict().values()) != self._weights
            if self._changed:
                logger.warning("the teacher's weights have changed: its logits in %s are no longer used", self.folder)
        return self._changed

    def _file(self, epoch: int) -> Path:
        return self.folder / files(epoch, augmented=self._unaugmented is None)[-1]

    def _identity(self, epoch: int) -> dict[str, Any]:
        return self.identity if self._unaugmented is not None else {**self.identity, "epoch": epoch}

    def _write(self, epoch: int) -> None:
        logits, path = self.table.cpu(), self._file(epoch)
        about = {"identity": json.dumps(self._identity(epoch)), "sha256": _digest([logits])}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, safetensors().save({NAME: logits}, metadata=about))
        except OSError as error:
            logger.warning("%s can't be written: %s; training continues", path, error.strerror or error)

    def _read(self, epoch: int) -> bool:
        """Fill the table from the file of ``epoch`` if it fits, else with NaN."""
        path = self._file(epoch)
        if path.is_file():
            try:
                self.table.copy_(self._checked(path, self._identity(epoch)))
                return True
            except _UnusableError as error:
                logger.warning("%s is not used: %s; the teacher runs, and the file is written again", path, error)
        self.table.fill_(torch.nan)
        return False

    def _checked(self, path: Path, identity: dict[str, Any]) -> Tensor:
        from safetensors import safe_open

        try:
            with safe_open(path, framework="pt") as file:
                about, logits = file.metadata(), file.get_tensor(NAME)
            theirs, intact = dict(json.loads(about["identity"])), about["sha256"] == _digest([logits])
        except Exception as error:  # safetensors raises errors of its own, and the file may hold anything
            raise _UnusableError(f"it is damaged ({type(error).__name__})") from error
        if not intact:
            raise _UnusableError("it is damaged (its sha256 is another)")
        differing = [f"{key} {theirs.get(key)} -> {ours}" for key, ours in identity.items() if theirs.get(key) != ours]
        if (logits.shape, logits.dtype) != (self.table.shape, self.table.dtype):
            differing.append(f"{logits.dtype} {[*logits.shape]} -> {self.table.dtype} {[*self.table.shape]}")
        if differing:
            raise _UnusableError("it holds other logits (" + "; ".join(differing[:SHOWN]) + ")")
        return logits


class _UnusableError(Exception):
    """A file of logits that can't be used."""


def _digest(tensors: Iterable[Tensor]) -> str:
    content = hashlib.sha256()
    for tensor in tensors:
        content.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()
