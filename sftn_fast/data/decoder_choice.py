"""Choice of the decoder for image files, DALI or torchvision, and of its number of workers."""

from __future__ import annotations

from pathlib import Path

from sftn_fast.config import DataConfig
from sftn_fast.data import dali_decoder, resources
from sftn_fast.data.dali_decoder import DaliDecoder
from sftn_fast.data.file_loaders import Decoder, ImageFormat
from sftn_fast.data.torchvision_decoder import TorchvisionDecoder
from sftn_fast.utils import launcher

DECODERS = {"dali": DaliDecoder, "torchvision": TorchvisionDecoder}


def _chosen(config: DataConfig) -> tuple[str, str | None]:
    """Return the decoder's name; with ``auto``, also why it is not DALI."""
    if config.loader != "auto":
        return config.loader, None
    if config.auto_augment != "none":
        return "torchvision", f"DALI has no data.auto_augment={config.auto_augment}"
    if config.grey:
        return "torchvision", "DALI has no data.grey"
    reason = dali_decoder.why_not()
    if reason:
        return "torchvision", f"DALI can't be imported ({reason}); pip install nvidia-dali-cuda130"
    return "dali", None


def _workers(config: DataConfig) -> int:
    return config.workers or max(1, resources.cores() // launcher.local_world_size())


def describe_loader(config: DataConfig) -> str | None:
    """Return one line about the decoder for the user; None if images are decoded once, into memory."""
    if not config.streams:
        return None
    name, reason = _chosen(config)
    workers = _workers(config)
    unit = "thread" if name == "dali" else "process"
    plural = ("s" if name == "dali" else "es") if workers > 1 else ""
    because = f", because {reason}" if reason else ""
    label = "DALI" if name == "dali" else "torchvision"
    return f"images are decoded on demand by {label} in {workers} {unit}{plural}{because}"


def build_decoder(config: DataConfig, image_format: ImageFormat, root: Path) -> Decoder:
    """Build the decoder that ``config`` names, or the best available one, for the data set in ``root``.

    Raises:
        ConfigError: Its package is missing or broken.
    """
    return DECODERS[_chosen(config)[0]](image_format, workers=_workers(config), root=root)
