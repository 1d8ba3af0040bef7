"""Files for deployment, made of an exported network, see :func:`sftn_fast.export.formats.write`."""

from sftn_fast.export.command import FORMATS, main

__all__ = ["FORMATS", "main"]
