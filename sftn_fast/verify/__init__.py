"""``python -m sftn_fast.verify ROOT``: find image files that can't be decoded."""

from sftn_fast.data.verify import main

__all__ = ["main"]
