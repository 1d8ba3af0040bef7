"""Which device to train on, and in which arithmetic, checked before anything is built."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sftn_fast.config import ConfigError

# Parameters of glibc's mallopt.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4

AMP_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Layout:
    """Where images go, how they lie there, and the arithmetic that the networks work in."""

    device: torch.device
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    def images(self, images: Tensor) -> Tensor:
        """``images`` ``[N, C, H, W]`` or ``[N, views, C, H, W]`` on the device, as NHWC if so chosen, else as NCHW."""
        if images.ndim == 5:
            return self.images(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        return images.to(self.device, non_blocking=True, memory_format=memory_format)

    def indices(self, indices: Tensor) -> Tensor:
        """Targets or sample numbers ``[N]`` on the device."""
        return indices.to(self.device, non_blocking=True)

    def autocast(self) -> torch.autocast:
        """Context in which the networks compute in ``dtype``."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)


def resolve_device(name: str) -> torch.device:
    """The device that ``name`` (auto, cpu, cuda or cuda:N) means on this machine.

    Raises:
        ConfigError: CUDA is asked for and there is none, or not that many devices.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise ConfigError(
            f"engine.device is {name!r}, but no CUDA device is usable (torch is built {built}); use cpu or auto"
        )
    index = int(name.removeprefix("cuda:")) if ":" in name else torch.cuda.current_device()
    if index >= torch.cuda.device_count():
        raise ConfigError(f"engine.device is {name!r}, but CUDA devices here end at {torch.cuda.device_count() - 1}")
    return torch.device("cuda", index)


def resolve_devices(devices: int | str | Sequence[str], default: str) -> list[torch.device]:
    """The devices of ``Config.devices``; 1 means ``default``, and so does "all" on a machine without a GPU.

    Raises:
        ConfigError: There are fewer GPUs than asked for, or not those that are named.
    """
    if not isinstance(devices, int | str):
        return [resolve_device(name) for name in devices]
    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    count = max(usable, 1) if devices == "all" else int(devices)
    if count == 1:
        return [resolve_device(default)]
    if count > usable:
        raise ConfigError(f"devices is {count}, but there are {usable} CUDA devices; processors go by [cpu,cpu]")
    return [torch.device("cuda", index) for index in range(count)]


def is_channels_last(choice: bool | str, model: object, device: torch.device) -> bool:
    """What ``EngineConfig.channels_last`` means for training ``model``, if there is one, on ``device``."""
    if choice == "auto":
        return device.type == "cpu" and getattr(model, "cpu_channels_last", True)
    return bool(choice)


def keep_freed_memory() -> None:
    """Let this process keep the memory that a step frees for the next step, instead of handing it to the kernel.

    A fresh page costs a fault and its zeros, at every step for every large map. With another C library than glibc
    nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def amp_dtype(amp: str, device: torch.device) -> torch.dtype:
    """The dtype that ``amp`` (fp32, bf16 or fp16) means for the networks.

    Raises:
        ConfigError: ``device`` has no arithmetic of that kind.
    """
    if amp == "bf16" and device.type == "cuda":
        with torch.cuda.device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        if not native:
            raise ConfigError(
                f"engine.amp is 'bf16', but {torch.cuda.get_device_name(device)} has none; use fp16 or fp32"
            )
    return AMP_DTYPES[amp]
