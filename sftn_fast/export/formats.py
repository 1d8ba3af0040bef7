"""The formats of :mod:`sftn_fast.export`: each writes a file and reads it back to compare its logits."""

from __future__ import annotations

import importlib.util
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sftn_fast import models
from sftn_fast.config import ConfigError
from sftn_fast.export.deployed import Deployed
from sftn_fast.models.copying import copy_network
from sftn_fast.utils.streams import silent_output
from sftn_fast.utils.text import counted

BATCHES = (1, 2, 5)
"""Batch sizes with which a file is checked: its batch is dynamic."""
TOLERANCE = 1e-3
"""Largest difference of a logit, relative to the largest logit, at which a file counts as equal."""
OPSET = 18
COLOURS = re.compile(r"\x1b\[[\d;]*m")

Run = Callable[[Tensor], Tensor]
"""A file that was read back: pixels [N, C, H, W] to logits [N, num_classes]."""


class Format(NamedTuple):
    """One format."""

    suffix: str
    """Of its files."""
    write: Callable[[Deployed, Tensor, Path], Run | None]
    """Writes the network, for which it may run the example pixels. Returns the file read back; None if it can't run."""
    needs: tuple[str, ...] = ()
    """Packages that writing needs."""


class Difference(NamedTuple):
    """Comparison of a file with the network it was made of."""

    largest: float
    """Largest difference of a logit."""
    scale: float
    """Largest logit."""


def write(format_name: str, network: Deployed, image_size: int, file: Path) -> Difference | None:
    """Write ``network`` to ``file`` and compare the logits of both; None if nothing installed can run the file.

    Args:
        format_name: One of :data:`sftn_fast.export.FORMATS`.
        network: In evaluation mode, on the CPU.
        image_size: Side of the images in pixels.
        file: Replaced if it exists. Removed if the comparison fails.

    Raises:
        ConfigError: A package is missing, the network can't be written in this format, or the file computes other
            logits.
    """
    chosen = WRITERS[format_name]
    for package in chosen.needs:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"--format {format_name} needs the package {package}: pip install {package}")
    channels = len(network.mean)
    example = torch.rand(2, channels, image_size, image_size, generator=torch.Generator().manual_seed(0))
    temporary = file.with_name(f".{file.stem}.tmp{file.suffix}")
    try:
        with warnings.catch_warnings(), torch.no_grad(), silent_output():
            warnings.simplefilter("ignore")  # of deprecation, by exporters that have no successor for some users yet
            try:
                run = chosen.write(network, example, temporary)
            except (ConfigError, OSError):
                raise
            except Exception as error:
                raise ConfigError(f"this network can't be written as {format_name}: {_reason(error)}") from error
            difference = _compare(network, run, example) if run is not None else None
        if difference is not None and not difference.largest <= TOLERANCE * difference.scale:
            raise ConfigError(
                f"the {format_name} file computes other logits than the network, by {difference.largest:.3g}; it was "
                "removed"
            )
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    return difference


def _reason(error: BaseException) -> str:
    """Return one line; of ONNX's exporter the cause, since its own error only names the step that failed."""
    while isinstance(error, torch.onnx.OnnxExporterError) and error.__cause__ is not None:
        error = error.__cause__
    return next(iter(COLOURS.sub("", str(error)).strip().splitlines()), type(error).__name__)


def _compare(network: Deployed, run: Run, example: Tensor) -> Difference:
    largest = scale = 0.0
    for count in BATCHES:
        pixels = torch.rand(count, *example.shape[1:], generator=torch.Generator().manual_seed(count))
        ours, theirs = network(pixels), run(pixels)
        if theirs.shape != ours.shape:
            raise ConfigError(
                f"the file returns logits {list(theirs.shape)} for {counted(count, 'image')}, not {list(ours.shape)}"
            )
        largest = max(largest, (ours - theirs).abs().max().item())
        scale = max(scale, ours.abs().max().item())
    return Difference(largest, scale)


def _write_pt2(network: Deployed, example: Tensor, file: Path) -> Run:
    batch = torch.export.Dim("batch", min=1)
    torch.export.save(torch.export.export(network, (example,), dynamic_shapes=({0: batch},)), file)
    loaded: Run = torch.export.load(file).module()
    return loaded


def _write_torchscript(network: Deployed, example: Tensor, file: Path) -> Run:
    torch.jit.trace(network, (example,)).save(str(file))
    loaded: Run = torch.jit.load(str(file))
    return loaded


def _write_onnx(network: Deployed, example: Tensor, file: Path) -> Run | None:
    torch.onnx.export(
        network,
        (example,),
        str(file),
        dynamo=True,
        external_data=False,
        opset_version=OPSET,
        input_names=["pixels"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        verbose=False,
    )
    return _run_onnx(file)


def _write_onnx_legacy(network: Deployed, example: Tensor, file: Path) -> Run | None:
    torch.onnx.export(
        network,
        (example,),
        str(file),
        dynamo=False,
        opset_version=OPSET,
        input_names=["pixels"],
        output_names=["logits"],
        dynamic_axes={"pixels": {0: "batch"}, "logits": {0: "batch"}},
    )
    return _run_onnx(file)


def _run_onnx(file: Path) -> Run | None:
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])


def _write_state_dict(network: Deployed, example: Tensor, file: Path) -> Run:
    """Write the tensors under the network's original names: torchvision's, timm's, or those of one's own network.

    The file's metadata has the mean and deviation by which that network sees pixels, as a list in JSON each.
    """
    inner = network.network
    assert isinstance(inner, models.StagedNet)
    tensors = {name: tensor.contiguous().clone() for name, tensor in models.export_state_dict(inner).items()}
    mean, std = network.network_normalization()
    save_file(tensors, file, metadata={"format": "pt", "mean": json.dumps(mean), "std": json.dumps(std)})
    restored = copy_network(inner).eval()
    for tensor in restored.state_dict().values():
        tensor.zero_()
    models.load_weights(restored, file, say=lambda line: None)
    restored.own_input = None  # as in the network's original code
    with safe_open(file, "pt") as written:
        stored = written.metadata()
    shift, scale = (torch.tensor(json.loads(stored[key])).view(-1, 1, 1) for key in ("mean", "std"))
    return lambda pixels: restored((pixels - shift) / scale)


WRITERS = {
    "onnx": Format(".onnx", _write_onnx, ("onnx", "onnxscript")),
    "onnx-legacy": Format(".onnx", _write_onnx_legacy, ("onnx",)),
    "pt2": Format(".pt2", _write_pt2),
    "torchscript": Format(".ts.pt", _write_torchscript),
    "state_dict": Format(".safetensors", _write_state_dict),
}
"""Formats by name."""
