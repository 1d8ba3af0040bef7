"""The identity of a job: everything that decides what it computes.

A job in a run's folder is reused only if its identity is the wanted one. Files count by their content. Every key of the
configuration is in the identity of the jobs that it affects, or marked as ``Neutral`` in its type;
``tests/experiment/test_identity.py`` changes each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftn_fast import cli, models
from sftn_fast.config import Config, OptimConfig
from sftn_fast.engine.fingerprint import FORMAT, differences
from sftn_fast.experiment import file_digest, networks
from sftn_fast.experiment.kinds import KINDS
from sftn_fast.experiment.plan import RESULT, Job
from sftn_fast.utils import run_files

PENDING = "(not there yet)"
"""Stands for the weights of a teacher that is not trained yet. Equal to anything."""
OF_THE_FIT = {"run", "initialisation"}
"""Keys that the engine adds to the identity of a job."""

ADDED = ("name", "arguments", "decay_norms_and_biases", "warmup_lr", "min_lr", "dot")
"""Settings of the optimizer that are in an identity only with another value than the default."""

Differences = list[tuple[str, Any, Any]]
"""Fields in which two identities differ: dotted name, old value, new value."""


def identity_of(
    config: Config, job: Job, seed_folder: Path, data: dict[str, Any], *, augments: bool, ranks: int
) -> dict[str, Any]:
    """Return everything that decides what ``job`` computes, in JSON's types.

    Args:
        config: Of the run.
        job: One of its jobs.
        seed_folder: The folder of the job's seed, with its teachers.
        data: The fingerprint of the images.
        augments: Whether an image differs from epoch to epoch.
        ranks: Processes that train together.
    """
    behaviour = job.behaviour
    identity: dict[str, Any] = {
        FORMAT: 2,
        "stage": job.name,
        "seed": job.seed,
        "network": behaviour.networks(config)[-1],
        "plugins": file_digest.of_plugins(config.plugins),
        "data": data,
    }
    if behaviour.trains(config):
        identity |= _training(config, job.kind, ranks)
        if (ema := behaviour.ema(config)) is not None:
            identity["ema"] = {"decay": ema.decay, "warmup": ema.warmup}
    contents = _Contents(config, seed_folder, augments)
    if started := _pretrained(config, job, contents):
        identity["pretrained"] = started
    return identity | behaviour.identity(config, job, contents)


@dataclass(frozen=True)
class _Contents:
    """See :class:`sftn_fast.experiment.kinds.Contents`."""

    config: Config
    seed_folder: Path
    augments: bool

    def of_weights(self, path: str | None, network: str) -> str | None:
        return (file_digest.of_weights(path, network) or PENDING) if path else None

    def of_trained(self, job: str, part: str | None = None) -> str:
        return trained_digest(self.config, self.seed_folder, job, part) or PENDING


def _pretrained(config: Config, job: Job, contents: _Contents) -> dict[str, str | None]:
    """Return the checksums of the published weights from which networks start in ``job``, by role."""
    found = {role: networks.pretrained(config, role) for role in job.behaviour.starts(config)}
    return {role: contents.of_weights(weights[1], getattr(config, role)) for role, weights in found.items() if weights}


def _training(config: Config, kind: str, ranks: int) -> dict[str, Any]:
    """Return the settings by which every network is trained."""
    optim, unchanged = cli.to_dict(config.optim_of(kind)), cli.to_dict(OptimConfig())
    # Identities of earlier versions don't have these.
    for key in ADDED:
        if optim[key] == unchanged[key]:
            del optim[key]
    return {
        "epochs": config.epochs_of(kind),
        "amp": config.engine.amp,
        "channels_last": config.engine.channels_last,
        "compile": config.engine.compile,
        "sync_batchnorm": config.engine.sync_batchnorm,
        "eval_every": config.engine.eval_every,  # decides which epoch is the best one
        "ranks": ranks,
        "optim": optim,
    }


def compare(old: dict[str, Any], new: dict[str, Any]) -> Differences:
    """Return the fields in which the recorded identity ``old`` differs from the wanted one.

    An identity from before :data:`FORMAT` lacks fields; only those that it has are compared.
    """
    recorded = {key: value for key, value in old.items() if key not in OF_THE_FIT}
    return [each for each in differences(recorded, new) if each[2] != PENDING]


def teaching_folder(config: Config, seed_folder: Path, name: str) -> Path:
    """Return where the job ``name`` exports the network that others learn from: its average, if it keeps one."""
    folder = seed_folder / name
    return folder if KINDS[name].ema(config) is None else folder / run_files.EMA


def trained_digest(config: Config, seed_folder: Path, name: str, part: str | None = None) -> str | None:
    """Return the checksum of the weights of the finished job ``name`` that others learn from.

    With ``part``, it is that of the weights in this folder of the job.

    None if the job is not finished, or damaged: then it is repaired before anything reads it.
    """
    try:
        finished = (seed_folder / name / RESULT).is_file()
        folder = teaching_folder(config, seed_folder, name) if part is None else seed_folder / name / part
        return str(models.read_config(folder)["sha256"]) if finished else None
    except (OSError, models.WeightsError):
        return None
