"""Networks of timm as staged ones, by timm's own description of their stages.

``feature_info`` names the modules that end a stage, with the channels and the reduction of their maps. The network is
cut there, as :func:`~sftn_fast.models.wrap.as_staged` cuts any other. A network that can't be cut gives its maps by
``forward_intermediates`` (:mod:`~sftn_fast.models.intermediates`). timm is imported when the first of them is built.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn

from sftn_fast.models.copying import copy_network, copy_without_data
from sftn_fast.models.intermediates import IntermediatesNet, choose_maps, shapes_of_maps
from sftn_fast.models.layouts import CHANNELS_LAST, IN_ORDER, Layout
from sftn_fast.models.preacts import give_preact
from sftn_fast.models.registry import register_prefix, unknown_name
from sftn_fast.models.staged import StagedNet
from sftn_fast.models.wrap import cut, names_in
from sftn_fast.utils.text import one_line, printable
from sftn_fast.utils.timm_names import PREFIX, SOURCES, check_arguments, is_timm, parse

BATCH = 2
MOST = 5
"""Largest number of stages; of more descriptions, the last of each size is one."""


class Source(NamedTuple):
    """What timm builds a network of."""

    architecture: str
    """Name in timm's registry, with a tag if it was given."""
    arguments: dict[str, Any]
    """Arguments that the name, or a description from elsewhere, gives."""
    config: Any
    """``pretrained_cfg`` of timm: weights, normalisation and size."""


def timm_module() -> ModuleType:
    """Import and return ``timm``.

    Raises:
        ImportError: It can't be imported; the message says what to install.
    """
    try:
        return import_module("timm")
    except Exception as error:  # not only ImportError: a torchvision that does not match torch raises RuntimeError
        reason = one_line(str(error))
        raise ModuleNotFoundError(
            f"networks whose names begin with {PREFIX} need timm, which can't be imported ({reason}); pip install timm"
        ) from error


def require_timm(name: str) -> None:
    """Check that the network ``name`` of any project is known, as far as timm is concerned.

    Raises:
        ImportError: It is one of timm's, which can't be imported.
        ValueError: timm has no such network.
    """
    if is_timm(name):
        find_source(name)


def find_source(name: str) -> Source:
    """Return what the network ``name`` is built of. Reads the description of a network that is not timm's own.

    Raises:
        ImportError: timm can't be imported.
        ValueError: timm has no such network, or its description can't be read.
    """
    wanted, timm = parse(name), timm_module()
    arguments = dict(wanted.arguments)
    architecture, config = wanted.model, None
    if architecture.startswith(SOURCES):
        config, architecture, given = _described_elsewhere(architecture)
        arguments = {**given, **arguments}
    if not timm.is_model(architecture):
        known = [PREFIX + each for each in timm.list_models()]
        raise ValueError(unknown_name("network", PREFIX + architecture, known, shown=8))
    if config is None:
        base, _, tag = architecture.partition(".")
        tags = {each.partition(".")[2] for each in timm.list_pretrained(f"{base}.*")} | {""}
        if tag not in tags:
            raise ValueError(
                f"{PREFIX}{base} has no weights {printable(repr(tag))}, only {', '.join(sorted(tags - {''}))}"
            )
        config = timm.get_pretrained_cfg(architecture)
    return Source(architecture, arguments, config)


def _described_elsewhere(model: str) -> tuple[Any, str, dict[str, Any]]:
    """Return configuration, architecture and arguments of a network on the Hugging Face Hub or in a folder."""
    hub = import_module("timm.models._hub")
    source, _, place = model.partition(":")
    read = hub.load_model_config_from_hf if source == "hf-hub" else hub.load_model_config_from_path
    try:
        if source == "hf-hub":
            require_hub(place, "config.json")
        config, architecture, arguments = read(place)
        names = {each.name for each in dataclasses.fields(timm_config())}
        config = timm_config()(**{key: value for key, value in config.items() if key in names})
    except Exception as error:  # no connection, no such network, or a file that is no description
        raise ValueError(
            f"the description of {PREFIX}{printable(model)} can't be read ({type(error).__name__}: {reason_of(error)})"
        ) from error
    arguments = {key: value for key, value in (arguments or {}).items() if key not in ("num_classes", "in_chans")}
    return config, architecture, arguments


def require_hub(place: str, file: str) -> None:
    """Raise an error at once if a ``file`` of ``place`` must be downloaded from the Hub and that can't be reached.

    The Hub's own client tries for a minute. ``place`` is ``OWNER/NAME``, or ``OWNER/NAME@REVISION``.
    """
    hub = import_module("huggingface_hub")
    repository, _, revision = place.partition("@")
    if isinstance(hub.try_to_load_from_cache(repository, file, revision=revision or None), str):
        return
    # An answer is enough, also one that refuses: what it means, the client says.
    with contextlib.suppress(hub.errors.HfHubHTTPError):
        hub.get_hf_file_metadata(hub.hf_hub_url(repository, file, revision=revision or None))


def timm_config() -> Any:
    """Return timm's class of ``pretrained_cfg``."""
    return import_module("timm.models").PretrainedCfg


@register_prefix(PREFIX, *SOURCES)
def build_timm(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    image_size: int | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> StagedNet:
    """Build one of timm's networks with new parameters.

    Args:
        name: As ``timm:NAME`` or ``timm:NAME:argument=value``.
        num_classes: Classes.
        in_channels: Channels of the images.
        image_size: Side of the images in pixels; None for the size that the network was made for.
        arguments: All arguments of an exported network, in place of those that ``name`` and ``image_size`` give.

    Raises:
        ImportError: timm can't be imported.
        ValueError: timm has no such network, it can't be built for such images, or it gives no maps.
    """
    if arguments is not None and parse(name).model.startswith(SOURCES):
        raise ValueError(f"the name of an exported network must be timm's own, got {printable(name)}")
    source = find_source(name)
    chosen = dict(source.arguments if arguments is None else arguments)
    check_arguments(chosen, name)
    own = source.config.input_size[-1]
    if arguments is None and image_size is not None and image_size != own and _is_fixed(source, chosen):
        chosen["img_size"] = image_size
    size = image_size or _side(chosen.get("img_size", own))
    label = PREFIX + source.architecture
    net = _create(label, source, chosen, num_classes=num_classes, in_channels=in_channels)
    _require_patches(label, net, size)
    images = torch.zeros(BATCH, in_channels, size, size, device="meta")
    staged = _staged(label, net, images, source, num_classes=num_classes)
    staged.name, staged.arguments = label, chosen
    return staged


def _is_fixed(source: Source, arguments: Mapping[str, Any]) -> bool:
    return bool(source.config.fixed_input_size) and not arguments.get("dynamic_img_size")


def _side(size: Any) -> int:
    return size if isinstance(size, int) else size[0]


def _create(label: str, source: Source, arguments: Mapping[str, Any], *, num_classes: int, in_channels: int) -> Any:
    """Return timm's network itself."""
    given = {"num_classes": num_classes, "in_chans": in_channels, **arguments}
    try:
        with quiet():
            return timm_module().create_model(source.architecture, **given)
    except Exception as error:  # networks check their arguments in many ways
        sized = "img_size" in arguments and not source.arguments  # of its own arguments, one may be wrong
        size = f" for images of {arguments['img_size']} pixels" if sized else ""
        made = f"; it is made for {source.config.input_size[-1]}" if size else ""
        raise ValueError(f"{label} can't be built{size} ({type(error).__name__}: {reason_of(error)}){made}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress timm's own messages, such as those on entries of a file that it adapts."""
    logger = logging.getLogger("timm")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _require_patches(label: str, net: Any, size: int) -> None:
    """Raise ValueError if the patches of ``net`` leave a rest of such images, which timm would not look at."""
    patch = getattr(getattr(net, "patch_embed", None), "patch_size", None)
    if patch is not None and size % _side(patch):
        raise ValueError(
            f"{label} cuts images into patches of {_side(patch)} pixels, which do not divide {size}: choose another "
            f"data.image_size, or name it with a patch size, as in {label}:patch_size=4"
        )


def _runnable(label: str, net: Any, images: Tensor, source: Source) -> tuple[Any, Tensor]:
    """Return a copy of ``net`` and images for it, without data if the network reads none.

    Raises:
        ValueError: The network can't run on images of this size.
    """
    size, made = images.shape[-1], source.config.input_size[-1]
    empty, real = copy_without_data(net).eval(), torch.zeros(images.shape)
    try:
        return _run(empty, images)
    except Exception as error:
        if "meta" not in str(error):
            reason = f"{type(error).__name__}: {reason_of(error)}"
            raise ValueError(
                f"{label} can't run on images of {size} x {size} pixels ({reason}); it is made for {made} x {made}"
            ) from error
    return _run(copy_network(net).eval(), real)


def _run(net: Any, images: Tensor) -> tuple[Any, Tensor]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        net(images)
    return net, images


def _staged(label: str, net: Any, images: Tensor, source: Source, *, num_classes: int) -> StagedNet:
    classifier = classifier_names(net)
    if len(classifier) == 1:
        staged = _cut(net, classifier[0], images, num_classes)
        if staged is not None:
            return staged
    runs = _runnable(label, net, images, source)
    shapes = shapes_of_maps(*runs) if hasattr(net, "forward_intermediates") else []
    if not shapes or not classifier:
        lacking = "a classifier" if shapes else "maps [N, C, H, W] of its blocks"
        raise ValueError(f"{label} can't be used here: timm does not give {lacking}")
    return IntermediatesNet(net, classifier, choose_maps(shapes), num_classes=num_classes, in_channels=images.shape[1])


def classifier_names(net: Any) -> list[str]:
    """Return the names of the classifier; several if logits of several are combined."""
    described = net.pretrained_cfg.get("classifier")
    if isinstance(described, tuple | list):  # more than get_classifier tells, in VOLO
        return [name for name, module in net.named_modules() if name in described and list(module.parameters())]
    given = net.get_classifier()
    wanted = set(given if isinstance(given, tuple | list | nn.ModuleList) else [given])
    return [name for name, module in net.named_modules() if module in wanted and list(module.parameters())]


class _OnImages(nn.Module):
    """A network whose ``forward`` takes images and nothing else, so that a trace has no other inputs."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Described(NamedTuple):
    """One of timm's descriptions of a map."""

    module: str
    channels: int
    reduction: int


def _cut(net: Any, classifier: str, images: Tensor, num_classes: int) -> StagedNet | None:
    """Return ``net`` cut where timm says that stages end; None if that is impossible."""
    stem, stages = choose_stages(_descriptions(net))
    if not stages:
        return None
    channels = [each.channels for each in (*([stem] if stem else []), *stages)]

    def find(parts: Sequence[nn.Module], _: int, names: Sequence[str]) -> list[Layout]:
        shapes = _shapes(parts, images)
        described = shapes if stem is not None else shapes[1:]
        found = [
            layout_of(shape, width, getattr(net, "output_fmt", None))
            for shape, width in zip(described, channels, strict=True)
        ]
        if stem is None:
            found.insert(0, layout_of(shapes[0], None, getattr(net, "output_fmt", None)))
        return found

    try:
        staged = cut(
            _OnImages(net),
            [f"net.{each.module}" for each in stages],
            f"net.{classifier}",
            find,
            stem=f"net.{stem.module}" if stem else None,
            in_channels=images.shape[1],
            num_classes=num_classes,
        )
    except Exception:  # a trace that is impossible, or a size that the network refuses in any way
        return None
    staged.stages = nn.ModuleList(give_preact(cast(fx.GraphModule, stage)) for stage in staged.stages)
    staged.wrapped_names = names_in(net, staged)
    exempt = net.no_weight_decay() if hasattr(net, "no_weight_decay") else ()
    staged.undecayed = frozenset(staged.wrapped_names[name] for name in exempt if name in staged.wrapped_names)
    return staged


def _descriptions(net: Any) -> list[Described]:
    """Return timm's descriptions of maps that the network has a module for."""
    given = getattr(net, "feature_info", None) or []
    infos = given if isinstance(given, list) else getattr(given, "info", [])
    modules = {name for name, _ in net.named_modules() if name}
    found = [Described(info.get("module", ""), info["num_chs"], info["reduction"]) for info in infos]
    return [each for each in found if each.module in modules]


def choose_stages(given: Sequence[Described]) -> tuple[Described | None, list[Described]]:
    """Return the stem, or None, and the stages: four of many maps of one size, else the last map of each size.

    A map that is shrunk less than four times is the stem's, if there are two others.
    """
    early = [each for each in given if each.reduction < 4]
    stem, stages = (early[-1], list(given[len(early) :])) if early and len(given) - len(early) > 1 else (None, given)
    if len(stages) <= MOST:
        return stem, list(stages)
    chosen = choose_maps([(0, 0, each.reduction, 0) for each in stages])
    return stem, [stages[i] for i in dict.fromkeys(chosen[1:])]


def _shapes(parts: Sequence[nn.Module], images: Tensor) -> list[tuple[int, ...]]:
    """Return the shapes of the outputs of ``parts``, which run one after the other."""
    shapes, x = [], images
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for part in copy_without_data(nn.ModuleList(parts)).eval():
            x = part(x)
            shapes.append(tuple(x.shape))
    return shapes


def layout_of(shape: Sequence[int], channels: int | None, order: str | None) -> Layout:
    """Return the layout of a map of square images, of which ``channels`` and the ``order`` of axes are described.

    Args:
        shape: Shape of the output of a stage.
        channels: Channels of its map; None if they are unknown.
        order: ``NHWC`` if the network says so.

    Raises:
        ValueError: Channels and axes do not agree, so the map could be read along the wrong axis.
    """
    fitting = []
    if len(shape) == 4 and shape[2] == shape[3] and channels in (None, shape[1]):
        fitting.append(IN_ORDER)
    if len(shape) == 4 and shape[1] == shape[2] and channels in (None, shape[3]):
        fitting.append(CHANNELS_LAST)
    if len(shape) == 3 and channels in (None, shape[2]):
        side = round(shape[1] ** 0.5)
        if side * side == shape[1] and side > 1:
            fitting.append(Layout(grid=(side, side)))
    if len(fitting) > 1:
        fitting = [CHANNELS_LAST if order == "NHWC" else IN_ORDER]
    if not fitting:
        raise ValueError(f"{list(shape)} is no map of {channels} channels")
    return fitting[0]


def reason_of(error: Exception) -> str:
    """Return the first line of a message that timm, or a network in it, gave."""
    return printable(one_line(str(error).strip().partition("\n")[0]), 300)
