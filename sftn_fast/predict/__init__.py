"""Classification of image files by an exported network, see :class:`sftn_fast.predict.classifier.Classifier`."""

from sftn_fast.predict.command import main

__all__ = ["main"]
