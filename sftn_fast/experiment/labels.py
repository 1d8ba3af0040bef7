"""Readable names for the networks of an experiment."""

from __future__ import annotations

LABELS = {
    "teacher": "standard teacher",
    "sftn": "SFTN teacher",
    "student": "student alone",
    "distill-teacher": "student of standard teacher",
    "distill-sftn": "student of SFTN teacher",
    "collaborate": "student among peers",
}
"""Label for each kind of job, in the order of the table."""


def kind(name: str) -> str:
    """Return the kind of the job called ``name``, a key of ``LABELS``: its name without the method."""
    return max((key for key in LABELS if f"{name}-".startswith(f"{key}-")), key=len)


def label(name: str) -> str:
    """Return the label of the job called ``name``, including its method if the name has one."""
    return f"{LABELS[kind(name)]}, {method_in(name)}" if method_in(name) else LABELS[kind(name)]


def method_in(name: str) -> str:
    """Return the method in a job's name, in the spelling of folder names; empty if the run has only one method."""
    return name[len(kind(name)) + 1 :]
