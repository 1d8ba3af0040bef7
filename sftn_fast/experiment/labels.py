"""Names of jobs for people to read."""

from __future__ import annotations

LABELS = {
    "teacher": "standard teacher",
    "sftn": "SFTN teacher",
    "student": "student alone",
    "distill-teacher": "student of standard teacher",
    "distill-sftn": "student of SFTN teacher",
    "collaborate": "student among peers",
}
"""What a stage is called, in the order of the table."""


def kind(name: str) -> str:
    """The part of a stage's name that says what it is, without its method: a key of ``LABELS``."""
    return max((key for key in LABELS if f"{name}-".startswith(f"{key}-")), key=len)


def label(name: str) -> str:
    """What a stage is called in a table."""
    return f"{LABELS[kind(name)]}, {method_in(name)}" if method_in(name) else LABELS[kind(name)]


def method_in(name: str) -> str:
    """The method in a stage's name, as a folder can be called; empty where the run has only one."""
    return name[len(kind(name)) + 1 :]
