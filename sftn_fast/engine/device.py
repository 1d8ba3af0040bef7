"""The device to train on and its arithmetic, checked before anything is built."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from sftn_fast.config import ConfigError, EngineConfig, check
from sftn_fast.validation import is_device

AMP_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Layout:
    """Device, memory format of images, and arithmetic of the networks."""

    device: torch.device
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    def images(self, images: Tensor) -> Tensor:
        """Return ``images`` ``[N, C, H, W]`` or ``[N, views, C, H, W]`` on the device, as NHWC if chosen, else NCHW."""
        if images.ndim == 5:
            return self.images(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        return images.to(self.device, non_blocking=True, memory_format=memory_format)

    def indices(self, indices: Tensor) -> Tensor:
        """Return targets or sample numbers ``[N]`` on the device."""
        return indices.to(self.device, non_blocking=True)

    def autocast(self) -> torch.autocast:
        """Return a context in which the networks compute in ``dtype``."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)


def resolve_device(name: str, key: str = "engine.device") -> torch.device:
    """Return the device that ``name`` (auto, cpu, cuda or cuda:N) means on this machine.

    Args:
        name: Value of the setting.
        key: The setting, for messages.

    Raises:
        ConfigError: The name is no device's, CUDA is requested and there is none, or there are not enough devices.
    """
    check(is_device(name), key, name, "auto, cpu, cuda or cuda:N")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise ConfigError(f"{key} is {name!r}, but no CUDA device is usable (torch is built {built}); use cpu or auto")
    index = int(name.removeprefix("cuda:")) if ":" in name else torch.cuda.current_device()
    if index >= torch.cuda.device_count():
        raise ConfigError(f"{key} is {name!r}, but CUDA devices here end at {torch.cuda.device_count() - 1}")
    return torch.device("cuda", index)


def resolve_devices(devices: int | str | Sequence[str], default: str) -> list[torch.device]:
    """Return the devices of ``Config.devices``. 1 means ``default``, and so does "all" on a machine without a GPU.

    Raises:
        ConfigError: there are fewer GPUs than requested, or not those that are named.
    """
    if not isinstance(devices, int | str):
        return [resolve_device(name, "devices") for name in devices]
    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    count = max(usable, 1) if devices == "all" else int(devices)
    if count == 1:
        return [resolve_device(default)]
    if count > usable:
        raise ConfigError(f"devices is {count}, but there are {usable} CUDA devices; processors go by [cpu,cpu]")
    return [torch.device("cuda", index) for index in range(count)]


def is_channels_last(engine: EngineConfig, model: object, device: torch.device) -> bool:
    """Return what ``engine.channels_last`` means for training ``model``, None if there is none, on ``device``."""
    if engine.channels_last != "auto":
        return bool(engine.channels_last)
    if device.type == "cuda":
        return engine.amp != "fp32"  # what tensor cores read in half precision without a transposed copy
    return device.type == "cpu" and getattr(model, "cpu_channels_last", True)


def uses_cudnn_benchmark(engine: EngineConfig, device: torch.device) -> bool:
    """Return what ``engine.cudnn_benchmark`` means on ``device``."""
    if engine.cudnn_benchmark != "auto":
        return bool(engine.cudnn_benchmark) and device.type == "cuda"
    deterministic = torch.are_deterministic_algorithms_enabled() or torch.backends.cudnn.deterministic
    return device.type == "cuda" and not deterministic


@contextmanager
def cudnn_benchmark(on: bool) -> Iterator[None]:
    """Let cuDNN time its algorithms for each new shape inside this context, or let it choose by rule."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = on
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def bfloat16_instructions() -> str | None:
    """Return what this CPU multiplies bfloat16 with faster than float32: AMX, AVX-512 or None."""
    has = torch.cpu.get_capabilities()
    return "AMX" if has.get("amx_bf16") else "AVX-512" if has.get("avx512_bf16") else None


def amp_dtype(amp: str, device: torch.device) -> torch.dtype:
    """Return the dtype that ``amp`` (fp32, bf16 or fp16) means for the networks.

    Raises:
        ConfigError: ``device`` does not support it.
    """
    if amp == "bf16" and device.type == "cuda":
        with torch.cuda.device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        if not native:
            raise ConfigError(
                f"engine.amp is 'bf16', but {torch.cuda.get_device_name(device)} has none; use fp16 or fp32"
            )
    return AMP_DTYPES[amp]
