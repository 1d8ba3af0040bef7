"""Files in a run's folder: the names that belong to a run, and the check that a finished job's files are unchanged.

A job is one training. The ``result.json`` of a finished job has its figures, the size and SHA-256 of its other files,
and its own checksum. It is written last, so a job with this file is finished.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sftn_fast.config import ConfigError
from sftn_fast.utils.atomic import LEFTOVER, remove
from sftn_fast.utils.checksummed import DIGEST, DamagedError, checksum, fault_of, read_sealed
from sftn_fast.utils.text import printable

RESULT = "result.json"
"""File with a finished job's figures. It is written last, so a job with this file is finished."""
FILES = "files"
"""Key in ``result.json`` of the checksums of the job's other files, by their names in its folder."""
KINDS = (
    *("teacher", "early", "soteacher", "sftn", "student"),
    *("distill-teacher", "distill-early", "distill-soteacher", "distill-sftn", "collaborate"),
)
"""Names of jobs, or the part before a hyphen and the method."""
SEED = re.compile(r"seed(0|-?[1-9]\d*)")
"""Name of a seed's folder."""
NETWORK = ("model.safetensors", "config.json")
LOGS = ("metrics.jsonl", "summary.csv")
SAMPLES = "samples"
"""Folder with test images to try the exported student on."""
OWN = (
    "replaced",
    SAMPLES,
    "config.yaml",
    "report.md",
    "report.html",
    "report.png",
    "curves.png",
    "results.csv",
    "resumed-from",
    "loggers.json",
    ".lock",
)
"""Files and folders of the whole run. No job reads them."""
LOCK = ".lock"
MARKER = "resumed-from"
"""File that names the run of which this one is a copy, once the copy is complete."""
STUDENT = "student"
"""Folder with the exported student of the whole run."""
COPY = ".tmp_resume"
"""Temporary folder while a run is copied from another. Only the code that copies removes it."""
BEST = "best"
"""Folder in a job's folder with its network after the best epoch."""
EMA = "ema"
"""Folder in a job's folder with the average of its network's weights after the last epoch."""
BRANCH = "branch"
"""Folder in the folder of a student-friendly teacher with the student's stages in its earliest branch."""
TEMPORARY = re.compile(r"(?:\.old)?\.(.+)\.\d+\.tmp", re.DOTALL)
"""Name of a temporary file, and the name of the file that it was for."""
CLASSES = "by_class.csv"
EXPORTS = (BEST, EMA, BRANCH, "anchors/epoch*", "peer*")
"""Patterns of the folders in a job's folder that hold networks, or a part of one."""
CHECKED = (*NETWORK, *LOGS, CLASSES, *(f"{part}/{file}" for part in EXPORTS for file in NETWORK))
CHECKED += tuple(f"init-*/{file}" for file in LOGS)
"""Patterns of the files of a finished job that have a checksum."""


def seed_folders(root: Path) -> list[Path]:
    """Return the folders of the run's seeds, without copies such as ``seed0.bak``."""
    return sorted(path for path in root.glob("seed*") if SEED.fullmatch(path.name) and path.is_dir())


def job_folders(root: Path) -> list[Path]:
    """Return the folders of the run's jobs, finished or not."""
    return [path for seed in seed_folders(root) for path in sorted(seed.iterdir()) if is_job(path)]


def is_job(path: Path) -> bool:
    """Return whether ``path`` is a folder with the name of a job."""
    distilled = tuple(f"{kind}-" for kind in KINDS if "-" in kind)  # only these have a method in their name
    return (path.name in KINDS or path.name.startswith(distilled)) and path.is_dir()


def strangers(root: Path) -> list[Path]:
    """Return folders that look like a run's but have none of its names: copies of seeds and of jobs."""
    seeds = seed_folders(root)
    alike = [path for path in sorted(root.glob("seed*")) if path.is_dir() or SEED.fullmatch(path.name)]
    found = [path for path in alike if path not in seeds]
    for seed in seeds:
        found += [path for path in sorted(seed.iterdir()) if (path / RESULT).exists() and not is_job(path)]
    return found


def checksums(folder: Path) -> dict[str, Any]:
    """Return the checksums of the files in a job's folder, by name.

    Raises:
        OSError: A file can't be read.
    """
    found = sorted({path for pattern in CHECKED for path in folder.glob(pattern) if path.is_file()})
    return {path.relative_to(folder).as_posix(): checksum(path) for path in found}


def read_result(folder: Path) -> dict[str, Any]:
    """Return the content of a job's ``result.json``.

    Raises:
        DamagedError: The file is missing or damaged, or belongs to another job.
    """
    path = folder / RESULT
    result = read_sealed(path)
    if FILES in result and DIGEST not in result:
        raise DamagedError(f"{printable(path, 400)} is damaged: its checksum is missing")
    wrong = _first_wrong(result)
    if wrong:
        raise DamagedError(f"{printable(path, 400)} is damaged: {wrong}")
    if (result["name"], f"seed{result['seed']}") != (folder.name, folder.parent.name):
        of = f"{printable(result['name'])} of seed {result['seed']}"
        raise DamagedError(f"{printable(path, 400)} belongs to another job, {of}: the folder was copied or renamed")
    return result


def faults(folder: Path, result: dict[str, Any]) -> dict[str, str]:
    """Return the faults of a finished job's files by name. A result without checksums has none."""
    expected = result.get(FILES, {})
    found = {name: fault_of(folder / name, expected[name]) for name in sorted(expected)}
    return {name: fault for name, fault in found.items() if fault}


def has_checksums(result: dict[str, Any]) -> bool:
    """Return whether a job's result has checksums of its files. Older versions wrote none."""
    return FILES in result


def refuse_links(root: Path) -> None:
    """Raise :class:`ConfigError` for a link in a run's folder that leads out of it, or to a folder.

    Writing through such a link would change a file of another owner or job.
    """
    for path in _own_paths(root):
        if path.is_symlink() and (path.is_dir() or _leads_out(path, root)):
            raise ConfigError(
                f"{printable(path, 400)} is a link, and a run writes through none: remove it, or use another folder"
            )


def remove_leftovers(root: Path) -> None:
    """Remove the temporary files of killed runs. The caller must hold the folder's lock.

    Of the files in ``root`` itself, which may be the user's, only those for a run's own names are removed.

    Raises:
        OSError: A file can't be removed.
    """
    for path in list(_own_paths(root)):
        if LEFTOVER.fullmatch(path.name) and path.name != COPY:
            remove(path)


def _own_paths(root: Path) -> Iterator[Path]:
    """Yield all paths with the names of a run, and the paths below them. Links are not followed."""
    for path in sorted(root.iterdir()):
        if path.name in (*OWN, STUDENT, COPY) or SEED.fullmatch(path.name) or _is_own_leftover(path.name):
            yield path
            yield from _below(path)


def _is_own_leftover(name: str) -> bool:
    """Return whether ``name`` is that of a temporary file of the whole run."""
    made_for = TEMPORARY.fullmatch(name)
    return made_for is not None and made_for[1] in (*OWN, STUDENT)


def _below(path: Path) -> Iterator[Path]:
    if path.is_dir() and not path.is_symlink() and not LEFTOVER.fullmatch(path.name):
        for inner in sorted(path.iterdir()):
            yield inner
            yield from _below(inner)


def _leads_out(path: Path, root: Path) -> bool:
    try:
        return not path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # a circle of links
        return True


def _first_wrong(result: dict[str, Any]) -> str | None:
    """Return the first fault of a result's figures, or None."""
    for key, kind in (("name", str), ("network", str), ("seed", int), ("parameters", int), ("epochs", int)):
        if not isinstance(result.get(key), kind) or isinstance(result[key], bool):
            return f"{key!r} is missing or wrong"
    for key in ("last", "best", *(["ema"] if "ema" in result else [])):
        row = result.get(key)
        if not isinstance(row, dict) or not isinstance(row.get("epoch"), int) or not _is_number(row.get("top1")):
            return f"{key!r} is missing or wrong"
    for key in ("seconds", "images_per_second", "data_wait_share"):
        if not _is_number(result.get(key)):
            return f"{key!r} is missing or wrong"
    for key in ("agreement", "agreement5", "kl", "cka", "calibration_error"):
        if result.get(key) is not None and not isinstance(result[key], float | int):
            return f"{key!r} is wrong"
    result.setdefault("agreement", None)  # tables read both; no version left them out
    result.setdefault("kl", None)
    for key in ("identity", "environment", FILES):
        if not isinstance(result.get(key, {}), dict):
            return f"{key!r} is wrong"
    if not isinstance(result.get("identity", {}).get("distill", ""), str | None):
        return "'identity' is wrong"
    if not isinstance(result.get("test_content", ""), str):
        return "'test_content' is wrong"
    for name, expected in result.get(FILES, {}).items():
        inside = ".." not in Path(name).parts and not Path(name).is_absolute()
        if not inside or not isinstance(expected, dict) or not isinstance(expected.get("bytes"), int):
            return f"{FILES!r} is wrong"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)
