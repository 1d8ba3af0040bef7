"""Linear probe of a trained network on other images: ``python -m sftn_fast.transfer NETWORK --data.name stl10``.

Train a new linear classifier on the network's pooled features. Everything else is frozen; BatchNorm uses its stored
statistics. Print the accuracy on the test images after the last epoch, and write it to a JSON file.
Exit code 0: done; 1: the training failed; 2: the command line, the data or the network can't be used.

Setting: frozen backbone and BatchNorm and no weight decay, as mdistiller's author recommends (its issue 59). Images of
the size that the network was trained on, weights drawn from N(0, 0.01^2), SGD with a learning rate of 0.05 (0.01 for
light networks), batches of 64 and three milestones, as in the transfer script of giakoumoglou/distillers.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import from_numpy, nn
from torch.nn import functional as F

from sftn_fast import cli, data, models
from sftn_fast.cli import output_folder
from sftn_fast.config import ConfigError, DataConfig, OptimConfig, TransferConfig, check
from sftn_fast.data import Batch, ImageData
from sftn_fast.data.files import root_folder
from sftn_fast.data.seeding import generator
from sftn_fast.engine import Layout, Schedule, evaluate, resolve_device
from sftn_fast.engine.divergence import verdict
from sftn_fast.engine.optim import build_sgd
from sftn_fast.experiment import file_digest
from sftn_fast.models import StagedNet
from sftn_fast.models.export import CONFIG
from sftn_fast.utils import derived_files, launcher, plugins, program, strict_json
from sftn_fast.utils.atomic import describe, write_atomically
from sftn_fast.utils.paths import expand_user, output_file, refuse_input
from sftn_fast.utils.text import escape, printable

INITIAL_STD = 0.01

Epochs = Callable[[int], Iterable[Batch]]
"""Batches of an epoch, counted from 0, whose ``images`` are features [B, D]."""


def run(config: TransferConfig) -> dict[str, Any]:
    """Train the classifier that ``config`` describes; return the result that was written.

    Raises:
        ConfigError: A plugin, the network or the data can't be used, or do not fit each other.
        FloatingPointError: The loss became infinite or NaN.
    """
    device = resolve_device(config.device, "device")
    plugins.load(config.plugins)
    network, exported = _load(config.network)
    named = config.output is not None
    config = _resolve(config, network, exported)
    _check_writable(config, overwrite=config.overwrite or not named)
    images = data.build(config.data, seed=config.seed, batch_size=config.batch_size, device=device)
    channels = f"a data set of {network.in_channels} channels, as the network takes"
    check(images.in_channels == network.in_channels, "data.name", config.data.name, channels)
    check(images.num_classes > 1, "data.name", config.data.name, "a data set of two classes or more, to learn to tell")
    _check_runs(network, images.image_size)
    print(
        f"{network.name} on {images.name}: {images.num_train} training and {images.test.num_samples} test images of "
        f"{images.image_size} x {images.image_size}, {images.num_classes} classes, on {device}",
        flush=True,
    )
    test = features_of(network.to(device), images.test)
    classifier = new_classifier(test.images.shape[1], images.num_classes, config.seed).to(device)
    row = {"epoch": config.epochs, "train_ce": train(classifier, feature_epochs(network, images, config), config)}
    measured = evaluate(classifier, [test], Layout(device))
    row |= {f"test_{name}": value for name, value in measured.items()}
    diverged = verdict([row], images.num_classes)
    if diverged:
        print(f"warning: {diverged.replace('optim.lr', 'lr')}", flush=True)
    result = {
        "network": network.name,
        "sha256": exported["sha256"],
        "features": classifier.in_features,
        **measured,
        "diverged": diverged,
        "setting": cli.to_dict(config),
        "plugins": file_digest.of_plugins(config.plugins),
        "data": images.fingerprint(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }
    output = Path(str(config.output))
    write_atomically(output, strict_json.dumps(result, indent=2) + "\n")
    derived_files.record(expand_user(config.network), output, exported["sha256"], deployed=False)
    return result


@torch.no_grad()
def features_of(network: StagedNet, batches: Iterable[Batch]) -> Batch:
    """Put ``network`` into evaluation mode, and return its pooled features [N, D] of ``batches`` as one batch."""
    network.eval()
    seen = [(network.forward_features(batch.images).pooled, batch.target, batch.index) for batch in batches]
    return Batch(*(torch.cat(parts) for parts in zip(*seen, strict=True)))


def feature_epochs(network: StagedNet, images: ImageData, config: TransferConfig) -> Epochs:
    """Return the features to train a classifier on, epoch by epoch.

    Without augmentation an image has the same features in every epoch, so they are computed once. The order is that of
    the training loader in either case.
    """
    if config.augment:
        return lambda epoch: (features_of(network, [batch]) for batch in images.train.epoch(epoch))
    return partial(_shuffled, features_of(network, images.train.unaugmented()), config)


def _shuffled(features: Batch, config: TransferConfig, epoch: int) -> Iterator[Batch]:
    order = from_numpy(generator(config.seed, epoch, "order").permutation(len(features.index)))
    for index in order.to(features.index.device).split(config.batch_size):
        yield Batch(features.images[index], features.target[index], features.index[index])


def new_classifier(features: int, num_classes: int, seed: int) -> nn.Linear:
    """Return a linear layer with weights from N(0, 0.01^2), which depend on ``seed`` alone, and zero bias."""
    classifier = nn.Linear(features, num_classes)
    nn.init.normal_(classifier.weight, std=INITIAL_STD, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(classifier.bias)
    return classifier


def train(classifier: nn.Linear, epochs: Epochs, config: TransferConfig) -> float:
    """Minimise the cross-entropy of ``classifier`` by SGD; return its mean over the images of the last epoch.

    Args:
        classifier: Linear layer on the features' device.
        epochs: Batches of each epoch.
        config: The setting, with ``lr`` and ``milestones`` given.

    Raises:
        FloatingPointError: The loss became infinite or NaN. Checked once an epoch, since it synchronises.
    """
    assert config.lr is not None and config.milestones is not None
    optim = OptimConfig(momentum=config.momentum, weight_decay=config.weight_decay, milestones=config.milestones)
    sgd = build_sgd(classifier, optim, config.lr)
    schedule = Schedule(optim, config.lr, steps_per_epoch=1, epochs=config.epochs)  # changes between epochs only
    for epoch in range(config.epochs):
        sgd.param_groups[0]["lr"] = schedule(epoch)
        losses, images = [], 0
        for batch in epochs(epoch):
            loss = F.cross_entropy(classifier(batch.images), batch.target)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            losses.append(len(batch.target) * loss.detach())
            images += len(batch.target)
        mean = torch.stack(losses).sum().item() / images
        if not math.isfinite(mean):
            raise FloatingPointError(f"the loss is {mean} in epoch {epoch + 1}, with lr {schedule(epoch):g}: lower lr")
        print(f"epoch {epoch + 1}/{config.epochs}  ce {mean:.4f}  lr {schedule(epoch):g}", flush=True)
    return mean


def _load(path: str) -> tuple[StagedNet, dict[str, Any]]:
    """Load an exported network and its config.json."""
    try:
        return models.load_export(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"network {path}: {error}") from error


@torch.no_grad()
def _check_runs(network: StagedNet, image_size: int) -> None:
    try:
        network.eval().forward_features(torch.zeros(1, network.in_channels, image_size, image_size))
    except Exception as error:  # layers may raise anything
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        size = f"{image_size} x {image_size} pixels"
        raise ConfigError(
            f"network {network.name} can't run on images of {size} ({reason}): set data.image_size"
        ) from error


def _resolve(config: TransferConfig, network: StagedNet, exported: dict[str, Any]) -> TransferConfig:
    """Return ``config`` with the network's defaults for everything that the user did not set."""
    tenths = (round(config.epochs * tenth / 10) for tenth in (3, 6, 9))
    usual = tuple(sorted({epoch for epoch in tenths if 0 < epoch < config.epochs}))
    output = config.output or Path(config.network) / _file_name(config)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, image_size=config.data.image_size or _image_size(config, exported)),
        lr=network.default_lr if config.lr is None else config.lr,
        milestones=usual if config.milestones is None else config.milestones,
        output=str(expand_user(output)),
    )


def _image_size(config: TransferConfig, exported: dict[str, Any]) -> int | None:
    """Return the size of the images that the network was trained on; None if its config.json has none."""
    size: int | None = exported.get("meta", {}).get("image_size")
    try:
        usable = type(size) in (int, type(None)) and DataConfig(image_size=size).image_size == size
    except ConfigError:
        usable = False
    allowed = "null or a whole number from 8 to 512"
    check(usable, f"{printable(expand_user(config.network) / CONFIG, 300)}: image_size", size, allowed)
    return size


def _file_name(config: TransferConfig) -> str:
    """Return a file name that is unique for the setting, so that other results in the folder are kept."""
    usual = TransferConfig(config.network, data=DataConfig(config.data.name))
    same = {key: getattr(usual, key) for key in ("plugins", "device", "output", "overwrite")}
    changed = output_folder.changes(cli.to_dict(usual), cli.to_dict(dataclasses.replace(config, **same)))
    return f"transfer-{config.data.name}{output_folder.suffix(changed)}.json"


def _check_writable(config: TransferConfig, *, overwrite: bool) -> None:
    """Check the output file before training, so that an hour of it is not lost."""
    output = str(config.output)
    try:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output must be a file that can be written, got {output!r}: {describe(error)}") from error
    file = output_file(output, key="output", overwrite=overwrite)
    models.check_not_of_export(file, "output")
    refuse_input(file, "output", map(expand_user, config.plugins))
    # Which files of data.root are read is only known to each data set. A result is none of them.
    read = (
        file.exists() and file.suffix != ".json" and file.resolve().is_relative_to(root_folder(config.data).resolve())
    )
    check(not read, "output", output, "another file than those in data.root")


def parse(argv: Sequence[str]) -> TransferConfig:
    """Parse the command line into a checked configuration.

    Raises:
        ConfigError: The command line is wrong; the message is one line.
    """
    return cli.parse_transfer(argv, str(__doc__))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv``; return the exit code."""
    return program.run(_main, argv, stopped=" before the result was written", tell_of_readers=True)


def _main(argv: list[str]) -> int:
    launcher.check_alone("sftn_fast.transfer")
    config, unread = cli.read_transfer(argv, str(__doc__))
    for line in unread:
        print(f"warning: {line}", flush=True)
    try:
        result = run(config)
    except FloatingPointError as error:
        return program.fail(error, 1)
    scores = "  ".join(f"{key} {result[key]:.2f} %" for key in ("top1", "top5") if key in result)
    print(f"{scores}  ({escape(result['setting']['output'])})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
