"""Image data sets: kept on the device and augmented there in batches, or decoded from files on demand."""

from sftn_fast.data.decoder_choice import describe_loader
from sftn_fast.data.image_data import ImageData, build
from sftn_fast.data.loaders import Batch, EvalLoader, TrainLoader
from sftn_fast.data.mixing import labels_of
from sftn_fast.data.notices import mute as mute_notices
from sftn_fast.data.samples import sample_files

__all__ = [
    "Batch",
    "EvalLoader",
    "ImageData",
    "TrainLoader",
    "build",
    "describe_loader",
    "labels_of",
    "mute_notices",
    "sample_files",
]
