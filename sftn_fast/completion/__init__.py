"""Scripts that complete ``sftn`` on the command line of a shell. Needs no torch."""

from sftn_fast.completion.command import main

__all__ = ["main"]
