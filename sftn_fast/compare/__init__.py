"""``python -m sftn_fast.compare RUN RUN ...``: compare several runs."""

from sftn_fast.compare.command import main

__all__ = ["main"]
