"""Settings of a run: frozen dataclasses with each field's meaning, type and limits.

Imports only the standard library, so that ``--help`` and a wrong option do not have to wait for torch. The types
carry the limits of single values (:mod:`sftn_fast.validation`); ``__post_init__`` has the rules between fields.
Code that knows the networks or the data checks the rest. Each error is a :class:`ConfigError` with one line that names
key, value and what is allowed.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, cast

from sftn_fast.validation import (
    ENTRY,
    LONGEST_NAME,
    LONGEST_PATH,
    MOST_WORKERS,
    Bound,
    ConfigError,
    Device,
    FilePath,
    HasCommas,
    Neutral,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ReadWith,
    Series,
    check,
    check_path,
    is_device,
    validate,
)

__all__ = [
    "DATASETS",
    "FILE_DATASETS",
    "LONGEST_NAME",
    "LONGEST_PATH",
    "RENAMED",
    "RESUME",
    "STAGES",
    "CollaborateConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "EmaConfig",
    "EngineConfig",
    "OptimConfig",
    "RouteConfig",
    "SFTNConfig",
    "SoTeacherConfig",
    "TransferConfig",
    "check",
    "check_path",
    "rename_keys",
]

Stage = Literal["teacher", "early", "soteacher", "sftn", "student", "distill", "collaborate"]
Dataset = Literal[
    "digits", "fashion_mnist", "cifar10", "cifar100", "stl10", "tiny_imagenet", "imagenet", "folder", "fake"
]
ClassOrder = Literal["name", "natural"]
LoggerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
Resume = Literal["auto", "must", "never", "force"]
Exported = Literal["last", "best", "ema"]
Workers = Annotated[int, Bound(1, MOST_WORKERS)]
FiniteFloat = Annotated[float, Bound()]
Argument = bool | FiniteFloat | tuple[FiniteFloat | None, ...]
ClassWeight = Annotated[float, Bound(1e-6, 1e6)]
Epochs = Annotated[tuple[int, ...], Series(1, "epochs", increasing=True, may_be_empty=True)]

STAGES: tuple[str, ...] = typing.get_args(Stage)
ALL_METHODS = "all"
"""In ``methods``, stands for every method that is not given beside it."""
DATASETS: tuple[str, ...] = typing.get_args(Dataset)
CLASS_ORDERS: tuple[str, ...] = typing.get_args(ClassOrder)
RESUME: tuple[str, ...] = typing.get_args(Resume)
FILE_DATASETS = ("tiny_imagenet", "imagenet", "folder")
"""Data sets that consist of image files."""
MAX_LEVEL = 30
"""Highest level of an augmentation's magnitude, as in torchvision."""
RENAMED = {"sftn.stages": "sftn.branch_stages"}
"""Keys by the names that they had in earlier versions."""
DOWNLOADED = ("fashion_mnist", "cifar10", "cifar100", "stl10")
"""Data sets that can be downloaded."""
SGD = "sgd"
SGD_DECAY = 5e-4
STUDENT_STAGES = ("student", "distill", "collaborate")
OF_STUDENTS = ReadWith("stages", *STUDENT_STAGES)
DISTILLED = ReadWith("stages", "distill")
OF_FILES = ReadWith("data.name", *DOWNLOADED, *FILE_DATASETS)
STREAMED = ReadWith("data.streams", shown=("data.name", "data.loader"))
OF_RANDAUGMENT = ReadWith("data.auto_augment", "randaugment")
ALTERED = ReadWith("data.alters", shown=("data.mixup", "data.cutmix", "data.label_smoothing", "data.class_weights"))
REACHED = ReadWith("reaches", shown=("stages", "data.mixed"))
AUGMENTED = ReadWith("augment")  # of sftn transfer
MIXED = ReadWith("data.mixup_prob")
OF_SGD = ReadWith("optim.name", SGD)
BY_MILESTONES = ReadWith("optim.schedule", "milestones")
RISING = ReadWith("optim.rises", shown=("optim.schedule", "optim.warmup_epochs"))
DIVERGES = ReadWith("sftn.kl_weight")
AVERAGED = ReadWith("averages", shown=("stages", "ema.networks"))
"""Marks of several fields."""


@dataclass(frozen=True)
class DataConfig:
    """Images: which data set, how many images, how they are augmented."""

    name: Dataset = "digits"
    """Data set. "folder" is any folder of images, as ROOT/train/CLASS/IMAGE.jpg and ROOT/val/CLASS/IMAGE.jpg (or
    test)."""
    root: Annotated[FilePath, Neutral("images are compared by their content"), OF_FILES] = "data"
    """Folder of the data set's files."""
    download: Annotated[bool, Neutral("images are compared by their content"), ReadWith("data.name", *DOWNLOADED)] = (
        False
    )
    """Download the files if they are not in root."""
    train_size: Annotated[int, Bound(2)] | None = None
    """Number of training images to use, a fixed, class-balanced selection; null for all."""
    student_size: Annotated[Annotated[int, Bound(2)] | None, OF_STUDENTS] = None
    """Number of these images that students learn from, alone and from a teacher, again a fixed, class-balanced
    selection; null for all. Teachers learn from all of them. For a teacher that knew more images than the student can
    have."""
    val_size: NonNegativeInt = 0
    """Number of training images to hold out as a validation split."""
    image_size: Annotated[int, Bound(8, 512)] | None = None
    """Height and width of the images in pixels; null for the data set's own, which "folder" does not have. Images of
    another size are resized."""
    loader: Literal["auto", "memory", "dali", "torchvision"] = "auto"
    """memory: keep all decoded images on the device. dali, torchvision: decode image files during training (imagenet,
    folder and tiny_imagenet only). auto: memory; for imagenet dali, or torchvision if DALI is not installed."""
    workers: Annotated[Workers | None, Neutral("workers only decode; they draw no random numbers"), STREAMED] = None
    """Threads (dali) or processes (torchvision) per rank that decode images; null for one per core of the rank."""
    crop_padding: Annotated[Annotated[int, Bound(0, 16)] | None, AUGMENTED] = None
    """Zero padding of the random crop in pixels; null for the data set's own (CIFAR: 4). For loader memory only: dali
    and torchvision crop a random part of 8 % of the image or more."""
    flip: Annotated[bool | None, AUGMENTED] = None
    """Flip images horizontally at random; null for the data set's own setting (CIFAR: true, digits: false)."""
    auto_augment: Literal["none", "randaugment", "trivialaugment"] = "none"
    """Random operations on each training image after crop and flip, by torchvision. randaugment: several, all of one
    magnitude. trivialaugment: one of any magnitude, over wider ranges."""
    randaugment_ops: Annotated[Annotated[int, Bound(1, 14)] | None, OF_RANDAUGMENT] = None
    """Number of operations with auto_augment randaugment; null for 2."""
    randaugment_magnitude: Annotated[Annotated[int, Bound(0, MAX_LEVEL)] | None, OF_RANDAUGMENT] = None
    """Their magnitude, from 0, which changes nothing or little, to 30; null for 9."""
    random_erasing: Annotated[float, Bound(0, 1)] = 0.0
    """Share of the training images of which a random part, 2 % to 33 % of the image, is hidden behind their mean."""
    grey: bool = False
    """Read image files in one channel, as networks then take it: grey ones as they are, of colours the brightness. Not
    with DALI."""
    class_order: ClassOrder = "name"
    """Order of the class folders, which numbers the classes. name: by the characters of their names, as torchvision
    does: 1, 10, 2. natural: by the numbers in their names: 1, 2, 10."""
    mixup: Annotated[NonNegativeFloat, MIXED, REACHED] = 0.0
    """Alpha of mixup: each training image is averaged with another, with a weight drawn from Beta(alpha, alpha) once a
    step. All networks of a step see the same mixed images. 0 for none; 0.1 to 1 is usual."""
    cutmix: Annotated[NonNegativeFloat, MIXED, REACHED] = 0.0
    """Alpha of cutmix: a box of another image replaces that part of each training image, with the other image's share
    drawn from Beta(alpha, alpha) once a step. 0 for none; 1 is usual."""
    mixup_prob: Annotated[float, Bound(0, 1), ReadWith("data.mixes", shown=("data.mixup", "data.cutmix"))] = 1.0
    """Probability that the images of a step are mixed, by mixup or cutmix."""
    mixup_switch_prob: Annotated[float, Bound(0, 1), ReadWith("data.mixup"), ReadWith("data.cutmix"), MIXED] = 0.5
    """Probability of cutmix rather than mixup in a step, if both are on."""
    label_smoothing: Annotated[float, Bound(0, below=1), REACHED] = 0.0
    """Share of each training label that is spread over all classes, in the cross-entropy with the labels."""
    class_weights: Annotated[Literal["none", "balanced"] | tuple[ClassWeight, ...], REACHED] = "none"
    """Weight of each image in the cross-entropy with the labels, by its class: balanced for the inverse of the class's
    share of the training images, or a number for each class in their order. Scaled to a mean of 1 over the images."""
    mixed: Annotated[Literal["all", "students"], ALTERED] = "all"
    """Networks that are trained on mixed images, smoothed labels and by class weights: all, or only students: alone,
    with a teacher, or together (stage "collaborate"). Teachers then learn from images and labels as they are."""
    white: PositiveFloat | None = None
    """Value of white in image files of more than 8 bits that do not state it, such as 4095 for 12 bits or 1 for
    floating-point pixels; null to refuse such files."""

    def __post_init__(self) -> None:
        validate(self, "data.")
        check(
            not (self.student_size and self.train_size) or self.student_size <= self.train_size,
            "data.student_size",
            self.student_size,
            f"at most data.train_size={self.train_size}",
        )
        from_files = self.name in FILE_DATASETS
        check(
            from_files or not self.streams,
            "data.loader",
            self.loader,
            f"auto or memory for data.name={self.name}, which has no image files",
        )
        check(
            self.crop_padding is None or not self.streams,
            "data.crop_padding",
            self.crop_padding,
            f"null for data.name={self.name} with data.loader={self.loader}, which crops without padding",
        )
        check(
            not self.grey or from_files,
            "data.grey",
            self.grey,
            f"false for data.name={self.name}, which has no image files",
        )
        check(
            not self.grey or self.loader != "dali",
            "data.loader",
            self.loader,
            "auto, memory or torchvision with data.grey, which DALI can't read",
        )
        check(
            self.class_order == "name" or self.name == "folder",
            "data.class_order",
            self.class_order,
            f"name for data.name={self.name}, whose classes have an order of their own",
        )
        check(
            self.white is None or from_files,
            "data.white",
            self.white,
            f"null for data.name={self.name}, which has no image files",
        )
        self._check_auto_augment()
        self._check_mixing()

    def _check_auto_augment(self) -> None:
        chosen = self.auto_augment
        for key in ("randaugment_ops", "randaugment_magnitude"):
            value, allowed = getattr(self, key), f"null with data.auto_augment={chosen}; randaugment takes it"
            check(value is None or chosen == "randaugment", f"data.{key}", value, allowed)
        if chosen != "none":
            allowed = f"auto, memory or torchvision with data.auto_augment={chosen}, which DALI can't apply"
            check(self.loader != "dali", "data.loader", self.loader, allowed)

    def _check_mixing(self) -> None:
        unused = "1 where data.mixup and data.cutmix are 0"
        check(self.mixes or self.mixup_prob == 1, "data.mixup_prob", self.mixup_prob, unused)
        both = self.mixup > 0 and self.cutmix > 0
        unused = "0.5 unless data.mixup and data.cutmix are both above 0"
        check(both or self.mixup_switch_prob == 0.5, "data.mixup_switch_prob", self.mixup_switch_prob, unused)
        unused = "all where data.mixup, data.cutmix and data.label_smoothing are 0, and data.class_weights none"
        check(self.alters or self.mixed == "all", "data.mixed", self.mixed, unused)

    @property
    def mixes(self) -> bool:
        """Mix the images of a step with each other."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def changes_labels(self) -> bool:
        """Train on other targets than the labels, apart from mixed images."""
        return self.label_smoothing > 0 or self.class_weights != "none"

    @property
    def alters(self) -> bool:
        """Train on other images or targets than the data set's, apart from augmentation."""
        return self.mixes or self.changes_labels

    @property
    def streams(self) -> bool:
        """Decode images during training, rather than once at the start."""
        return self.name == "imagenet" if self.loader == "auto" else self.loader != "memory"


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and learning-rate schedule. The defaults are the CIFAR-100 settings of CRD and SFTN: SGD."""

    name: str = SGD
    """Optimizer: sgd, adamw, or another class of torch.optim, in capitals or not. A recipe's lr, momentum, nesterov,
    weight_decay, arguments and dot are for the recipe's optimizer: another one starts without them."""
    arguments: dict[str, Argument] = field(default_factory=dict)
    """Further arguments of the optimizer's class, such as {betas: [0.9,0.95]}. Sgd takes none: see momentum and
    nesterov."""
    lr: PositiveFloat | None = None
    """Learning rate; null for 0.05, or 0.01 for MobileNetV2 and the ShuffleNets, or 0.1 for torchvision's networks.
    With another optimizer than sgd, null is its class's own: 0.001 for adamw."""
    momentum: Annotated[float, Bound(0, below=1), OF_SGD] = 0.9
    """Momentum of SGD. Other optimizers take theirs in arguments."""
    nesterov: Annotated[bool, OF_SGD] = False
    """Use Nesterov momentum, in SGD."""
    weight_decay: NonNegativeFloat | None = None
    """Weight decay: in adamw decoupled, in sgd and most others an L2 penalty. Null for 0.0005 in sgd, as in the
    reference code, and the class's own in others: 0.01 in adamw."""
    decay_norms_and_biases: bool = True
    """Decay all parameters, as the reference code does. false: not those with one dimension or none, such as biases and
    the weights of normalisation layers, nor those that a network's no_weight_decay() names."""
    batch_size: Annotated[int, Bound(2)] = 64
    """Images per step, summed over all ranks."""
    accumulate: PositiveInt = 1
    """Number of parts in which each rank computes its share of a step, one after the other, to save memory. Losses that
    are means over images do not change. Relational losses and BatchNorm see one part at a time."""
    lr_scale: Literal["none", "linear"] = "none"
    """linear: multiply the learning rate by batch_size / base_batch_size."""
    base_batch_size: Annotated[PositiveInt, ReadWith("optim.lr_scale", "linear")] = 64
    """Batch size that lr is meant for, with lr_scale linear."""
    schedule: Literal["milestones", "cosine", "constant", "onecycle"] = "milestones"
    """Learning-rate schedule. onecycle: up to lr along a cosine in the first 3/10 of the steps, or in warmup_epochs if
    they are not 0, and down along another."""
    milestones: Annotated[Epochs | None, BY_MILESTONES] = None
    """Epochs after which the learning rate is multiplied by gamma; null for 5/8, 6/8 and 7/8 of all epochs, which is
    150, 180 and 210 of 240."""
    gamma: Annotated[PositiveFloat, BY_MILESTONES] = 0.1
    """Factor at each milestone."""
    warmup_epochs: NonNegativeFloat = 0.0
    """Epochs of linear warm-up, starting at warmup_lr. It must end before the training and its first milestone."""
    warmup_lr: Annotated[NonNegativeFloat | None, RISING] = None
    """Learning rate of the first step, with a warm-up or onecycle; null for lr / 10, or lr / 25 with onecycle."""
    min_lr: Annotated[NonNegativeFloat, ReadWith("optim.schedule", "cosine", "onecycle")] = 0.0
    """Learning rate to which cosine and onecycle fall."""
    clip_grad: PositiveFloat | None = None
    """Largest norm of the gradient, which is clipped to it; null for no clipping."""
    dot: Annotated[float, Bound(0, below=1), OF_SGD, DISTILLED] = 0.0
    """Delta of DOT, for the stage "distill": the gradient of the labels' loss has momentum less delta, that of other
    losses momentum plus delta. The authors' is 0.075 for CIFAR-100 and 0.09 for ImageNet. 0 for one momentum."""

    def __post_init__(self) -> None:
        validate(self, "optim.")
        # Frozen, but one way to write it: identities and recipes of runs hold the number.
        object.__setattr__(self, "name", self.name.lower())
        if self.is_sgd and self.weight_decay is None:
            object.__setattr__(self, "weight_decay", SGD_DECAY)
        self._check_of_sgd()
        check(not self.nesterov or self.momentum > 0, "optim.nesterov", self.nesterov, "false when optim.momentum is 0")
        self._check_dot()
        self._check_rates()
        parts = self.batch_size % self.accumulate == 0 and self.batch_size >= 2 * self.accumulate
        allowed = f"a divisor of optim.batch_size, {self.batch_size}, that leaves 2 images or more in each part"
        check(parts, "optim.accumulate", self.accumulate, allowed)

    @property
    def is_sgd(self) -> bool:
        """Whether the optimizer is the one that momentum, nesterov and dot belong to."""
        return self.name == SGD

    @property
    def rises(self) -> bool:
        """Whether the learning rate begins below its peak."""
        return self.schedule == "onecycle" or self.warmup_epochs > 0

    def _check_of_sgd(self) -> None:
        """Refuse settings of SGD beside another optimizer, and the other way round."""
        if self.is_sgd:
            allowed = "left out with sgd, whose settings are optim.momentum and optim.nesterov"
            check(not self.arguments, "optim.arguments", self.arguments, allowed)
            return
        for key in ("momentum", "nesterov", "dot"):
            value, default = getattr(self, key), getattr(OptimConfig, key)
            allowed = f"left out with optim.name={self.name}: it is for sgd"
            check(value == default, f"optim.{key}", value, allowed)

    def _check_dot(self) -> None:
        if self.dot:
            fits = self.dot <= self.momentum and self.momentum + self.dot < 1
            allowed = f"at most optim.momentum, {self.momentum:g}, and less than {1 - self.momentum:g} with it"
            check(fits, "optim.dot", self.dot, allowed)
            check(not self.nesterov, "optim.nesterov", True, "false beside optim.dot, which has two momenta")
            check(self.clip_grad is None, "optim.clip_grad", self.clip_grad, "null beside optim.dot")

    def _check_rates(self) -> None:
        falls = self.schedule in ("cosine", "onecycle")
        check(falls or not self.min_lr, "optim.min_lr", self.min_lr, f"0 with optim.schedule={self.schedule}")
        allowed = "null without optim.warmup_epochs or optim.schedule=onecycle"
        check(self.rises or self.warmup_lr is None, "optim.warmup_lr", self.warmup_lr, allowed)
        if self.lr is not None:
            self.check_peak(self.scaled(self.lr))

    def check_peak(self, peak: float) -> None:
        """Raise :class:`ConfigError` if the schedule would start or end above its highest learning rate, ``peak``."""
        allowed = f"at most the learning rate, {peak:g}"
        check(self.min_lr <= peak, "optim.min_lr", self.min_lr, allowed)
        check((self.warmup_lr or 0) <= peak, "optim.warmup_lr", self.warmup_lr, allowed)

    def milestones_of(self, epochs: int) -> tuple[int, ...]:
        """Return the milestones of a training: the given ones, else 5/8, 6/8 and 7/8 of its epochs."""
        usual = tuple(round(epochs * eighths / 8) for eighths in (5, 6, 7))
        return usual if self.milestones is None else self.milestones

    def scaled(self, lr: float) -> float:
        """Return ``lr`` for this batch size."""
        return lr * self.batch_size / self.base_batch_size if self.lr_scale == "linear" else lr


@dataclass(frozen=True)
class SFTNConfig:
    """Student-aware training of the teacher (SFTN). The defaults are the paper's for CIFAR-100."""

    read_with = (ReadWith("stages", "sftn"),)

    teacher_weight: NonNegativeFloat = 1.0
    """Weight of the teacher's cross-entropy (lambda_T)."""
    ce_weight: NonNegativeFloat = 1.0
    """Weight of the branches' cross-entropy (lambda_CE)."""
    kl_weight: NonNegativeFloat = 3.0
    """Weight of the divergence between teacher and branches (lambda_KL)."""
    kl_warmup_epochs: Annotated[NonNegativeInt, DIVERGES] = 0
    """Epochs over which this weight rises linearly; 0 for none."""
    kl_gradient: Annotated[Literal["both", "branches"], DIVERGES] = "both"
    """Logits that the divergence changes: the teacher's and the branches', or the branches' alone. The teacher's stages
    learn from it through the branches in any case."""
    temperature: Annotated[PositiveFloat, DIVERGES] = 1.0
    """Temperature of the divergence (tau)."""
    direction: Annotated[Literal["teacher_to_branch", "branch_to_teacher"], DIVERGES] = "teacher_to_branch"
    """teacher_to_branch: KL(teacher || branch). branch_to_teacher: KL(branch || teacher)."""
    branch_reduction: Literal["mean", "sum"] = "mean"
    """Reduction of the losses over the branches."""
    branch_stages: Annotated[tuple[int, ...], Series(1, "stage numbers")] | None = None
    """Teacher stages with a branch, counted from 1; null for all but the last."""
    share_student: bool = False
    """Share one copy of the student's stages between all branches, instead of one copy per branch."""
    init: FilePath | None = None
    """Weights to fine-tune from: a file, torchvision:DEFAULT, timm:DEFAULT or the like, or "teacher" for this run's own
    teacher; null to train from scratch."""
    init_student: Annotated[bool, DISTILLED] = False
    """Start the students of this teacher with the stages and the head of its earliest branch, after its last epoch: the
    average by ema.decay has no branches. The student's other stages, and students of other teachers, start as usual."""
    branch_lr: NonNegativeFloat = 1.0
    """Factor on the learning rate of the branches, their transforms included. 0 leaves their weights as they start."""
    branch_weight_decay: NonNegativeFloat | None = None
    """Weight decay of the branches; null for optim.weight_decay."""

    def __post_init__(self) -> None:
        validate(self, "sftn.")


@dataclass(frozen=True)
class SoTeacherConfig:
    """Stage "soteacher": a teacher trained with two regularisers, without a student. The defaults are the authors'."""

    read_with = (ReadWith("stages", "soteacher"),)

    lipschitz: NonNegativeFloat = 1e-5
    """Weight of the bounds of the layers' Lipschitz constants."""
    consistency: NonNegativeFloat = 1.0
    """Weight, in the last epoch, of the distance from the mean of an image's earlier predictions. It rises linearly."""

    def __post_init__(self) -> None:
        validate(self, "soteacher.")


@dataclass(frozen=True)
class EmaConfig:
    """Exponential moving average (EMA) of a network's weights, which is evaluated beside them. Off by default."""

    decay: Annotated[float, Bound(0, below=1), AVERAGED] = 0.0
    """Decay of the average in each step, such as 0.999, or 0.9998 for long trainings; 0 for no average."""
    warmup: Annotated[bool, ReadWith("ema.decay"), AVERAGED] = True
    """Let the decay rise from 0 to decay, as 1 - step^(-2/3), so that the average forgets the first weights."""
    networks: Annotated[Literal["all", "teachers", "students"], ReadWith("ema.decay"), AVERAGED] = "all"
    """Networks with an average. A teacher with one teaches by it."""

    def __post_init__(self) -> None:
        validate(self, "ema.")
        for key in ("warmup", "networks"):
            value = getattr(self, key)
            check(
                bool(self.decay) or value == getattr(EmaConfig, key), f"ema.{key}", value, "left out without ema.decay"
            )

    def of(self, *, teacher: bool) -> EmaConfig | None:
        """Return these settings for a teacher or a student; None if it has no average."""
        return self if self.decay and self.networks != ("students" if teacher else "teachers") else None


@dataclass(frozen=True)
class RouteConfig:
    """Distillation along the teacher's training (RCO): from snapshots of the teacher, early ones first."""

    read_with = (DISTILLED,)

    anchors: NonNegativeInt = 0
    """Number of snapshots, at equal intervals of the teacher's epochs; the last is the finished teacher. 0 for none."""
    epochs: Epochs = ()
    """Teacher epochs after which to take snapshots, instead of equal intervals."""

    def __post_init__(self) -> None:
        validate(self, "route.")
        check(not (self.anchors and self.epochs), "route.anchors", self.anchors, "0 beside route.epochs")

    def epochs_of(self, teacher_epochs: int) -> tuple[int, ...]:
        """Return the epochs, counted from 1, after which a teacher of ``teacher_epochs`` epochs is kept."""
        if self.epochs or not self.anchors:
            return self.epochs
        return tuple(round(teacher_epochs * (i + 1) / self.anchors) for i in range(self.anchors))


@dataclass(frozen=True)
class CollaborateConfig:
    """Stage "collaborate": several networks learn from each other, without a trained teacher."""

    read_with = (ReadWith("stages", "collaborate"),)

    method: Literal["dml", "kdcl"] = "dml"
    """dml: each network learns from every other one. kdcl: all learn from a target that combines their logits."""
    networks: tuple[str, ...] = ()
    """Networks that learn together; the last is evaluated and exported. Empty for teacher and student."""
    init: Literal["teacher", "sftn"] | None = None
    """Stage that the first network starts from; null to train all from scratch."""
    temperature: PositiveFloat | None = None
    """Temperature of the divergence; null for 1 in dml and 4 in kdcl."""
    weight: NonNegativeFloat | None = None
    """Weight of the divergence; null for 1 in dml and 0.5 in kdcl."""
    ce_weight: NonNegativeFloat | None = None
    """Weight of the cross-entropy; null for 1 in dml and 0.5 in kdcl."""
    peers: Annotated[Literal["sum", "mean"], ReadWith("collaborate.method", "dml")] = "sum"
    """Reduction over a network's peers; sum is that of the DML authors' code."""
    ensemble: Annotated[Literal["mean", "minlogit"], ReadWith("collaborate.method", "kdcl")] = "mean"
    """Target of kdcl. mean: mean of the networks' logits. minlogit: for each class, the least of the networks' logits
    after each network's logit of the label is subtracted."""
    own_views: bool | None = None
    """Crop and flip images for each network separately; null for true in kdcl and false in dml."""

    def __post_init__(self) -> None:
        validate(self, "collaborate.")
        check(len(self.networks) != 1, "collaborate.networks", list(self.networks), "two networks or more, or none")


@dataclass(frozen=True)
class EngineConfig:
    """Training loop, the same for every kind of training."""

    device: Annotated[Device, Neutral("the same computation up to rounding")] = "auto"
    """Device to train on. With several ranks not cuda:N: each rank uses the GPU of its local number."""
    amp: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the networks. fp16 uses a gradient scaler. Losses are always float32."""
    threads: Annotated[Workers | Literal["auto"] | None, Neutral("the same computation up to rounding")] = None
    """CPU threads; null for torch's default. One is fastest for small networks on small images. auto: each stage on the
    CPU times several numbers and uses the fastest. The choice, and with it the rounding, can vary between runs."""
    channels_last: bool | Literal["auto"] = "auto"
    """Use the NHWC memory layout. auto: on the CPU, except for networks that are slower with it (VGG), and on a GPU in
    bf16 and fp16."""
    cudnn_benchmark: Annotated[bool | Literal["auto"], Neutral("the same computation up to rounding")] = "auto"
    """On a GPU, let cuDNN time its convolution algorithms for each shape of a training batch and use the fastest. The
    choice, and with it the rounding, can vary between runs. auto: unless PyTorch is told to be deterministic."""
    compile: bool = False
    """Run each step's forward and backward pass under torch.compile. Compilation takes a minute or more, and on the CPU
    needs a C++ compiler. A network that can't be compiled is trained without, after a warning."""
    cuda_graphs: Annotated[bool | Literal["auto"], Neutral("the same kernels in the same order")] = "auto"
    """Record each step, with its augmentation, as a CUDA graph and replay it: one launch instead of hundreds. auto: on
    one GPU, if the step can be recorded; otherwise a line says why not. true: stop if it can't be recorded."""
    sync_batchnorm: bool = False
    """With several ranks: compute BatchNorm's statistics over the whole batch. CUDA only."""
    eval_every: PositiveInt = 1
    """Epochs between evaluations. The last epoch is always evaluated."""
    log_every: Annotated[PositiveInt, Neutral("how often metrics are written")] = 50
    """Steps between lines of metrics."""
    checkpoint_every: Annotated[PositiveInt | None, Neutral("how often a checkpoint is saved")] = None
    """Steps between checkpoints; null for one after each epoch."""
    keep_checkpoints: Annotated[int, Bound(2), Neutral("how many checkpoints are kept")] = 2
    """Number of checkpoints to keep."""
    tensorboard: Annotated[bool, Neutral("a second copy of the metrics")] = False
    """Write TensorBoard events too, if the package is installed. As --logger tensorboard, which insists on it."""

    def __post_init__(self) -> None:
        validate(self, "engine.")


@dataclass(frozen=True)
class Config:
    """Experiment: networks, stages of training, data."""

    teacher: str = "wrn_16_2"
    """Name of the teacher network. An unknown name is answered with the list of all. ResNet18, ResNet50 and MobileNetV2
    are for images of 32 pixels; resnet18, resnet50 and mobilenet_v2 are torchvision's, for images of 224. timm:NAME is
    any network of timm's, with arguments of its own as in timm:vit_tiny_patch16_224:patch_size=4."""
    student: str = "resnet8"
    """Name of the student network."""
    teacher_pretrained: bool = False
    """Start the training of each teacher from the weights that torchvision or timm publishes for it. A classifier for
    other classes is left out. The network sees images by the mean and deviation that its weights belong to."""
    student_pretrained: bool = False
    """The same for the student, wherever it is trained."""
    teacher_file: FilePath | None = None
    """Trained teacher to use instead of training one: a file, or weights published by torchvision or timm, such as
    torchvision:IMAGENET1K_V1, torchvision:DEFAULT or timm:DEFAULT."""
    plugins: tuple[FilePath, ...] = ()
    """Python files or modules that register your own networks and methods. They are imported first."""
    stages: tuple[Stage, ...] = ("teacher", "sftn", "student", "distill")
    """Stages to run. "distill" runs once for each teacher of the run: "teacher" is the standard one, "sftn" the
    student-friendly one; "early", which is "teacher" after teacher_epoch, and "soteacher" are rivals of it."""
    teacher_epoch: PositiveInt | None = None
    """Epoch of the standard teacher whose network teaches in the stage "early"; null for half of its epochs. Setting it
    adds that stage."""
    distill: Annotated[str, DISTILLED] = "kd"
    """Losses of the stage "distill" with their weights, such as kd=0.9 or kd=1:temperature=2,ce=0.5."""
    methods: Annotated[tuple[str, ...], HasCommas(), DISTILLED] = ()
    """Several such losses instead of distill, as in kd=1 at=1000,kd=1. Each is distilled in a training of its own.
    all: every other method that this pair of networks can be distilled by, with its authors' settings for the pair
    where they publish any."""
    cache_teacher: Annotated[bool, DISTILLED] = False
    """Save the teacher's logits of each epoch to files. The next method with the same seed and teacher reads them
    instead of running the teacher. For methods that use only the teacher's logits. Each seed and teacher takes epochs x
    images x classes x 4 bytes of disk, or one epoch of this where images are not augmented."""
    epochs: PositiveInt = 240
    """Epochs of each stage."""
    stage_epochs: Annotated[dict[Stage, PositiveInt], ReadWith("stages", ENTRY)] = field(default_factory=dict)
    """Epochs of single stages, if different from epochs."""
    seeds: Annotated[tuple[int, ...], Series(0, "numbers")] = (0,)
    """Seeds. All stages run once per seed."""
    output: Annotated[FilePath, Neutral("where results are written")] = "runs/experiment"
    """Folder of the run. Default: the recipe's folder, or runs/NAME if the recipe names none, plus the options of the
    command line that differ from the recipe: runs/demo-epochs=4. Seeds, and options that do not change the training,
    are not in the name."""
    export: Annotated[Exported, Neutral("which weights are exported; every job keeps all of them")] = "last"
    """Weights that become the exported student. last: the last epoch's, as in the paper. best: those of the epoch with
    the highest accuracy on the validation split, see data.val_size. Without that split it is chosen on the test images,
    which makes the student's accuracy on them optimistic. ema: the last epoch's average, see ema.decay. Teachers teach
    with their last epoch, or by its average where ema.decay keeps one."""
    gather: Annotated[bool, DISTILLED] = False
    """With several ranks: relate the images of the whole batch in rkd, sp, pkt, cc, dist, srd and mlld, not those
    of each rank."""
    devices: Annotated[
        PositiveInt | Literal["all"] | tuple[str, ...], Neutral("which process runs a job; each job sets its seed")
    ] = 1
    """Devices that run stages side by side, one process each: a number of GPUs, all, or a list such as [cuda:0,cuda:1]
    or [cpu,cpu]. 1: run everything in one process on engine.device."""
    logger: Annotated[tuple[LoggerName, ...], Neutral("copies of the metrics")] = ()
    """Services that receive the metrics as well, in a run for each training. wandb is Weights & Biases. Without an
    account or a server they record into output. If one fails while training, training continues without it."""
    resume: Annotated[Resume | FilePath, Neutral("what happens with results that are already there")] = "auto"
    """auto: resume if output holds a matching run, else start. must: fail unless there is one. never: fail if there is
    one. force: train stages with other settings again and move the old ones to replaced/ in output. PATH of a run's
    folder: copy that run to output and resume the copy. Finished stages with the same settings are always kept."""
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    sftn: SFTNConfig = field(default_factory=SFTNConfig)
    soteacher: SoTeacherConfig = field(default_factory=SoTeacherConfig)
    route: RouteConfig = field(default_factory=RouteConfig)
    collaborate: CollaborateConfig = field(default_factory=CollaborateConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        validate(self)
        check(len(self.stages) > 0, "stages", [], "one or more of " + ", ".join(STAGES))
        check(len(set(self.stages)) == len(self.stages), "stages", list(self.stages), "distinct")
        teachers = [kind for kind in ("teacher", "soteacher", "sftn") if kind in self.stages]
        trained = min(map(self.epochs_of, teachers), default=0)
        if trained:
            within = f"within the teacher's {trained} epochs"
            check(max(self.route.epochs, default=0) <= trained, "route.epochs", list(self.route.epochs), within)
            check(self.route.anchors <= trained, "route.anchors", self.route.anchors, within)
        last = self.epochs_of("teacher")
        check(
            (self.teacher_epoch or 0) <= last,
            "teacher_epoch",
            self.teacher_epoch,
            f"at most {last}, the teacher's last",
        )
        check(
            "early" not in self.stage_epochs,
            "stage_epochs.early",
            self.stage_epochs.get("early"),
            "left out: early is not trained",
        )
        warmup, sftn_epochs = self.sftn.kl_warmup_epochs, self.epochs_of("sftn")
        fits = warmup <= sftn_epochs or "sftn" not in self.stages
        check(fits, "sftn.kl_warmup_epochs", warmup, f"at most {sftn_epochs}, the epochs of the stage sftn")
        fixed = not (self.route.anchors or self.route.epochs)
        check(fixed or not self.cache_teacher, "cache_teacher", True, "false beside route, which changes the teacher")
        mixes = "false beside data.mixup and data.cutmix, since logits are kept of single images"
        check(not (self.data.mixes and self.cache_teacher), "cache_teacher", True, mixes)
        averaged = self.export != "ema" or self.ema.of(teacher=False) is not None
        check(averaged, "export", self.export, "last or best without ema.decay for students")
        self._check_devices()
        self._check_dot()
        self._check_schedule(self.optim, min(map(self.epochs_of, self.stages)))

    def _check_schedule(self, optim: OptimConfig, epochs: int) -> None:
        """Refuse a schedule of which a training of ``epochs`` would not get to see a part."""
        end = epochs
        if optim.schedule == "milestones":
            milestones = optim.milestones_of(epochs)
            last = f"before the last epoch, {epochs}"
            check(max(optim.milestones or (), default=0) < epochs, "optim.milestones", list(milestones), last)
            end = milestones[0] if milestones else epochs
        what = "the epochs of the shortest stage" if end == epochs else "the first of optim.milestones"
        fits = optim.warmup_epochs < epochs and optim.warmup_epochs <= end
        check(
            fits,
            "optim.warmup_epochs",
            optim.warmup_epochs,
            f"{'at most' if end < epochs else 'less than'} {end}, {what}",
        )

    def _check_dot(self) -> None:
        if self.optim.dot:
            check(not self.engine.compile, "engine.compile", True, "false beside optim.dot")
            check(self.engine.amp != "fp16", "engine.amp", "fp16", "fp32 or bf16 beside optim.dot")

    def _check_devices(self) -> None:
        devices = self.devices
        if isinstance(devices, tuple):
            known = 0 < len(devices) <= MOST_WORKERS and all(name != "auto" and is_device(name) for name in devices)
            check(known, "devices", list(devices), "all or a whole number of GPUs, or a list of cpu, cuda or cuda:N")
        if devices != 1:
            check(self.engine.device == "auto", "engine.device", self.engine.device, "auto where devices are given")

    @property
    def averages(self) -> bool:
        """Whether a network that is trained has an average of its weights."""
        trained = {
            stage for stage in self.stages if stage != "early" and not (stage == "teacher" and self.teacher_file)
        }
        return any(self.ema.of(teacher=stage not in STUDENT_STAGES) for stage in trained)

    @property
    def reaches(self) -> bool:
        """Whether a training learns from mixed images and other targets, if there are any."""
        return self.data.mixed == "all" or any(stage in STUDENT_STAGES for stage in self.stages)

    def optim_of(self, stage: str) -> OptimConfig:
        """Return the optimizer's settings for ``stage``; only students of a teacher have two momenta."""
        return self.optim if stage == "distill" else replace(self.optim, dot=0.0)

    @property
    def takes_early_teacher(self) -> bool:
        """Whether the stage "early" runs: ``teacher_epoch`` adds it."""
        return "early" in self.stages or self.teacher_epoch is not None

    @property
    def early_epoch(self) -> int:
        """Epoch of the standard teacher that the stage "early" takes, counted from 1."""
        return self.teacher_epoch or max(1, self.epochs_of("teacher") // 2)

    def epochs_of(self, stage: str) -> int:
        """Return the number of epochs of ``stage``."""
        return self.stage_epochs.get(cast(Stage, stage), self.epochs)


@dataclass(frozen=True)
class TransferConfig:
    """Linear classifier on the features of a trained network, which stays frozen."""

    network: FilePath
    """Folder of a network that training exported, such as runs/demo/seed0/student."""
    plugins: tuple[FilePath, ...] = ()
    """Python files or modules that register your own network. They are imported first."""
    data: DataConfig = field(default_factory=DataConfig)
    epochs: PositiveInt = 100
    """Epochs of the classifier's training."""
    lr: PositiveFloat | None = None
    """Learning rate; null for 0.05, or 0.01 for MobileNetV2 and the ShuffleNets, or 0.1 for torchvision's networks."""
    momentum: Annotated[float, Bound(0, below=1)] = 0.9
    """Momentum of SGD."""
    weight_decay: NonNegativeFloat = 0.0
    """L2 penalty on the classifier."""
    batch_size: Annotated[int, Bound(2)] = 64
    """Images per step."""
    milestones: Epochs | None = None
    """Epochs after which the learning rate is multiplied by 0.1; null for 3/10, 6/10 and 9/10 of all epochs, which is
    30, 60 and 90 of 100."""
    augment: bool = False
    """Crop and flip the images in each epoch and run them through the network, instead of computing their features
    once."""
    seed: NonNegativeInt = 0
    """Seed of the classifier's initial weights, the order of the images and their augmentation."""
    device: Device = "auto"
    """Device to train on."""
    output: FilePath | None = None
    """JSON file of the result; null for transfer-DATA.json in the network's folder, with settings that differ from the
    defaults in its name: transfer-digits-lr=0.1.json."""
    overwrite: bool = False
    """Replace output if it exists. The file with the default name always is."""

    def __post_init__(self) -> None:
        validate(self)
        milestones = list(self.milestones or ())
        allowed = f"increasing epochs from 1 to {self.epochs - 1}"
        check(max(milestones, default=0) < self.epochs, "milestones", milestones, allowed)
        size = self.data.student_size
        check(size is None, "data.student_size", size, "null, since nothing is distilled; see data.train_size")
        for name in ("mixup", "cutmix", "label_smoothing"):
            value = getattr(self.data, name)
            check(
                value == 0, f"data.{name}", value, "0, since the classifier learns from single images and their labels"
            )
        weights = self.data.class_weights
        check(weights == "none", "data.class_weights", weights, "none, since the classifier's images weigh the same")
        for name, off in (("auto_augment", "none"), ("random_erasing", 0.0)):
            value = getattr(self.data, name)
            check(self.augment or value == off, f"data.{name}", value, f"{off} unless augment is true")


def rename_keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested ``settings`` of a run, which an earlier version may have written, with today's key names."""
    renamed = dict(settings)
    for old, new in RENAMED.items():
        group, _, name = old.partition(".")
        if isinstance(inside := renamed.get(group), dict) and name in inside:
            today = new.rpartition(".")[2]
            renamed[group] = {today if key == name else key: value for key, value in inside.items()}
    return renamed
