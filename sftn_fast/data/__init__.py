"""Images for training: data sets that live on the device as one uint8 tensor, augmented there in batches."""

from sftn_fast.data.image_data import ImageData, build
from sftn_fast.data.loaders import Batch, EvalLoader, TrainLoader

__all__ = ["Batch", "EvalLoader", "ImageData", "TrainLoader", "build"]
