"""What a run is made of: frozen dataclasses, each field's meaning beside it.

Imports nothing but the standard library, so that ``--help`` and a rejected configuration cost no import of torch.
A value that can be judged alone is judged in ``__post_init__``; what needs the networks or the data is judged by
whoever has them. Every refusal is a :class:`ConfigError` naming key, value and what is allowed.
"""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

STAGES = ("teacher", "sftn", "student", "distill", "collaborate")
USUAL_STAGES = ("teacher", "sftn", "student", "distill")
RESUME = ("auto", "must", "never", "force")
DATASETS = ("digits", "fashion_mnist", "cifar10", "cifar100", "stl10", "tiny_imagenet", "imagenet", "folder", "fake")
FILE_DATASETS = ("tiny_imagenet", "imagenet", "folder")
LOADERS = ("auto", "memory", "dali", "torchvision")


LONGEST_NAME = 255
"""Bytes of a name that file systems take."""
LONGEST_PATH = 1000 if sys.platform == "darwin" else 3500
"""Bytes of a path, which leaves some for what a run writes below it."""


class ConfigError(ValueError):
    """A configuration that can't be run; the command line turns it into exit code 2 and one line."""


def check(condition: bool, key: str, value: Any, allowed: str) -> None:
    """Raise :class:`ConfigError` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(f"{key} must be {allowed}, got {value!r}")


def check_finite(key: str, value: float, *, minimum: float, inclusive: bool = True) -> None:
    """Refuse NaN, infinities and values below ``minimum`` (or at it, if not ``inclusive``)."""
    enough = value >= minimum if inclusive else value > minimum
    bound = "at least" if inclusive else "greater than"
    check(math.isfinite(value) and enough, key, value, f"a finite number {bound} {minimum:g}")


def check_path(key: str, path: str) -> None:
    """Raise :class:`ConfigError` for a ``path`` that no file can have, whatever there is on the disk."""
    check(bool(path.strip()), key, path, "a path")
    try:
        encoded = os.fsencode(Path(path).expanduser())
        encoded.decode()
    except RuntimeError:
        raise ConfigError(f"{key} must be a path, got {path!r}, and there is no such user") from None
    except UnicodeEncodeError:
        locale = f"of letters of this locale ({sys.getfilesystemencoding()}; LC_ALL=C.UTF-8 has all)"
        raise ConfigError(f"{key} must be a path {locale}, got {path!a}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{key} must be a path in UTF-8, got {path!a}") from None
    check("\0" not in path, key, path, "a path without the character U+0000")
    longest = max(map(len, encoded.split(os.sep.encode())))
    if longest > LONGEST_NAME or len(encoded) > LONGEST_PATH:
        shown = path if len(path) <= 40 else f"{path[:20]}...{path[-17:]}"
        raise ConfigError(
            f"{key} must be a path of names of {LONGEST_NAME} bytes at most, {LONGEST_PATH} in all, got {shown!r}, "
            f"with a name of {longest} and {len(encoded)} in all"
        )


def is_device(name: str) -> bool:
    """Whether ``name`` is auto, cpu, cuda or cuda:N."""
    return name in ("auto", "cpu", "cuda") or name.removeprefix("cuda:").isdecimal()


@dataclass(frozen=True)
class DataConfig:
    """Which images, how many of them, and how they are augmented."""

    name: str = "digits"
    """Data set: digits, fashion_mnist, cifar10, cifar100, stl10, tiny_imagenet, imagenet, fake, or folder for any
    folder of images, ROOT/train/CLASS/IMAGE.jpg and ROOT/val/CLASS/IMAGE.jpg (or test)."""
    root: str = "data"
    """Folder that holds, or receives, the data set's files."""
    download: bool = False
    """Fetch the files when they are not in root."""
    train_size: int | None = None
    """Use only so many training images (a fixed, class-balanced choice); null for all."""
    val_size: int = 0
    """Hold so many training images out as a validation split."""
    image_size: int | None = None
    """Side of the images in pixels; null for the data set's own, which folder has not. Others are resized."""
    loader: str = "auto"
    """memory keeps all images on the device, decoded; dali and torchvision decode image files as they are needed, for
    imagenet, folder and tiny_imagenet. auto: memory, but for imagenet DALI, or torchvision where there is no DALI."""
    workers: int | None = None
    """Threads (dali) or processes (torchvision) that decode for each rank; null for the cores that a rank has."""
    crop_padding: int | None = None
    """Zero padding of the random crop in pixels; null for the data set's own (CIFAR: 4). Of loader memory alone: dali
    and torchvision cut out a random part, 8 % of the image or more."""
    flip: bool | None = None
    """Random horizontal flip; null for the data set's own (CIFAR: yes, digits: no)."""
    white: float | None = None
    """Which value is white in image files of more than 8 bits that do not say it, as 4095 of 12 bits or 1 of
    floating-point numbers; null to refuse those of which it isn't evident."""

    def __post_init__(self) -> None:
        check(self.name in DATASETS, "data.name", self.name, "one of " + ", ".join(DATASETS))
        check_path("data.root", self.root)
        check(self.train_size is None or self.train_size >= 2, "data.train_size", self.train_size, "at least 2")
        check(self.val_size >= 0, "data.val_size", self.val_size, "0 or more")
        sized = self.image_size is None or 8 <= self.image_size <= 512
        check(sized, "data.image_size", self.image_size, "from 8 to 512")
        check(self.loader in LOADERS, "data.loader", self.loader, "one of " + ", ".join(LOADERS))
        one_file = f"auto or memory for data.name={self.name}, whose images are no files of their own"
        check(self.name in FILE_DATASETS or not self.streams, "data.loader", self.loader, one_file)
        check(self.workers is None or self.workers >= 1, "data.workers", self.workers, "at least 1")
        check(
            self.crop_padding is None or 0 <= self.crop_padding <= 16,
            "data.crop_padding",
            self.crop_padding,
            "from 0 to 16",
        )
        cropped = f"null, since images that are decoded as they are needed (data.name={self.name}, data.loader="
        cropped += f"{self.loader}) are not padded"
        check(self.crop_padding is None or not self.streams, "data.crop_padding", self.crop_padding, cropped)
        if self.white is not None:
            check_finite("data.white", self.white, minimum=0, inclusive=False)
            whose = f"null for data.name={self.name}, whose images are no files of their own"
            check(self.name in FILE_DATASETS, "data.white", self.white, whose)

    @property
    def streams(self) -> bool:
        """Whether images are decoded as they are needed, instead of once."""
        return self.name == "imagenet" if self.loader == "auto" else self.loader != "memory"


@dataclass(frozen=True)
class OptimConfig:
    """SGD and its learning-rate schedule. Defaults are the CIFAR-100 setting of CRD and SFTN."""

    lr: float | None = None
    """Learning rate; null for 0.05, or 0.01 for MobileNetV2 and the ShuffleNets, or 0.1 for torchvision's networks."""
    momentum: float = 0.9
    """SGD momentum."""
    nesterov: bool = False
    """Nesterov momentum."""
    weight_decay: float = 5e-4
    """L2 penalty, on all that learns, as the reference code has it."""
    batch_size: int = 64
    """Images a step, over all ranks together."""
    accumulate: int = 1
    """Parts that each rank computes its share of a step in, one after the other, to save memory. The same step where a
    loss is a mean over images; relations and BatchNorm see a part at a time."""
    lr_scale: str = "none"
    """none, or linear: the learning rate times batch_size / base_batch_size."""
    base_batch_size: int = 64
    """Batch size that the learning rate is meant for, where lr_scale is linear."""
    schedule: str = "milestones"
    """milestones, cosine or constant."""
    milestones: tuple[int, ...] | None = None
    """Epochs after which the learning rate is multiplied by gamma; null for 5/8, 6/8 and 7/8 of the epochs, which is
    150, 180 and 210 of the usual 240."""
    gamma: float = 0.1
    """Factor at each milestone."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up from lr / 10."""
    clip_grad: float | None = None
    """Clip the gradient's norm to this; null for no clipping."""

    def __post_init__(self) -> None:
        if self.lr is not None:
            check_finite("optim.lr", self.lr, minimum=0, inclusive=False)
        check_finite("optim.momentum", self.momentum, minimum=0)
        check(self.momentum < 1, "optim.momentum", self.momentum, "less than 1")
        check(not self.nesterov or self.momentum > 0, "optim.nesterov", self.nesterov, "false when optim.momentum is 0")
        check_finite("optim.weight_decay", self.weight_decay, minimum=0)
        check(self.batch_size >= 2, "optim.batch_size", self.batch_size, "at least 2")
        check(self.accumulate >= 1, "optim.accumulate", self.accumulate, "at least 1")
        parts = self.batch_size % self.accumulate == 0 and self.batch_size >= 2 * self.accumulate
        allowed = f"a divisor of optim.batch_size, {self.batch_size}, that leaves 2 images or more in each part"
        check(parts, "optim.accumulate", self.accumulate, allowed)
        check(self.lr_scale in ("none", "linear"), "optim.lr_scale", self.lr_scale, "none or linear")
        check(self.base_batch_size >= 1, "optim.base_batch_size", self.base_batch_size, "at least 1")
        kinds = ("milestones", "cosine", "constant")
        check(self.schedule in kinds, "optim.schedule", self.schedule, "one of " + ", ".join(kinds))
        milestones = self.milestones or ()
        increasing = all(a < b for a, b in zip((0, *milestones), milestones, strict=False))
        check(increasing, "optim.milestones", list(milestones), "increasing epochs from 1 on")
        check_finite("optim.gamma", self.gamma, minimum=0, inclusive=False)
        check_finite("optim.warmup_epochs", self.warmup_epochs, minimum=0)
        if self.clip_grad is not None:
            check_finite("optim.clip_grad", self.clip_grad, minimum=0, inclusive=False)

    def scaled(self, lr: float) -> float:
        """``lr`` for this batch size."""
        return lr * self.batch_size / self.base_batch_size if self.lr_scale == "linear" else lr


@dataclass(frozen=True)
class SFTNConfig:
    """Student-aware training of the teacher. Defaults are the paper's for CIFAR-100."""

    teacher_weight: float = 1.0
    """Weight of the teacher's cross-entropy (lambda_T)."""
    ce_weight: float = 1.0
    """Weight of the branches' cross-entropy (lambda_CE)."""
    kl_weight: float = 3.0
    """Weight of the divergence between teacher and branches (lambda_KL)."""
    temperature: float = 1.0
    """Temperature of that divergence (tau)."""
    direction: str = "teacher_to_branch"
    """teacher_to_branch is KL(teacher || branch); branch_to_teacher the other way round."""
    branch_reduction: str = "mean"
    """mean or sum over the branches."""
    stages: tuple[int, ...] | None = None
    """Teacher stages that carry a branch, counted from 1; null for all but the last."""
    share_student: bool = False
    """One copy of the student's stages serves all branches, instead of a copy of its own for each."""
    init: str | None = None
    """Fine-tune from a finished teacher: a file, torchvision:DEFAULT or the like, or "teacher" for this run's own; null
    to train from scratch."""

    def __post_init__(self) -> None:
        if self.init is not None:
            check_path("sftn.init", self.init)
        for key in ("teacher_weight", "ce_weight", "kl_weight"):
            check_finite(f"sftn.{key}", getattr(self, key), minimum=0)
        check_finite("sftn.temperature", self.temperature, minimum=0, inclusive=False)
        directions = ("teacher_to_branch", "branch_to_teacher")
        check(self.direction in directions, "sftn.direction", self.direction, "one of " + ", ".join(directions))
        check(self.branch_reduction in ("mean", "sum"), "sftn.branch_reduction", self.branch_reduction, "mean or sum")
        if self.stages is not None:
            usable = len(self.stages) > 0 and len(set(self.stages)) == len(self.stages) and min(self.stages) >= 1
            check(usable, "sftn.stages", list(self.stages), "distinct stage numbers from 1 on")


@dataclass(frozen=True)
class RouteConfig:
    """Distil along the teacher's training (RCO): from snapshots of the teacher, the early ones first."""

    anchors: int = 0
    """Snapshots, at equal intervals of the teacher's epochs, the last one being the finished teacher; 0 for none."""
    epochs: tuple[int, ...] = ()
    """Epochs of the teacher to take snapshots after, instead of equal intervals."""

    def __post_init__(self) -> None:
        check(self.anchors >= 0, "route.anchors", self.anchors, "0 or more")
        increasing = all(a < b for a, b in zip((0, *self.epochs), self.epochs, strict=False))
        check(increasing, "route.epochs", list(self.epochs), "increasing epochs from 1 on")
        check(not (self.anchors and self.epochs), "route.anchors", self.anchors, "0 beside route.epochs")

    def epochs_of(self, teacher_epochs: int) -> tuple[int, ...]:
        """The epochs, counted from 1, after which a teacher that trains for ``teacher_epochs`` is kept."""
        if self.epochs or not self.anchors:
            return self.epochs
        return tuple(round(teacher_epochs * (i + 1) / self.anchors) for i in range(self.anchors))


@dataclass(frozen=True)
class CollaborateConfig:
    """The stage "collaborate": several networks learn from each other, none of them trained before."""

    method: str = "dml"
    """dml: each network learns from each of the others; kdcl: all from a target that they make together."""
    networks: tuple[str, ...] = ()
    """Networks that learn together; the last one is evaluated and exported. Empty for the teacher and the student."""
    init: str | None = None
    """Start the first network from a finished stage, teacher or sftn; null for all from scratch."""
    temperature: float | None = None
    """Temperature of the divergence; null for 1 in dml and 4 in kdcl."""
    weight: float | None = None
    """Weight of the divergence; null for 1 in dml and 0.5 in kdcl."""
    ce_weight: float | None = None
    """Weight of the cross-entropy; null for 1 in dml and 0.5 in kdcl."""
    peers: str = "sum"
    """sum, as in the authors' code of dml, or mean over a network's peers."""
    ensemble: str = "mean"
    """The target of kdcl: mean of the logits; minlogit, the least logit of each class less that of the label's."""
    own_views: bool | None = None
    """Each network crops and flips the images for itself, instead of all seeing the same; null for yes in kdcl and no
    in dml."""

    def __post_init__(self) -> None:
        check(self.method in ("dml", "kdcl"), "collaborate.method", self.method, "dml or kdcl")
        check(len(self.networks) != 1, "collaborate.networks", list(self.networks), "two networks or more, or none")
        check(self.init in (None, "teacher", "sftn"), "collaborate.init", self.init, "teacher, sftn or null")
        check(self.peers in ("sum", "mean"), "collaborate.peers", self.peers, "sum or mean")
        check(self.ensemble in ("mean", "minlogit"), "collaborate.ensemble", self.ensemble, "mean or minlogit")
        for key in ("temperature", "weight", "ce_weight"):
            value = getattr(self, key)
            if value is not None:
                check_finite(f"collaborate.{key}", value, minimum=0, inclusive=key != "temperature")


@dataclass(frozen=True)
class EngineConfig:
    """How the training loop runs, whatever is trained."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N. Over several ranks not cuda:N: each takes the device of its number on its machine."""
    amp: str = "fp32"
    """Arithmetic of the networks: fp32, bf16 or fp16 (with a gradient scaler). The losses are float32 always."""
    threads: int | Literal["auto"] | None = None
    """CPU threads; null for torch's choice. One is fastest for small networks on small images. auto: each stage on the
    CPU tries some numbers and takes the fastest, which may be another on another day, and with it the last bits."""
    channels_last: bool | Literal["auto"] = "auto"
    """Lay images and convolutions out as NHWC. auto: on the CPU, but for the families that are slower so (VGG)."""
    compile: bool = False
    """Run the step's forward and backward passes under torch.compile, which takes a minute or more to begin with and
    needs a C++ compiler on the CPU. A network that it can't take is trained without, after a warning."""
    cuda_graphs: bool | Literal["auto"] = "auto"
    """Record a whole step, augmentation included, as a CUDA graph and replay it: one launch instead of hundreds. auto:
    on one GPU, if the step can be recorded; a line says why where it can't. true: or else stop."""
    sync_batchnorm: bool = False
    """Over several ranks: BatchNorm's statistics are those of the whole batch. On CUDA only."""
    eval_every: int = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    log_every: int = 50
    """Steps between lines of metrics."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; null for one at each epoch's end."""
    keep_checkpoints: int = 2
    """Checkpoints kept in a run folder."""
    tensorboard: bool = False
    """Also write TensorBoard events, if the package is installed."""

    def __post_init__(self) -> None:
        kinds = ("fp32", "bf16", "fp16")
        check(self.amp in kinds, "engine.amp", self.amp, "one of " + ", ".join(kinds))
        check(is_device(self.device), "engine.device", self.device, "auto, cpu, cuda or cuda:N")
        counted = self.threads in (None, "auto") or int(self.threads) >= 1
        check(counted, "engine.threads", self.threads, "at least 1, auto or null")
        check(self.eval_every >= 1, "engine.eval_every", self.eval_every, "at least 1")
        check(self.log_every >= 1, "engine.log_every", self.log_every, "at least 1")
        every = self.checkpoint_every
        check(every is None or every >= 1, "engine.checkpoint_every", every, "at least 1")
        check(self.keep_checkpoints >= 2, "engine.keep_checkpoints", self.keep_checkpoints, "at least 2")


@dataclass(frozen=True)
class Config:
    """A whole experiment: which networks, which stages of training, on which data."""

    teacher: str = "wrn_16_2"
    """Name of the teacher network; an unknown one is answered with all there are. ResNet18, ResNet50
    and MobileNetV2 are made for images of 32 pixels; resnet18, resnet50 and mobilenet_v2 are other networks,
    torchvision's for images of 224."""
    student: str = "resnet8"
    """Name of the student network."""
    teacher_file: str | None = None
    """A trained teacher to use instead of training the stage "teacher": a file, or torchvision's published weights by
    their name there, as torchvision:IMAGENET1K_V1 or torchvision:DEFAULT."""
    plugins: tuple[str, ...] = ()
    """Python files or modules of your own, imported first, that register networks and methods."""
    stages: tuple[str, ...] = USUAL_STAGES
    """What to do, of: teacher, sftn, student, distill, collaborate. "distill" runs once for each teacher there is."""
    distill: str = "kd"
    """Losses of the stage "distill" with their weights, as in kd=0.9 or kd=1:temperature=2,ce=0.5."""
    methods: tuple[str, ...] = ()
    """Several such losses, each distilled in a stage of its own, instead of distill."""
    cache_teacher: bool = False
    """Keep the teacher's logits of each epoch in files, so that the next method that is distilled from it with the same
    seed needs no pass of the teacher; for methods that read nothing else of it. They take epochs x images x classes x
    4 bytes of disk for each seed and teacher, or one epoch's where images are not augmented."""
    epochs: int = 240
    """Epochs of each stage."""
    stage_epochs: dict[str, int] = field(default_factory=dict)
    """Epochs of single stages, where they differ."""
    seeds: tuple[int, ...] = (0,)
    """The whole list of stages runs once for each seed."""
    output: str = "runs/experiment"
    """Folder of the run. Where none is given it is the recipe's, runs/NAME if it has none, with what the command line
    changes of the recipe in its name: runs/demo-epochs=4. Options that decide nothing of the training change no name,
    nor do the seeds."""
    gather: bool = False
    """Over several ranks: rkd, sp, pkt, cc and dist relate the images of the whole batch, not those of each rank."""
    devices: int | Literal["all"] | tuple[str, ...] = 1
    """Devices that train stages side by side, each in a process of its own: a number of GPUs, all, or a list as in
    [cuda:0,cuda:1] or [cpu,cpu]. 1: everything in one process on engine.device."""
    resume: str = "auto"
    """auto goes on where a stopped run of the same configuration stood, or begins; must refuses to begin; never refuses
    an output that holds a run; force trains every stage of another configuration, finished or stopped, again from the
    start, and moves the old one to replaced/ in output. Stages of the same configuration are kept in any case. Or the
    folder of another run of the same configuration, which is copied to output and gone on with there."""
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    sftn: SFTNConfig = field(default_factory=SFTNConfig)
    route: RouteConfig = field(default_factory=RouteConfig)
    collaborate: CollaborateConfig = field(default_factory=CollaborateConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        check(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        check(
            len(self.stages) > 0 and set(self.stages) <= set(STAGES),
            "stages",
            list(self.stages),
            "of " + ", ".join(STAGES),
        )
        check(set(self.stage_epochs) <= set(STAGES), "stage_epochs", self.stage_epochs, "keyed by " + ", ".join(STAGES))
        check(all(n >= 1 for n in self.stage_epochs.values()), "stage_epochs", self.stage_epochs, "at least 1 each")
        distinct = len(self.seeds) > 0 and len(set(self.seeds)) == len(self.seeds)
        check(distinct and min(self.seeds) >= 0, "seeds", list(self.seeds), "distinct numbers from 0 on")
        taught = min((self.epochs_of(kind) for kind in ("teacher", "sftn") if kind in self.stages), default=0)
        if taught:
            within = f"within the teacher's {taught} epochs"
            check(max(self.route.epochs, default=0) <= taught, "route.epochs", list(self.route.epochs), within)
            check(self.route.anchors <= taught, "route.anchors", self.route.anchors, within)
        fixed = not (self.route.anchors or self.route.epochs)
        check(fixed or not self.cache_teacher, "cache_teacher", True, "false beside route, which changes the teacher")
        check(bool(self.resume.strip()), "resume", self.resume, f"{', '.join(RESUME)} or the folder of a run")
        paths = [("output", self.output), ("resume", self.resume), *(("plugins", plugin) for plugin in self.plugins)]
        for key, path in paths if self.teacher_file is None else [*paths, ("teacher_file", self.teacher_file)]:
            check_path(key, path)
        self._check_devices()
        if self.optim.schedule == "milestones" and self.optim.milestones:
            last, epochs = self.optim.milestones[-1], min(map(self.epochs_of, self.stages))
            check(last < epochs, "optim.milestones", list(self.optim.milestones), f"before the last epoch, {epochs}")

    def _check_devices(self) -> None:
        devices = self.devices
        if isinstance(devices, tuple):
            known = len(devices) > 0 and all(name != "auto" and is_device(name) for name in devices)
            check(known, "devices", list(devices), "a number, all, or a list of cpu, cuda or cuda:N")
        elif isinstance(devices, int):
            check(devices >= 1, "devices", devices, "at least 1")
        if devices != 1:
            check(self.engine.device == "auto", "engine.device", self.engine.device, "auto where devices are given")

    def epochs_of(self, stage: str) -> int:
        """Epochs that ``stage`` trains for."""
        return self.stage_epochs.get(stage, self.epochs)


@dataclass(frozen=True)
class TransferConfig:
    """A linear classifier on the features of a trained network, all of which stays as it is."""

    network: str
    """The network: a folder that training exported, as runs/demo/seed0/student."""
    plugins: tuple[str, ...] = ()
    """Python files or modules of your own, imported first, that register the network."""
    data: DataConfig = field(default_factory=DataConfig)
    epochs: int = 100
    """Epochs of training the classifier."""
    lr: float | None = None
    """Learning rate; null for 0.05, or 0.01 for MobileNetV2 and the ShuffleNets, or 0.1 for torchvision's networks."""
    momentum: float = 0.9
    """SGD momentum."""
    weight_decay: float = 0.0
    """L2 penalty on the classifier."""
    batch_size: int = 64
    """Images a step."""
    milestones: tuple[int, ...] | None = None
    """Epochs after which the learning rate is multiplied by 0.1; null for 3/10, 6/10 and 9/10 of the epochs, which is
    30, 60 and 90 of the usual 100."""
    augment: bool = False
    """Crop and flip the images anew in each epoch and run them through the network, instead of computing their
    features once."""
    seed: int = 0
    """Decides the classifier's first weights, the order of the images and their augmentation."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    output: str | None = None
    """JSON file for the result; null for transfer-DATA.json in the network's folder, with the settings that differ from
    the defaults in its name: transfer-digits-lr=0.1.json."""

    def __post_init__(self) -> None:
        check_path("network", self.network)
        for key, path in (("output", self.output), *(("plugins", plugin) for plugin in self.plugins)):
            if path is not None:
                check_path(key, path)
        check(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        if self.lr is not None:
            check_finite("lr", self.lr, minimum=0, inclusive=False)
        check_finite("momentum", self.momentum, minimum=0)
        check(self.momentum < 1, "momentum", self.momentum, "less than 1")
        check_finite("weight_decay", self.weight_decay, minimum=0)
        check(self.batch_size >= 2, "batch_size", self.batch_size, "at least 2")
        milestones = self.milestones or ()
        increasing = all(a < b for a, b in zip((0, *milestones), (*milestones, self.epochs), strict=True))
        allowed = f"increasing epochs from 1 to {self.epochs - 1}"
        check(not milestones or increasing, "milestones", list(milestones), allowed)
        check(self.seed >= 0, "seed", self.seed, "0 or more")
        check(is_device(self.device), "device", self.device, "auto, cpu, cuda or cuda:N")
