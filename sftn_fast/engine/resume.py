"""Resuming a run from the newest checkpoint that can be used."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

from sftn_fast.config import ConfigError, check
from sftn_fast.engine import distributed
from sftn_fast.engine.checkpoint import CheckpointStore
from sftn_fast.engine.fingerprint import FingerprintMismatch, differences
from sftn_fast.engine.folder import FolderError
from sftn_fast.engine.state import TrainState
from sftn_fast.utils.text import printable

logger = logging.getLogger(__name__)

MODES = ("auto", "never")


def check_mode(resume: str) -> None:
    """Raise :class:`ConfigError` unless ``resume`` is one of :data:`MODES`."""
    check(resume in MODES, "resume", resume, " or ".join(MODES))


def resume_run(store: CheckpointStore, state: TrainState, identity: dict[str, Any], mode: str) -> int | None:
    """Restore ``state`` from the newest usable checkpoint; return its step, None if there are no checkpoints.

    Args:
        store: the run's checkpoints.
        state: overwritten.
        identity: fingerprint of this run.
        mode: one of :data:`MODES`.

    Raises:
        FolderError: there are checkpoints, and ``mode`` is "never".
        FingerprintMismatch: the newest readable checkpoint belongs to a run with other settings.
        CheckpointError: there are checkpoints, but none can be used.
    """
    candidates = _candidates(store, identity, mode)
    while True:
        found = distributed.on_main(lambda: next(candidates, None))
        if found is None:
            break
        step, content = found
        try:
            state.load_state_dict(content)
            problem = None
        # A file with a valid checksum may hold anything. Whatever fails, try the previous checkpoint.
        except Exception as error:
            problem = f"{type(error).__name__}: {printable(error, 400)}"
        problems = [text for text in distributed.gather(problem) if text]
        if not problems:
            return step
        if distributed.is_main():
            logger.warning("checkpoint %s is refused: %s; trying the one before", store.path(step), problems[0])
    distributed.on_main(partial(_require_none, store))
    return None


def check_agreement(identities: list[dict[str, Any]]) -> None:
    """Raise :class:`ConfigError` if ranks would train different things, which would hang or compute nonsense."""
    for number, identity in enumerate(identities):
        fields = [f"{key}: {ours} and {theirs}" for key, ours, theirs in differences(identities[0], identity)]
        if fields:
            raise ConfigError(f"ranks 0 and {number} differ in what they are to train ({'; '.join(fields)})")


def _candidates(store: CheckpointStore, identity: dict[str, Any], mode: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield step and content of each readable checkpoint of this run, newest first."""
    if mode == "never" and store.steps():
        raise FolderError(
            f"{store.folder} holds checkpoints and resume is 'never'; choose another folder, or resume=auto"
        )
    for step, content in store.valid():
        try:
            differing = differences(content["fingerprint"], identity)
        except (KeyError, TypeError, ValueError, AttributeError):
            logger.warning("checkpoint %s is refused: its fingerprint is missing or damaged", store.path(step))
            continue
        if differing:
            raise FingerprintMismatch(differing)
        yield step, content


def _require_none(store: CheckpointStore) -> None:
    """Raise an error if there are checkpoints: none of them was usable, and training would replace them."""
    if store.steps():
        raise store.none_left()
