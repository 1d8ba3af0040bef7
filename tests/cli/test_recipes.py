"""Every recipe that comes with the package: it runs for two steps, or differs in its networks from one that does."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from sftn_fast import cli, data, models, train
from sftn_fast.data.sources import fake
from sftn_fast.experiment.plan import plan
from sftn_fast.experiment.trial_step import try_jobs
from sftn_fast.report import methods_page
from sftn_fast.report.published import IMAGENET_PAIRS
from sftn_fast.sftn import StudentAwareTeacher

# Two steps of four small synthetic images, whatever the recipe's own data set: its networks, schedule and losses stay.
TWO_STEPS = ["--data.name", "fake", "--data.download", "false", "--data.train_size", "8", "--data.image_size", "8"]
TWO_STEPS += ["--optim.batch_size", "4", "--optim.milestones", "null", "--epochs", "1", "--seeds", "[0]"]
# ImageNet's networks are too large for a test of seconds, and bfloat16 is slow on most CPUs: a test of their own builds
# the pairs, and these do the steps of all three recipes, which differ in nothing else. CIFAR's own take a step below.
LIGHT = {
    "imagenet": ["--teacher", "shufflenet_v2_x0_5", "--student", "shufflenet_v2_x0_5", "--data.image_size", "32"],
    "cifar100": ["--teacher", "resnet14", "--student", "resnet8"],
}
LIGHT["imagenet"] += ["--engine.amp", "fp32"]
LIGHT["few_images"] = ["--data.student_size", "6"]
LIGHT["cutmix_cifar100"] = LIGHT["cifar100"]
LIGHT["function_matching_cifar100"] = [*LIGHT["cifar100"], "--stage_epochs", "{}"]
# timm's networks are as large, and their teachers' weights can't be downloaded in a test.
TIMM = ["--teacher", "timm:test_convnext", "--teacher_file", "null", "--engine.amp", "fp32", "--data.image_size", "32"]
TIMM += ["--optim.warmup_epochs", "0", "--optim.warmup_lr", "null", "--stage_epochs", "{}", "--optim.lr_scale", "none"]
LIGHT["deit"] = [*TIMM, "--student", "timm:test_vit:patch_size=8:depth=2:drop_path_rate=0.1"]
LIGHT["mobilenetv4"] = [*TIMM, "--student", "timm:test_efficientnet"]
LIGHT["resnet50_a2"] = [*TIMM, "--student", "timm:test_resnet:drop_path_rate=0.05"]
for name in ("deit", "resnet50_a2"):
    LIGHT[name] += ["--stages", "teacher", "distill"]
LIGHT["mobilenetv4"] += ["--stages", "teacher", "sftn", "distill"]
# A recipe for a pair differs from its base in the networks alone: a test of its own proves that, and another one trains
# a step of both networks. The files of a whole run, of 1 to 100 MB a network, are left to the base.
PAIRS = [name for name in cli.recipe_names() if name.startswith("cifar100")]


@pytest.mark.parametrize(
    "recipe", [name for name in cli.recipe_names() if not name.startswith(("imagenet_", "cifar100_"))]
)
def test_recipe_runs_for_two_steps(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fake, "TEST_IMAGES", 32)  # the evaluation of 256 takes longer than the steps
    options = [*TWO_STEPS, *LIGHT.get(recipe, [])]
    config, _ = cli.parse(["--config", recipe, *options, "--output", str(tmp_path / "run")])
    train.run(config)
    printed = capsys.readouterr().out
    assert f"student of {'SFTN' if 'sftn' in config.stages else 'standard'} teacher" in printed
    assert (tmp_path / "run" / "student" / "model.safetensors").is_file()


@pytest.mark.parametrize("recipe", ["deit", "mobilenetv4", "resnet50_a2"])
def test_timm_has_the_networks_and_weights_of_its_recipes(recipe: str) -> None:
    pytest.importorskip("timm")
    config, _ = cli.parse(["--config", recipe])
    models.require_weights(config.teacher_file, config.teacher)
    with torch.device("meta"):
        student = models.build(config.student, num_classes=1000, image_size=224)
    assert student.num_stages == 4


@pytest.mark.parametrize("recipe", PAIRS)
def test_a_pair_takes_a_step_of_the_jobs_with_both_networks(recipe: str) -> None:
    """The base takes a step of every job; one network alone is the same job with any partner."""
    config, _ = cli.parse(["--config", recipe, *TWO_STEPS])
    images = data.build(config.data, seed=0, batch_size=4, device="cpu")
    assert [job.name for job in plan(config)] == ["teacher", "sftn", "student", "distill-teacher", "distill-sftn"]
    both = [job for job in plan(config) if recipe == "cifar100" or job.name in ("sftn", "distill-teacher")]
    assert try_jobs(config, both, images) == []


@pytest.mark.parametrize("recipe", [name for name in cli.recipe_names() if name.startswith(("cifar100_", "imagenet_"))])
def test_a_recipe_for_a_pair_differs_from_its_base_in_the_networks_alone(recipe: str) -> None:
    config, base = (cli.parse(["--config", name])[0] for name in (recipe, recipe.partition("_")[0]))
    assert recipe.endswith(f"_{config.teacher}_{config.student}") and config.output == f"runs/{recipe}"
    assert dataclasses.replace(base, teacher=config.teacher, student=config.student, output=config.output) == config


@pytest.mark.parametrize("recipe", cli.recipe_names())
def test_recipe_says_how_it_is_run(recipe: str) -> None:
    header = [line for line in cli.recipe_path(recipe).read_text().splitlines() if line.startswith("#")]
    command = "python -m sftn_fast.train" + ("" if recipe == cli.DEFAULT_RECIPE else f" --config {recipe}")
    assert any(line.lstrip("# ").startswith(command) for line in header)


@pytest.mark.parametrize("recipe", [name for name in cli.recipe_names() if name.startswith("cifar100")])
def test_cifar_recipes_are_the_setting_of_the_reference(recipe: str) -> None:
    config, _ = cli.parse(["--config", recipe])
    optim = config.optim
    assert (config.epochs, optim.batch_size, optim.momentum, optim.weight_decay) == (240, 64, 0.9, 5e-4)
    assert (config.sftn.teacher_weight, config.sftn.ce_weight, config.sftn.kl_weight) == (1, 1, 3)
    assert (config.sftn.temperature, config.distill) == (1, "kd=0.9")
    assert (optim.lr, optim.schedule, optim.milestones) == (None, "milestones", None)


def test_recipes_of_mixed_images_are_those_of_their_authors() -> None:
    cutmix, matching = (cli.parse(["--config", f"{name}_cifar100"])[0] for name in ("cutmix", "function_matching"))
    base, _ = cli.parse(["--config", "cifar100"])
    changed = dataclasses.replace(base.data, cutmix=1.0, mixed="students")
    assert cutmix == dataclasses.replace(base, data=changed, output=cutmix.output)
    assert matching.distill == "kd=1:temperature=1,ce=0"  # the divergence alone
    assert (matching.data.mixup, matching.data.cutmix, matching.data.mixup_prob) == (1, 0, 1)
    assert (matching.optim.schedule, matching.optim.clip_grad, matching.data.mixed) == ("cosine", 1, "students")


@pytest.mark.parametrize("recipe", [name for name in cli.recipe_names() if name.startswith("imagenet")])
def test_imagenet_recipes_are_the_setting_of_the_reference(recipe: str) -> None:
    config, _ = cli.parse(["--config", recipe])
    optim, sftn, engine = config.optim, config.sftn, config.engine
    assert (config.epochs, optim.schedule, optim.milestones, optim.gamma) == (100, "milestones", (30, 60, 90), 0.1)
    assert (optim.lr, optim.batch_size, optim.momentum, optim.weight_decay) == (0.1, 256, 0.9, 1e-4)
    assert (sftn.teacher_weight, sftn.ce_weight, sftn.kl_weight, sftn.temperature) == (1, 1, 1, 1)
    assert (config.data.name, engine.amp, engine.channels_last) == ("imagenet", "bf16", True)
    assert config.distill == "kd=0.5:temperature=1,ce=0.5"


@pytest.mark.parametrize(("teacher", "student"), IMAGENET_PAIRS)
def test_pairs_of_imagenet(teacher: str, student: str) -> None:
    config, _ = cli.parse(["--config", f"imagenet_{teacher}_{student}", "--method", "at"])
    assert (config.teacher, config.student, config.distill, config.epochs) == (teacher, student, "at,kd=1", 100)
    with torch.device("meta"):
        networks = [models.build(name, num_classes=1000) for name in (teacher, student)]
        aware = StudentAwareTeacher(*networks, image_size=224)
    assert [entry.student_stage for entry in aware.entries] == [1, 2, 3]
    refused = {"fsp", "kdsvd"} if teacher == "resnet50" else set()
    assert methods_page.refused_by(teacher, student, 224).keys() == refused
