"""The state of each job in a run's folder: finished, stopped or not begun, with the wanted settings or with others.

``--resume`` decides what happens to jobs of other settings, before anything is trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Literal

from sftn_fast.config import Config, ConfigError
from sftn_fast.data import ImageData
from sftn_fast.engine import CheckpointError, distributed, read_checkpoint
from sftn_fast.engine.checkpoint import is_checkpoint
from sftn_fast.engine.checkpoint_content import has_position
from sftn_fast.engine.fingerprint import FingerprintMismatch, listing
from sftn_fast.experiment import identity
from sftn_fast.experiment.identity import Differences
from sftn_fast.experiment.kinds.snapshots import snapshot, snapshot_epochs
from sftn_fast.experiment.plan import RESULT, Job
from sftn_fast.experiment.repair import has_checkpoint
from sftn_fast.loggers import run_ids
from sftn_fast.utils.checksummed import DamagedError, read_sealed

REPLACED = "replaced"
"""Folder of a run to which ``--resume force`` moves the jobs that it trains again."""
OF_THE_RUN = (
    *("config.yaml", "report.md", "report.html", "report.png", "curves.png", "results.csv", "student"),
    run_ids.FILE,
)
"""Files that a run writes about all its jobs."""


@dataclass(frozen=True)
class JobState:
    """State of one job."""

    job: Job
    finished: bool = False
    """Whether there is a result, and all that other jobs read beside it."""
    begun: bool = False
    """Whether there is a checkpoint or a result."""
    differing: Differences = field(default_factory=list)
    """Settings in which the job's files differ from the wanted ones."""
    environment: dict[str, str] = field(default_factory=dict)
    """Versions and device of its last training."""
    epochs: int = 0
    """Whole epochs that the job's last checkpoint has behind it, without those of a method's initialisation."""

    @property
    def kept(self) -> bool:
        """Whether the job is finished with the wanted settings."""
        return self.finished and not self.differing


def look(config: Config, job: Job, root: Path, images: ImageData) -> JobState:
    """Return the state of ``job`` in the run's folder ``root``. Changes nothing.

    Raises:
        ConfigError: A teacher did not save the snapshots that are needed now.
    """
    folder = job.folder(root)
    result = _result(folder / RESULT)
    checkpoint = None if result else _newest_checkpoint(folder)
    if not result and not checkpoint:
        unreadable = bool(_checkpoints(folder))
        again = [("checkpoints", "unreadable", "none")] if unreadable and config.resume == "force" else []
        return JobState(job, begun=unreadable, differing=again)
    wanted = wanted_identity(config, job, root, images)
    recorded, epochs = _of_result(result, wanted) if result else _of_checkpoint(checkpoint or {})
    differing = _by_mixed(config, job, root, images, recorded, identity.compare(recorded, wanted))
    if not differing and config.resume != "force":
        _require_snapshots(config, job, folder, epochs)
    elif not differing and (missing := _missing_snapshot(config, job, folder, epochs)):
        differing = [(missing[0], "no snapshots", "snapshots")]
    finished = result is not None and job.behaviour.lacks(config, result) is None
    behind = epochs if has_checkpoint(folder) else 0
    return JobState(job, finished, True, differing, (result or checkpoint or {}).get("environment", {}), behind)


def _by_mixed(
    config: Config, job: Job, root: Path, images: ImageData, recorded: dict[str, Any], differing: identity.Differences
) -> identity.Differences:
    """Return ``differing`` with the setting ``data.mixed`` itself in place of what it changes for a teacher."""
    if not differing or images.mixing is None:
        return differing
    mixed = config.data.mixed
    before: Literal["all", "students"] = "students" if mixed == "all" else "all"
    mixing = dataclasses.replace(images.mixing, config=dataclasses.replace(images.mixing.config, mixed=before))
    with_it = wanted_identity(config, job, root, dataclasses.replace(images, mixing=mixing))
    others = identity.compare(recorded, with_it)
    return [("data.mixed", before, mixed), *others] if len(others) < len(differing) else differing


def _of_result(result: dict[str, Any], wanted: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Return identity and epochs of a finished job."""
    # Older versions recorded the ranks under this key.
    ranks = {"ranks": result.get("devices", 1)} if "ranks" in wanted else {}
    return {**ranks, **result["identity"]}, result["last"]["epoch"]


def _of_checkpoint(checkpoint: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Return identity and epochs of a stopped job."""
    recorded = checkpoint["fingerprint"]
    ranks = {"ranks": recorded["run"].get("ranks")} if isinstance(recorded.get("run"), dict) else {}
    return {**ranks, **recorded}, checkpoint["position"][0]


def environment_changes(config: Config, state: JobState, now: Mapping[str, str]) -> str:
    """Return, in brackets, what has changed in the environment since the job was trained; empty if nothing has.

    Such changes affect rounding at most.
    """
    before = {
        key: value for key, value in state.environment.items() if key != "threads" or config.engine.threads != "auto"
    }
    changed = [f"{key} {value} then, {now[key]} now" for key, value in before.items() if now.get(key, value) != value]
    return f" ({'; '.join(changed)})" if changed else ""


def wanted_identity(config: Config, job: Job, root: Path, images: ImageData) -> dict[str, Any]:
    """Return the identity of ``job`` by ``config``; ``images`` are the experiment's, or those of the job."""
    images = job.behaviour.images(images)
    return identity.identity_of(
        config,
        job,
        job.folder(root).parent,
        images.fingerprint(),
        augments=images.train.augments,
        ranks=distributed.world_size(),
    )


def survey(config: Config, jobs: Sequence[Job], root: Path, images: ImageData) -> dict[Job, JobState]:
    """Return the state of each job in ``root``, or refuse what ``--resume`` does not allow. Changes nothing.

    With ``force``, a job also differs if a job that it learns from does.

    Raises:
        FingerprintMismatch: A job was trained with other settings.
        ConfigError: The folder holds a run and must not.
    """
    states: dict[Job, JobState] = {}
    for job in jobs:
        state = look(config, job, root, images)
        if state.begun and config.resume == "never":
            raise ConfigError(f"output {root} holds a run already, and resume is never")
        if state.begun and not state.differing and config.resume == "force":
            sources = job.behaviour.learns_from(config, job)
            again = [
                (other.name, "the one before", "trained again")
                for other, known in states.items()
                if other.seed == job.seed and other.name in sources and known.differing
            ]
            state = dataclasses.replace(state, differing=again)
        refuse(config, state, root)
        states[job] = state
    return states


def refuse(config: Config, state: JobState, root: Path) -> None:
    """Raise :class:`FingerprintMismatch` for a job of other settings, unless ``--resume force`` trains it again."""
    if not state.differing or config.resume == "force":
        return
    raise FingerprintMismatch(state.differing, f"{state.job.place} in {root}")


def set_aside(state: JobState, root: Path) -> None:
    """Move a job's folder to where no run and no report reads it."""
    moved = _move(state.job.folder(root), root / REPLACED / state.job.place)
    why = listing(state.differing)
    print(f"{state.job.place}: {why}; trained again, the old one is in {moved}", flush=True)


def replace_differing(states: Mapping[Job, JobState], root: Path) -> None:
    """Set aside every job that ``--resume force`` trains again, and what the run wrote about them.

    Afterwards the folder holds nothing of other settings.
    """
    differing = [state for state in states.values() if state.differing]
    for state in differing:
        set_aside(state, root)
    if differing:
        for name in OF_THE_RUN:
            if (root / name).exists():
                _move(root / name, root / REPLACED / name)


def _move(path: Path, target: Path) -> Path:
    """Rename ``path`` to ``target`` plus the first free number, and return that."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        taken = {other.name for other in target.parent.iterdir()}
        free = next(name for name in (f"{target.name}.{number}" for number in count(1)) if name not in taken)
        return path.rename(target.with_name(free))
    except OSError as error:
        raise ConfigError(f"{path} can't be moved to {target.parent} ({error.strerror or error})") from error


def _require_snapshots(config: Config, job: Job, folder: Path, epochs: int) -> None:
    missing = _missing_snapshot(config, job, folder, epochs)
    if missing:
        raise ConfigError(
            f"{missing[0]} needs {missing[1]}, but its teacher was trained without saving it; --resume force trains it "
            f"again, --output NAME takes another folder"
        )


def _missing_snapshot(config: Config, job: Job, folder: Path, epochs: int) -> tuple[str, Path] | None:
    """Return setting and place of the first snapshot that a teacher should have saved within ``epochs`` and has not."""
    if not job.behaviour.teaches:
        return None
    asked = {
        epoch: key
        for epoch, key in snapshot_epochs(config, job.kind).items()
        if epoch <= epochs and (key != "route" or "distill" in config.stages)
    }
    due = ((key, snapshot(folder, epoch)) for epoch, key in asked.items())
    return next(((key, path) for key, path in due if not path.is_dir()), None)


def _result(path: Path) -> dict[str, Any] | None:
    """Return a job's result; None without one that tells its identity."""
    try:
        result = read_sealed(path)
        return result if isinstance(result["identity"], dict) and isinstance(result["last"]["epoch"], int) else None
    except (DamagedError, KeyError, TypeError):  # the job itself names the damage when its turn comes
        return None


def _checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a job, newest first; those of a method's initialisation if the job has none."""
    for pattern in ("checkpoints/step_*", "init-*/checkpoints/step_*"):
        if found := sorted(filter(is_checkpoint, folder.glob(pattern)), reverse=True):
            return found
    return []


def _newest_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Return the newest readable checkpoint. The job itself names unreadable ones when it resumes."""
    for path in _checkpoints(folder):
        try:
            state = read_checkpoint(path)
        except CheckpointError:
            continue
        if isinstance(state.get("fingerprint"), dict) and has_position(state):
            return state
    return None
