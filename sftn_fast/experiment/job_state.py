"""Where the stages of a run stand in its folder: finished, stopped or not begun, with the settings that are wanted or
with others. ``--resume`` decides what becomes of the latter, before anything is trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from sftn_fast.config import Config, ConfigError
from sftn_fast.data import ImageData
from sftn_fast.engine import CheckpointError, distributed, read_checkpoint
from sftn_fast.engine.checkpoint import is_checkpoint
from sftn_fast.engine.checkpoint_content import has_position
from sftn_fast.engine.fingerprint import FingerprintMismatch, listing
from sftn_fast.experiment import identity
from sftn_fast.experiment.identity import Differences
from sftn_fast.experiment.plan import RESULT, Job, needs
from sftn_fast.utils.checksummed import DamagedError, read_sealed

REPLACED = "replaced"
"""Folder of a run that receives the stages that ``--resume force`` trains again."""
OF_THE_RUN = ("config.yaml", "report.md", "report.html", "report.png", "curves.png", "results.csv", "student")
"""What a run writes about its stages."""


@dataclass(frozen=True)
class JobState:
    """What there is of one stage."""

    stage: Job
    finished: bool = False
    begun: bool = False
    """Whether there is a checkpoint or a result."""
    differing: Differences = field(default_factory=list)
    """How the settings that it was trained with differ from those that are wanted."""
    environment: dict[str, str] = field(default_factory=dict)
    """The versions and the device that it was trained with last."""

    @property
    def kept(self) -> bool:
        """Whether the stage is finished as it is wanted."""
        return self.finished and not self.differing


def look(config: Config, stage: Job, root: Path, images: ImageData) -> JobState:
    """Return what there is of ``stage`` in the folder ``root`` of a run. Only looks.

    Raises :class:`ConfigError` where a teacher left no snapshots for the route that is wanted.
    """
    folder = stage.folder(root)
    result = _result(folder / RESULT)
    state = None if result else _newest_checkpoint(folder)
    if not result and not state:
        unreadable = bool(_checkpoints(folder))
        again = [("checkpoints", "unreadable", "none")] if unreadable and config.resume == "force" else []
        return JobState(stage, begun=unreadable, differing=again)
    wanted = wanted_identity(config, stage, root, images)
    noted, epochs = _of_result(result, wanted) if result else _of_checkpoint(state or {})
    differing = identity.compare(noted, wanted)
    if not differing and config.resume != "force":
        _require_snapshots(config, stage, folder, epochs)
    elif not differing and _missing_snapshot(config, stage, folder, epochs):
        differing = [("route", "no snapshots", "snapshots")]
    return JobState(stage, bool(result), True, differing, (result or state or {}).get("environment", {}))


def _of_result(result: dict[str, Any], wanted: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """A finished stage's identity and epochs."""
    # Where an older version noted the ranks.
    ranks = {"ranks": result.get("devices", 1)} if "ranks" in wanted else {}
    return {**ranks, **result["identity"]}, result["last"]["epoch"]


def _of_checkpoint(state: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """A stopped stage's identity and epochs."""
    noted = state["fingerprint"]
    ranks = {"ranks": noted["run"].get("ranks")} if isinstance(noted.get("run"), dict) else {}
    return {**ranks, **noted}, state["position"][0]


def environment_changes(config: Config, found: JobState, now: Mapping[str, str]) -> str:
    """Return in brackets what a stage was trained with and is not now, though it decides no more than rounding."""
    before = {
        key: value for key, value in found.environment.items() if key != "threads" or config.engine.threads != "auto"
    }
    changed = [f"{key} {value} then, {now[key]} now" for key, value in before.items() if now.get(key, value) != value]
    return f" ({'; '.join(changed)})" if changed else ""


def wanted_identity(config: Config, stage: Job, root: Path, images: ImageData) -> dict[str, Any]:
    """Return the identity that ``stage`` has by ``config``."""
    return identity.identity_of(
        config,
        stage,
        stage.folder(root).parent,
        images.fingerprint(),
        augments=images.train.augments,
        ranks=distributed.world_size(),
    )


def survey(config: Config, stages: Sequence[Job], root: Path, images: ImageData) -> dict[Job, JobState]:
    """Return where each stage stands in ``root``, or refuse what ``--resume`` does not allow. Only looks.

    With ``force`` a stage also differs where one that it reads from does: what it learned from will be another network.

    Raises:
        FingerprintMismatch: A stage was trained with other settings.
        ConfigError: The folder holds a run and must not.
    """
    found: dict[Job, JobState] = {}
    for stage in stages:
        standing = look(config, stage, root, images)
        if standing.begun and config.resume == "never":
            raise ConfigError(f"output {root} holds a run already, and resume is never")
        if standing.begun and not standing.differing and config.resume == "force":
            again = [other.name for other in _read_by(config, stage, found) if found[other].differing]
            differing = [(name, "the one before", "trained again") for name in again]
            standing = dataclasses.replace(standing, differing=differing)
        refuse(config, standing, root)
        found[stage] = standing
    return found


def refuse(config: Config, standing: JobState, root: Path) -> None:
    """Raise :class:`FingerprintMismatch` for a stage of other settings, unless ``--resume`` says what becomes of it."""
    if not standing.differing or config.resume == "force":
        return
    raise FingerprintMismatch(standing.differing, f"{standing.stage.place} in {root}")


def set_aside(standing: JobState, root: Path) -> None:
    """Move a stage's folder to where no run and no report reads it."""
    moved = _move(standing.stage.folder(root), root / REPLACED / standing.stage.place)
    why = listing(standing.differing)
    print(f"{standing.stage.place}: {why}; trained again, the old one is in {moved}", flush=True)


def replace_differing(standings: Mapping[Job, JobState], root: Path) -> None:
    """Set aside every stage that ``--resume force`` trains again, and what the run wrote about them.

    Now the folder holds nothing of other settings.
    """
    differing = [standing for standing in standings.values() if standing.differing]
    for standing in differing:
        set_aside(standing, root)
    if differing:
        for name in OF_THE_RUN:
            if (root / name).exists():
                _move(root / name, root / REPLACED / name)


def _move(path: Path, target: Path) -> Path:
    """Rename ``path`` to ``target`` with the first number behind it that is free, and return that."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        taken = {other.name for other in target.parent.iterdir()}
        free = next(name for name in (f"{target.name}.{number}" for number in count(1)) if name not in taken)
        return path.rename(target.with_name(free))
    except OSError as error:
        raise ConfigError(f"{path} can't be moved to {target.parent} ({error.strerror or error})") from error


def _read_by(config: Config, stage: Job, others: Mapping[Job, JobState]) -> list[Job]:
    """The stages that ``stage`` learns from."""
    names = needs(config, stage) if stage.kind != "student" else set()
    return [other for other in others if other.seed == stage.seed and other.name in names]


def _require_snapshots(config: Config, stage: Job, folder: Path, epochs: int) -> None:
    missing = _missing_snapshot(config, stage, folder, epochs)
    if missing:
        raise ConfigError(
            f"route needs {missing}, which its teacher, trained before, did not leave; --resume force trains it again, "
            f"--output NAME takes another folder"
        )


def _missing_snapshot(config: Config, stage: Job, folder: Path, epochs: int) -> Path | None:
    """The first snapshot that a teacher of ``epochs`` should have left for the route and has not."""
    if stage.kind not in ("teacher", "sftn") or "distill" not in config.stages:
        return None
    due = [epoch for epoch in config.route.epochs_of(config.epochs_of(stage.kind)) if epoch <= epochs]
    return next((path for path in (anchor(folder, epoch) for epoch in due) if not path.is_dir()), None)


def anchor(folder: Path, epoch: int) -> Path:
    """Return where a teacher's stage keeps the network as it was after ``epoch``."""
    return folder / "anchors" / f"epoch{epoch:04d}"


def _result(path: Path) -> dict[str, Any] | None:
    """A stage's result; None where there is none that says what made it."""
    try:
        result = read_sealed(path)
        return result if isinstance(result["identity"], dict) and isinstance(result["last"]["epoch"], int) else None
    except (DamagedError, KeyError, TypeError):  # which the stage says when its turn comes
        return None


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a stage, newest first; of what a method trains beforehand where the student has none yet."""
    for pattern in ("checkpoints/step_*", "init-*/checkpoints/step_*"):
        if found := sorted(filter(is_checkpoint, folder.glob(pattern)), reverse=True):
            return found
    return []


def _newest_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that can be read. What can't is named when the stage goes on."""
    for path in _checkpoints(folder):
        try:
            state = read_checkpoint(path)
        except CheckpointError:
            continue
        if isinstance(state.get("fingerprint"), dict) and has_position(state):
            return state
    return None
