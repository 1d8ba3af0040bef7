"""What decides what a stage computes: its identity, by which a folder's stage is known to be the one that is wanted.

Files count by their content. A key of the configuration is in the identity of each stage that it matters to, or in
is marked as ``Neutral``; ``tests/experiment/test_identity.py`` changes each of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sftn_fast import cli, models
from sftn_fast.config import Config
from sftn_fast.engine.fingerprint import FORMAT, differences
from sftn_fast.experiment import file_digest
from sftn_fast.experiment.plan import RESULT, Job, networks_of

PENDING = "(not there yet)"
"""Stands for what can't be known yet: the weights of a teacher that is still to be trained. Differs from nothing."""
OF_THE_FIT = {"run", "initialisation"}
"""Keys that a fit adds to its stage's identity."""

Differences = list[tuple[str, Any, Any]]
"""Fields in which two identities differ, by dotted name: field, old value, new value."""


def identity_of(
    config: Config, stage: Job, seed_folder: Path, data: dict[str, Any], *, augments: bool, ranks: int
) -> dict[str, Any]:
    """Return all that decides what ``stage`` computes, in JSON's types.

    Args:
        config: Of the run.
        stage: One of its stages.
        seed_folder: The folder of the stage's seed, where its teachers lie.
        data: What the images say of themselves.
        augments: Whether an image is another one in each epoch.
        ranks: Processes that train together.
    """
    identity: dict[str, Any] = {
        FORMAT: 2,
        "stage": stage.name,
        "seed": stage.seed,
        "network": network_of(config, stage),
        "plugins": file_digest.of_plugins(config.plugins),
        "data": data,
    }
    if stage.kind == "teacher":
        # By their content, wherever they lie.
        identity["teacher_file"] = _weights(config.teacher_file, config.teacher)
        if config.teacher_file:
            return identity  # measured, not trained
    identity |= _training(config, stage.kind, ranks)
    whole = cli.to_dict(config)
    if stage.kind == "sftn":
        identity |= {"student": config.student, "sftn": dict(whole["sftn"])}
        if config.sftn.init == "teacher":
            identity["init"] = _trained(seed_folder / "teacher")
        else:
            identity["sftn"]["init"] = _weights(config.sftn.init, config.teacher)
    if stage.kind == "collaborate":
        identity |= {"collaborate": whole["collaborate"], "networks": list(networks_of(config))}
        if config.collaborate.init:
            identity["init"] = _trained(seed_folder / config.collaborate.init)
    if stage.kind == "distill":
        identity |= {"distill": stage.method or config.distill, "route": whole["route"], "gather": config.gather}
        identity["teacher"] = _trained(seed_folder / str(stage.source))
        if config.cache_teacher and not augments:
            # Computed in other batches than the steps', so equal to rounding alone.
            identity["cache_teacher"] = True
    return identity


def _training(config: Config, kind: str, ranks: int) -> dict[str, Any]:
    """How any network is trained."""
    return {
        "epochs": config.epochs_of(kind),
        "amp": config.engine.amp,
        "channels_last": config.engine.channels_last,
        "compile": config.engine.compile,
        "sync_batchnorm": config.engine.sync_batchnorm,
        "eval_every": config.engine.eval_every,  # decides which epoch is the best one
        "ranks": ranks,
        "optim": cli.to_dict(config.optim),
    }


def network_of(config: Config, stage: Job) -> str:
    """Return the name of the network that ``stage`` exports."""
    if stage.kind == "collaborate":
        return networks_of(config)[-1]
    return config.teacher if stage.kind in ("teacher", "sftn") else config.student


def compare(old: dict[str, Any], new: dict[str, Any]) -> Differences:
    """Return the fields in which a stage's identity, as it was noted, differs from the one that is wanted.

    One from before :data:`FORMAT` lacks fields; it is held against those that it has.
    """
    noted = {key: value for key, value in old.items() if key not in OF_THE_FIT}
    return [each for each in differences(noted, new) if each[2] != PENDING]


def _weights(path: str | None, network: str) -> str | None:
    """The content of a file of weights; None where the configuration names none."""
    return (file_digest.of_weights(path, network) or PENDING) if path else None


def trained_digest(folder: Path) -> str | None:
    """Return the checksum of a finished stage's weights: is it still the same network?

    None if it is not finished, or damaged: then it is made again before anything reads it.
    """
    try:
        return str(models.read_config(folder)["sha256"]) if (folder / RESULT).is_file() else None
    except (OSError, models.WeightsError):
        return None


def _trained(folder: Path) -> str:
    return trained_digest(folder) or PENDING
