"""Names of jobs for people to read."""

from __future__ import annotations

from sftn_fast.experiment.kinds import KINDS

LABELS = {name: label for kind in KINDS.values() for name, label in kind.labels.items()}
"""Label of each kind of job, in the order of the report's table."""


def kind(name: str) -> str:
    """Return the part of a job's name before its method: a key of ``LABELS``."""
    return max((key for key in LABELS if f"{name}-".startswith(f"{key}-")), key=len)


def label(name: str) -> str:
    """Return the label of the job ``name`` in a table."""
    return f"{LABELS[kind(name)]}, {method_in(name)}" if method_in(name) else LABELS[kind(name)]


def method_in(name: str) -> str:
    """Return the method in a job's name, spelled as in the folder's name; empty if the run has only one method."""
    return name[len(kind(name)) + 1 :]
