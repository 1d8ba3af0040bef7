"""Every recipe that comes with the package is parsed and run for two steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from sftn_fast import cli, experiment

# Two steps of four small synthetic images, whatever the recipe's own data set: its networks, schedule and losses stay.
TWO_STEPS = ["--data.name", "fake", "--data.download", "false", "--data.train_size", "8", "--data.image_size", "8"]
TWO_STEPS += ["--optim.batch_size", "4", "--epochs", "1", "--seeds", "[0]"]


@pytest.mark.parametrize("recipe", cli.recipe_names())
def test_recipe_runs_for_two_steps(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, _ = cli.parse(["--config", recipe, *TWO_STEPS, "--output", str(tmp_path / "run")])
    experiment.run(config)
    printed = capsys.readouterr().out
    assert "student of SFTN teacher" in printed
    assert (tmp_path / "run" / "student" / "model.safetensors").is_file()


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
