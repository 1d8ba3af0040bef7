"""Images for training: kept on the device and augmented there in batches, or decoded from files as they are needed."""

from sftn_fast.data.choice import describe_loader
from sftn_fast.data.image_data import ImageData, build, say_notices
from sftn_fast.data.loaders import Batch, EvalLoader, TrainLoader
from sftn_fast.data.notices import mute as mute_notices

__all__ = ["Batch", "EvalLoader", "ImageData", "TrainLoader", "build", "describe_loader", "mute_notices", "say_notices"]
