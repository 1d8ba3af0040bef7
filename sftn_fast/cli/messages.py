"""Error messages for unknown names: what the user may have meant, or what exists instead."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from pathlib import PurePath

from sftn_fast.cli.network_names import describe
from sftn_fast.config import RENAMED
from sftn_fast.utils.similar_names import did_you_mean, folded, nearest

SYNONYMS = {
    **dict.fromkeys(("learning_rate", "init_lr", "base_lr"), "optim.lr"),
    **dict.fromkeys(("lr_decay_epochs", "lr_milestones", "decay_epochs"), "optim.milestones"),
    **dict.fromkeys(("lr_decay_rate", "lr_decay"), "optim.gamma"),
    **dict.fromkeys(("wd", "l2"), "optim.weight_decay"),
    **dict.fromkeys(("optimizer", "opt", "solver", "sgd", "adam", "adamw"), "optim.name"),
    **dict.fromkeys(("betas", "opt_betas", "opt_eps", "optimizer_args", "optimizer_kwargs"), "optim.arguments"),
    **dict.fromkeys(("scheduler", "lr_scheduler", "lr_schedule", "sched"), "optim.schedule"),
    **dict.fromkeys(("bs", "batch", "batchsize", "train_batch_size"), "optim.batch_size"),
    **dict.fromkeys(("accum_iter", "accumulation_steps", "grad_accum", "accumulate_grad_batches"), "optim.accumulate"),
    **dict.fromkeys(("clip", "clip_norm", "gradient_clip_val", "max_grad_norm"), "optim.clip_grad"),
    **dict.fromkeys(("model_ema", "ema_decay", "model_ema_decay"), "ema.decay"),
    **dict.fromkeys(("smoothing",), "data.label_smoothing"),
    **dict.fromkeys(("class_weight", "loss_weights", "weighted_loss"), "data.class_weights"),
    **dict.fromkeys(("mixup_alpha", "mixup_mode"), "data.mixup"),
    **dict.fromkeys(("cutmix_alpha",), "data.cutmix"),
    **dict.fromkeys(("dataset", "data_set"), "data.name"),
    **dict.fromkeys(("data_dir", "data_folder", "data_path", "dataset_path", "datadir"), "data.root"),
    **dict.fromkeys(("num_workers", "j"), "data.workers"),
    **dict.fromkeys(("aa", "autoaugment", "rand_augment", "trivial_augment", "ta_wide"), "data.auto_augment"),
    "ra_magnitude": "data.randaugment_magnitude",
    **dict.fromkeys(("reprob", "random_erase", "cutout"), "data.random_erasing"),
    **dict.fromkeys(("img_size", "input_size", "resolution"), "data.image_size"),
    **dict.fromkeys(("model_s", "arch", "model", "network", "net"), "student"),
    "model_t": "teacher",
    **dict.fromkeys(
        ("path_t", "teacher_path", "teacher_ckpt", "teacher_checkpoint", "teacher_weights"), "teacher_file"
    ),
    **dict.fromkeys(("trial", "random_seed", "manual_seed"), "seeds"),
    **dict.fromkeys(("out", "out_dir", "output_dir", "save_dir", "save_path", "logdir", "work_dir"), "output"),
    **dict.fromkeys(("fp16", "bf16", "precision", "mixed_precision", "half"), "engine.amp"),
    **dict.fromkeys(("gpus", "num_gpus", "ngpus", "gpu", "gpu_id", "n_gpu", "world_size"), "devices"),
    **dict.fromkeys(("max_epochs", "num_epochs", "n_epochs"), "epochs"),
    **dict.fromkeys(("print_freq", "log_interval"), "engine.log_every"),
    **dict.fromkeys(("save_freq", "save_every"), "engine.checkpoint_every"),
    **dict.fromkeys(("distiller", "kd_loss", "loss"), "distill"),
    **dict.fromkeys(("kd_t", "temperature", "tau"), "distill"),
    **dict.fromkeys(("momentum_sgd",), "optim.momentum"),
    **dict.fromkeys(("wandb", "use_wandb", "mlflow", "trackio", "report_to", "track", "tracker"), "logger"),
}
"""Names that other programs give to a key, without its group."""

ABSENT = {
    (
        "color_jitter",
        "augmentation",
        "augment",
        "transforms",
    ): "images are cropped and flipped, and changed as data.auto_augment and data.random_erasing say",
    ("swa",): "weights are averaged by ema.decay",
    (
        "comet",
        "neptune",
        "clearml",
        "swanlab",
    ): "logger has tensorboard, wandb, mlflow and trackio, and metrics.jsonl is always written",
    ("dropout", "drop", "drop_path"): "a network has the dropout of its definition, and no other",
    ("early_stopping", "patience"): "every stage trains for all its epochs",
}
"""Options of other programs that this one does not have, and what it has instead."""


def refuse_argument(argument: str, names: Collection[str], *, usage: str) -> str:
    """Return the message for an unknown argument, with the option that it may mean."""
    option = argument.partition("=")[0]
    if not option.startswith("-"):
        return f"unknown argument {argument!r}; write each value after its option, usage: {usage}"
    hint = suggest(option.lstrip("-").removesuffix("+"), names, prefix="--")
    return f"unknown option {option}{hint or '; --help lists all'}"


def suggest(name: str, names: Collection[str], *, prefix: str = "") -> str:
    """Return a hint for an unknown ``name``, to be added to a message: what it may mean, or what exists instead.

    Args:
        name: Key or option, with its group.
        names: Known names.
        prefix: Prefix of names in the hint, ``--`` for options.
    """
    if name in RENAMED and RENAMED[name] in names:
        return f", which is now called {prefix}{RENAMED[name]}"
    group, _, last = name.lower().replace("-", "_").rpartition(".")
    of_group = [other for other in names if group and other.startswith(f"{group}.")]
    if not group and (inside := [other for other in names if other.startswith(f"{last}.")]):
        return f"; {last} is a group: {', '.join(prefix + other for other in inside)}"
    near = _nearest(last, of_group or list(names))
    if not near and last in SYNONYMS and SYNONYMS[last] in names:
        near = [SYNONYMS[last]]
    if near:
        return f"; did you mean {' or '.join(prefix + each for each in near)}?"
    if (instead := _absent(last)) is not None:
        return f", which is not available here: {instead}"
    elsewhere = _nearest(last, [other for other in names if other not in of_group])
    if elsewhere and last not in ("name", "type"):  # these mean something else in each group
        return f"; did you mean {' or '.join(prefix + each for each in elsewhere)}?"
    return f"; {group} has {', '.join(other.removeprefix(f'{group}.') for other in of_group)}" if of_group else ""


def _absent(last: str) -> str | None:
    for names, instead in ABSENT.items():
        if last in names:
            return instead
    return None


def _nearest(last: str, names: Collection[str]) -> list[str]:
    """Return the names that end in ``last``, else similar ones. Names without a group are preferred."""
    ends = {other: other.rpartition(".")[2] for other in names}
    found = [other for other, end in ends.items() if folded(end) == folded(last)]
    if not found:
        close = difflib.get_close_matches(last, dict.fromkeys(ends.values()), n=2, cutoff=0.75)
        found = [other for match in close for other, end in ends.items() if end == match][:3]
    return [other for other in found if "." not in other] or found


def refuse_network(key: str, name: str, known: Collection[str]) -> str:
    """Return the message for an unknown network, with all ``known`` ones and those of a similar name."""
    hint = did_you_mean(map(describe, nearest(name, known)))
    return f"{key} must be one of {', '.join(known)}, or timm:NAME, got {name!r}{hint}"


def refuse_name(key: str, name: str, known: Collection[str], *, kind: str = "one of") -> str:
    """Return the message for an unknown name, with all ``known`` ones and a similar one."""
    hint = did_you_mean(_nearest(PurePath(name).stem.lower(), known))
    return f"{key} must be {kind} {', '.join(known)}, got {name!r}{hint}"
