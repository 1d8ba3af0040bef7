"""``python -m sftn_fast.compare RUN RUN ...``: compare several runs."""

from sftn_fast.report.command import compare_main as main

__all__ = ["main"]
